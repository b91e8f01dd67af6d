package api

import (
	"net/http"
	"slices"
	"strings"

	"github.com/slipway-metal/slipway/conductor/store"
)

// Driver is a hardware type that this conductor carries out.
type Driver struct {
	Name string
	// Interfaces maps an interface ("boot", "power", …) to its enabled
	// implementations, the default first.
	Interfaces map[string][]string
	// Properties maps a driver_info key to its description.
	Properties map[string]string
}

// interfaceKinds are Ironic's, with the microversion that shows each in a driver.
var interfaceKinds = []struct {
	name  string
	since minor
}{
	{"bios", 40}, {"boot", 30}, {"console", 30}, {"deploy", 30}, {"firmware", 86}, {"inspect", 30}, {"management", 30},
	{"network", 30}, {"power", 30}, {"raid", 30}, {"rescue", 38}, {"storage", 33}, {"vendor", 30},
}

func isInterface(name string) bool {
	for _, k := range interfaceKinds {
		if k.name == name {
			return true
		}
	}
	return false
}

// ramdiskProperties are driver_info keys that every driver with a ramdisk takes.
var ramdiskProperties = map[string]string{
	"deploy_kernel":        "Taken for Ironic's clients; machines boot the conductor's own kernel.",
	"deploy_ramdisk":       "Taken for Ironic's clients; machines boot the conductor's own ramdisk.",
	"kernel_append_params": "Additional kernel parameters for the ramdisk. Optional.",
}

// standardDrivers are the rows of the drivers that Slipway has.
var standardDrivers = []Driver{
	{Name: "fake-hardware", Interfaces: map[string][]string{
		"bios": {"fake", "no-bios"}, "boot": {"fake", "ipxe", "pxe"}, "console": {"fake", "no-console"},
		"deploy": {"fake", "direct", "custom-agent", "ramdisk"}, "firmware": {"fake", "no-firmware"}, "inspect": {"fake", "agent", "no-inspect"},
		"management": {"fake"}, "network": {"noop"}, "power": {"fake"}, "raid": {"fake", "agent", "no-raid"},
		"rescue": {"fake", "agent", "no-rescue"}, "storage": {"noop", "fake"}, "vendor": {"fake", "no-vendor"},
	}},
	{Name: "redfish", Interfaces: withRamdisk("redfish")},
	{Name: "manual-management", Interfaces: func() map[string][]string {
		m := withRamdisk("manual-management")
		m["power"], m["management"] = []string{"agent", "fake"}, []string{"noop", "fake"}
		return m
	}()},
}

func withRamdisk(bmc string) map[string][]string {
	return map[string][]string{
		"bios": {"no-bios"}, "boot": {"ipxe", "pxe"}, "console": {"no-console"}, "deploy": {"direct", "custom-agent", "ramdisk"},
		"firmware": {"no-firmware"}, "inspect": {"agent", "no-inspect"}, "management": {bmc}, "network": {"noop"}, "power": {bmc},
		"raid": {"no-raid", "agent"}, "rescue": {"agent", "no-rescue"}, "storage": {"noop"}, "vendor": {"no-vendor"},
	}
}

// StandardDrivers returns the rows of every driver that conductor/bmc has;
// properties tells a driver's driver_info keys.
func StandardDrivers(properties func(driver string) map[string]string) []Driver {
	out := slices.Clone(standardDrivers)
	for i := range out {
		if properties != nil {
			out[i].Properties = properties(out[i].Name)
		}
	}
	return out
}

// driverSet is the enabled drivers.
type driverSet []Driver

func (ds driverSet) find(name string) *Driver {
	for i := range ds {
		if ds[i].Name == name {
			return &ds[i]
		}
	}
	return nil
}

// fill sets the interfaces that n leaves open to its driver's defaults and
// refuses those that its driver has not.
func (ds driverSet) fill(n *store.Node) error {
	d := ds.find(n.Driver)
	if d == nil {
		return bad("No valid host was found. Reason: No conductor service registered which supports driver %s for conductor group \"%s\". Ensure the driver is valid and enabled.", clip(n.Driver), clip(n.ConductorGroup))
	}
	if n.Interfaces == nil {
		n.Interfaces = map[string]string{}
	}
	for _, k := range interfaceKinds {
		name, enabled := k.name+"_interface", d.Interfaces[k.name]
		have := n.Interfaces[name]
		switch {
		case have == "" && len(enabled) > 0:
			n.Interfaces[name] = enabled[0]
		case have != "" && !slices.Contains(enabled, have):
			valid := slices.Clone(enabled)
			slices.Sort(valid)
			return bad("Could not find the following interface in the 'ironic.hardware.interfaces.%s' entrypoint: %s. Valid interfaces are ['%s'].", k.name, clip(have), strings.Join(valid, "', '"))
		}
	}
	return nil
}

func (s *server) renderDriver(v *view, d *Driver, detail bool) map[string]any {
	out := map[string]any{"name": d.Name, "hosts": []string{v.conductor}, "links": v.link("drivers/" + d.Name)}
	if v.minor >= 14 {
		out["properties"] = v.link("drivers/" + d.Name + "/properties")
	}
	if v.minor >= 30 {
		out["type"] = "dynamic"
		for _, k := range interfaceKinds {
			if v.minor < k.since {
				continue
			}
			var def, enabled any
			if detail {
				def, enabled = d.Interfaces[k.name][0], d.Interfaces[k.name]
			}
			out["default_"+k.name+"_interface"] = def
			out["enabled_"+k.name+"_interfaces"] = enabled
		}
	}
	return out
}

func (s *server) listDrivers(w http.ResponseWriter, r *http.Request) {
	v := s.view(r)
	detail := false
	if text := r.URL.Query().Get("detail"); text != "" {
		if v.minor < 30 {
			s.fail(w, r, notAcceptable())
			return
		}
		var err error
		if detail, err = parseBool(text); err != nil {
			s.fail(w, r, bad("Invalid detail: %s", err))
			return
		}
	}
	switch kind := r.URL.Query().Get("type"); kind {
	case "", "dynamic":
	case "classic":
		s.writeJSON(w, r, http.StatusOK, map[string]any{"drivers": []any{}})
		return
	default:
		s.fail(w, r, bad("'type' filter must be one of 'classic', 'dynamic', not '%s'", clip(kind)))
		return
	}
	rows := make([]any, 0, len(s.drivers))
	for i := range s.drivers {
		rows = append(rows, s.renderDriver(v, &s.drivers[i], detail))
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{"drivers": rows})
}

func (s *server) driverOf(r *http.Request) (*Driver, error) {
	name := pathParam(r, "driver")
	if d := s.drivers.find(name); d != nil {
		return d, nil
	}
	return nil, client(http.StatusNotFound, "Could not find the following driver(s) or hardware type(s): %s.", clip(name))
}

func (s *server) getDriver(w http.ResponseWriter, r *http.Request) {
	d, err := s.driverOf(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.writeJSON(w, r, http.StatusOK, s.renderDriver(s.view(r), d, true))
}

func (s *server) driverProperties(w http.ResponseWriter, r *http.Request) {
	d, err := s.driverOf(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	out := map[string]string{}
	for _, m := range []map[string]string{ramdiskProperties, d.Properties} {
		for k, v := range m {
			out[k] = v
		}
	}
	s.writeJSON(w, r, http.StatusOK, out)
}
