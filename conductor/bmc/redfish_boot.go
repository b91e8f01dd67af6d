package bmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// bootSources are Ironic's boot devices as DSP0268's ComputerSystem.BootSource.
var bootSources = map[Device]string{
	DevicePXE: "Pxe", DeviceDisk: "Hdd", DeviceCDROM: "Cd", DeviceBIOS: "BiosSetup", DeviceUEFIHTTP: "UefiHttp", DeviceDefault: "None",
}

func deviceOf(source string) Device {
	for d, s := range bootSources {
		if s == source {
			return d
		}
	}
	return Device(strings.ToLower(clean(source)))
}

func (s *system) boot() Boot {
	if s.Boot.Enabled == "Disabled" || s.Boot.Enabled == "" {
		return Boot{}
	}
	b := Boot{Device: deviceOf(s.Boot.Target), Persistent: s.Boot.Enabled == "Continuous"}
	if b.Device == DeviceDefault {
		return Boot{}
	}
	return b
}

func (b Boot) String() string {
	switch {
	case b.Device == DeviceDefault:
		return "the firmware's own order"
	case b.Persistent:
		return string(b.Device) + " always"
	}
	return string(b.Device) + " once"
}

// BootDevice implements the BootDevice capability.
func (r *redfish) BootDevice(ctx context.Context) (Boot, error) {
	s, err := r.read(ctx, "read boot device")
	if err != nil {
		return Boot{}, err
	}
	return s.boot(), nil
}

// BootDevices implements the BootDevice capability.
func (r *redfish) BootDevices(ctx context.Context) ([]Device, error) {
	s, err := r.read(ctx, "list boot devices")
	if err != nil {
		return nil, err
	}
	var out []Device
	for d, source := range bootSources {
		if d != DeviceDefault && (len(s.Boot.AllowedTargets) == 0 || slices.Contains(s.Boot.AllowedTargets, source)) {
			out = append(out, d)
		}
	}
	slices.Sort(out)
	return out, nil
}

// bootPatch is the change of a boot override; empty fields are left out.
type bootPatch struct {
	Boot struct {
		Enabled string `json:"BootSourceOverrideEnabled,omitempty"`
		Target  string `json:"BootSourceOverrideTarget,omitempty"`
		Mode    string `json:"BootSourceOverrideMode,omitempty"`
	}
}

// SetBootDevice implements the BootDevice capability.
func (r *redfish) SetBootDevice(ctx context.Context, dev Device, persistent bool) error {
	want := Boot{dev, persistent && dev != DeviceDefault}
	op := "boot from " + want.String()
	source, ok := bootSources[dev]
	if !ok {
		return &Error{Class: ErrInvalid, Address: r.in.address, Op: op, Cause: fmt.Errorf("no boot device %q: use one of pxe, disk, cdrom, bios, uefihttp", dev)}
	}
	there, err := r.attempt(ctx, op, func() (bool, error) {
		s, err := r.readSystem()
		if err != nil {
			return false, err
		}
		if s.boot() == want && !s.behaviour.onceReadsContinuous {
			return true, nil
		}
		if allowed := s.Boot.AllowedTargets; len(allowed) > 0 && dev != DeviceDefault && !slices.Contains(allowed, source) {
			return false, r.noBoot(op, fmt.Errorf("the BMC offers only %s", list(allowed)), "choose another boot device")
		}
		return false, r.patch(s.path, s.etag, patchFor(s, want, source))
	})
	if s := status(err); s == http.StatusBadRequest && want.Persistent {
		// Continuous left Redfish, and some BMCs refuse it; a refused value is not a broken BMC.
		var a *answerError
		errors.As(err, &a)
		return r.noBoot(op, a, "set it for the next boot only, before each boot")
	}
	if err != nil || there {
		return err
	}
	var have Boot
	there, err = r.poll(ctx, r.opt.Timeouts.Settle, func() (bool, error) {
		s, err := r.read(ctx, op)
		if err != nil {
			return false, err
		}
		have = s.boot()
		return have == want || s.behaviour.onceReadsContinuous && have.Device == want.Device, nil
	})
	switch {
	case there:
		return nil
	case err != nil:
		return r.explain(op, err)
	}
	e := &Error{Class: ErrIgnored, Address: r.in.address, Op: op, Cause: fmt.Errorf("the BMC shows %s after %s", have, r.opt.Timeouts.Settle)}
	e.Next = "restart the BMC, or set the boot order in the firmware's set-up"
	if have.Device == want.Device && have.Persistent && !want.Persistent {
		e.Next = "if the machine then boots from it once only, set driver_info/redfish_quirks to once-reads-continuous"
	}
	return e
}

func (r *redfish) noBoot(op string, cause error, next string) error {
	return &Error{Class: ErrUnsupported, Address: r.in.address, Op: op, Cause: cause, Next: next}
}

// patchFor says as little as this BMC needs: some refuse what is unchanged, some
// want everything (see quirks).
func patchFor(s *system, want Boot, source string) (p bootPatch) {
	enabled := "Once"
	switch {
	case want.Device == DeviceDefault:
		enabled = "Disabled"
	case want.Persistent:
		enabled = "Continuous"
	}
	p.Boot.Target = source
	if enabled != s.Boot.Enabled || s.behaviour.alwaysSendEnabled || s.behaviour.onceReadsContinuous {
		p.Boot.Enabled = enabled
	}
	if s.behaviour.sendBootMode {
		p.Boot.Mode = s.Boot.Mode
		if p.Boot.Mode == "" {
			p.Boot.Mode = "UEFI" // what Ironic sends then
		}
	}
	return p
}

// nicLimit bounds how many NICs of one machine are read.
const nicLimit = 64

// Identity implements the Identity capability.
func (r *redfish) Identity(ctx context.Context) (Facts, error) {
	var f Facts
	err := r.do(ctx, "read identity", func() error {
		s, err := r.readSystem()
		if err != nil {
			return err
		}
		f = Facts{
			UUID: strings.ToLower(clean(s.UUID)), Serial: clean(s.SerialNumber), SKU: clean(s.SKU),
			Manufacturer: clean(s.Manufacturer), Model: clean(s.Model), BIOSVersion: clean(s.BiosVersion),
		}
		if n, err := s.ProcessorSummary.Count.Int64(); err == nil {
			f.CPUs = int(n)
		}
		if gib, err := s.MemorySummary.TotalSystemMemoryGiB.Float64(); err == nil {
			f.MemoryMiB = int(gib * 1024)
		}
		f.MACs, err = r.macs(s)
		return err
	})
	return f, err
}

func (r *redfish) macs(s *system) ([]string, error) {
	if s.EthernetInterfaces.ID == "" {
		return nil, nil
	}
	var nics members
	if _, err := r.get(s.EthernetInterfaces.ID, &nics); err != nil {
		if status(err) == http.StatusNotFound {
			return nil, nil
		}
		return nil, err
	}
	var out []string
	for _, m := range nics.Members[:min(len(nics.Members), nicLimit)] {
		var nic struct{ MACAddress, PermanentMACAddress string }
		if _, err := r.get(m.ID, &nic); err != nil {
			return nil, err
		}
		mac := nic.PermanentMACAddress
		if mac == "" {
			mac = nic.MACAddress
		}
		// BMCs list NICs without a link partner as "" or 00:00:00:00:00:00.
		if hw, err := net.ParseMAC(mac); err == nil && len(hw) == 6 && mac != "00:00:00:00:00:00" {
			out = append(out, hw.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
