package fakebmc

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// resetTypes are the values of DSP0268's ResetType that the service carries out.
var resetTypes = []string{"On", "ForceOn", "ForceOff", "GracefulShutdown", "GracefulRestart", "ForceRestart", "PowerCycle", "PushPowerButton"}

func (b *BMC) bootTargets(f Faults) []Device {
	switch {
	case f.BootTargets != nil:
		return f.BootTargets
	case b.cfg.BootTargets != nil:
		return b.cfg.BootTargets
	}
	t := []Device{None, PXE, Disk, CD, BIOSSetup}
	if b.cfg.BootMode == "UEFI" {
		t = append(t, UEFIHTTP)
	}
	return t
}

// enabled is how the override's lifetime reads.
func enabled(o Override, f Faults) string {
	switch {
	case f.OnceReadsContinuous:
		return "Continuous"
	case o.Device == None || o.Device == "":
		return "Disabled"
	case o.Once:
		return "Once"
	}
	return "Continuous"
}

func (b *BMC) systemDoc(ctx context.Context) (doc, error) {
	b.calls.Lock()
	power, err := b.machine.PowerState(ctx)
	b.calls.Unlock()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	f, o := b.faults, b.override
	if f.TransitionState != "" && b.stats.pending > 0 {
		power = f.TransitionState
	}
	resets := resetTypes
	if f.ResetTypes != nil {
		resets = f.ResetTypes
	}
	boot := doc{
		"BootSourceOverrideEnabled":                         enabled(o, f),
		"BootSourceOverrideEnabled@Redfish.AllowableValues": []string{"Disabled", "Once", "Continuous"},
		"BootSourceOverrideTarget":                          o.Device,
		"BootSourceOverrideTarget@Redfish.AllowableValues":  b.bootTargets(f),
		"BootSourceOverrideMode":                            b.cfg.BootMode,
		"BootSourceOverrideMode@Redfish.AllowableValues":    []string{b.cfg.BootMode},
		"HttpBootUri": o.HTTPURI,
	}
	if f.HideBootMode {
		delete(boot, "BootSourceOverrideMode")
		delete(boot, "BootSourceOverrideMode@Redfish.AllowableValues")
	}
	reset := doc{
		"target":                            b.systemPath() + "/Actions/ComputerSystem.Reset",
		"ResetType@Redfish.AllowableValues": resets,
	}
	if f.HideResetTypes {
		delete(reset, "ResetType@Redfish.AllowableValues")
	}
	ok := doc{"State": "Enabled", "Health": "OK", "HealthRollup": "OK"}
	d := doc{
		"@odata.type": "#ComputerSystem.v1_22_0.ComputerSystem", "@odata.id": b.systemPath(),
		"@odata.context": root + "/$metadata#ComputerSystem.ComputerSystem",
		"Id":             b.cfg.UUID, "UUID": b.cfg.UUID, "Name": b.cfg.Name, "SystemType": "Virtual",
		"Manufacturer": b.cfg.Manufacturer, "Model": b.cfg.Model, "SerialNumber": b.cfg.Serial, "BiosVersion": b.cfg.BIOSVersion,
		"PowerState": power, "Boot": boot, "Status": ok,
		"ProcessorSummary":   doc{"Count": b.cfg.CPUs, "LogicalProcessorCount": b.cfg.CPUs, "Status": ok},
		"MemorySummary":      doc{"TotalSystemMemoryGiB": float64(b.cfg.MemoryMiB) / 1024, "Status": ok},
		"EthernetInterfaces": link(b.systemPath() + "/EthernetInterfaces"),
		"Links":              doc{"Chassis": links(chassisPath), "ManagedBy": links(managerPath)},
		"Actions":            doc{"#ComputerSystem.Reset": reset},
	}
	if !b.lastReset.IsZero() {
		d["LastResetTime"] = b.lastReset.UTC().Format(time.RFC3339Nano)
	}
	if _, ok := b.machine.(MediaMachine); ok {
		d["VirtualMedia"] = link(b.systemPath() + "/VirtualMedia")
	}
	return d, nil
}

func (b *BMC) getSystem(w http.ResponseWriter, r *http.Request) {
	d, err := b.systemDoc(r.Context())
	if err != nil {
		internal(w, err)
		return
	}
	reply(w, http.StatusOK, d, b.fault().Malformed)
}

func internal(w http.ResponseWriter, err error) {
	fail(w, http.StatusInternalServerError, "Base.1.18.InternalError", err.Error())
}

func badValue(w http.ResponseWriter, value, property string) {
	fail(w, http.StatusBadRequest, "Base.1.18.PropertyValueNotInList",
		fmt.Sprintf("The value '%s' for the property %s is not in the list of acceptable values.", value, property))
}

type bootPatch struct {
	Boot *struct {
		Enabled *string `json:"BootSourceOverrideEnabled"`
		Target  *Device `json:"BootSourceOverrideTarget"`
		Mode    *string `json:"BootSourceOverrideMode"`
		HTTPURI *string `json:"HttpBootUri"`
	}
}

func (b *BMC) patchSystem(w http.ResponseWriter, r *http.Request) {
	d, err := b.systemDoc(r.Context())
	if err != nil {
		internal(w, err)
		return
	}
	if want := r.Header.Get("If-Match"); want != "" && want != "*" {
		body, err := json.Marshal(d)
		if err != nil {
			internal(w, err)
			return
		}
		if want != etag(body) || b.fault().StaleETag {
			fail(w, http.StatusPreconditionFailed, "Base.1.18.PreconditionFailed", "The ETag supplied did not match the ETag required to change this resource.")
			return
		}
	}
	var in bootPatch
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "Base.1.18.MalformedJSON", "The request body submitted was malformed JSON.")
		return
	}
	if in.Boot != nil && !b.applyBoot(w, r, in) {
		return
	}
	b.getSystem(w, r)
}

// applyBoot checks and carries out a boot PATCH; on false it has answered.
func (b *BMC) applyBoot(w http.ResponseWriter, r *http.Request, in bootPatch) bool {
	f, old := b.fault(), b.Override()
	next, p := old, in.Boot
	switch {
	case f.WantBootMode && p.Mode == nil:
		fail(w, http.StatusBadRequest, "Base.1.18.PropertyMissing", "The property BootSourceOverrideMode is a required property and must be included in the request.")
		return false
	case p.Mode != nil && *p.Mode != b.cfg.BootMode:
		badValue(w, *p.Mode, "BootSourceOverrideMode")
		return false
	case f.RefuseUnchanged && p.Enabled != nil && *p.Enabled == enabled(old, f):
		fail(w, http.StatusBadRequest, "Base.1.18.PropertyNotWritable", "The property BootSourceOverrideEnabled is already set to the requested value.")
		return false
	}
	if p.Target != nil {
		if !slices.Contains(b.bootTargets(f), *p.Target) {
			badValue(w, string(*p.Target), "BootSourceOverrideTarget")
			return false
		}
		next.Device = *p.Target
	}
	if p.HTTPURI != nil {
		next.HTTPURI = *p.HTTPURI
	}
	if p.Enabled != nil {
		switch *p.Enabled {
		case "Once":
			next.Once = true
		case "Continuous":
			if f.NoContinuous {
				badValue(w, "Continuous", "BootSourceOverrideEnabled")
				return false
			}
			next.Once = false
		case "Disabled":
			next = Override{Device: None}
		default:
			badValue(w, *p.Enabled, "BootSourceOverrideEnabled")
			return false
		}
	}
	if f.IgnoreBoot || f.WantEnabled && p.Enabled == nil {
		return true
	}
	b.calls.Lock()
	err := b.machine.SetNextBoot(r.Context(), next)
	b.calls.Unlock()
	if err != nil {
		internal(w, err)
		return false
	}
	b.mu.Lock()
	b.override = next
	b.mu.Unlock()
	return true
}

func (b *BMC) postReset(w http.ResponseWriter, r *http.Request) {
	var in struct{ ResetType string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "Base.1.18.MalformedJSON", "The request body submitted was malformed JSON.")
		return
	}
	f := b.fault()
	allowed := resetTypes
	if f.ResetTypes != nil {
		allowed = f.ResetTypes
	}
	if !slices.Contains(allowed, in.ResetType) {
		fail(w, http.StatusBadRequest, "Base.1.18.ActionParameterNotSupported",
			fmt.Sprintf("The parameter ResetType with value '%s' is not supported on the target resource.", in.ResetType))
		return
	}
	if f.ConflictWhenThere {
		b.calls.Lock()
		state, err := b.machine.PowerState(r.Context())
		b.calls.Unlock()
		if err != nil {
			internal(w, err)
			return
		}
		if in.ResetType == string(state) || in.ResetType == "ForceOff" && state == Off {
			fail(w, http.StatusConflict, "Base.1.18.NoOperation", "The machine is in that power state already.")
			return
		}
	}
	b.mu.Lock()
	b.stats.Resets = append(b.stats.Resets, in.ResetType)
	b.mu.Unlock()
	if !f.IgnorePower {
		// The change outlives the request: a client that leaves must not stop it.
		ctx := context.WithoutCancel(r.Context())
		if err := b.later(ctx, f.PowerDelay, func(ctx context.Context) error { return b.reset(ctx, in.ResetType) }); err != nil {
			internal(w, err)
			return
		}
	}
	w.WriteHeader(http.StatusNoContent)
}
