package bmc

import "strings"

// behaviour is how a BMC deviates from DSP0266 and DSP0268.
type behaviour struct {
	sendBootMode        bool // a boot PATCH must hold BootSourceOverrideMode
	alwaysSendEnabled   bool // a boot PATCH must hold BootSourceOverrideEnabled, changed or not
	onceReadsContinuous bool // Once reads back as Continuous
	noForceOff          bool // ForceOff is offered and does not work
}

// quirk is a row: who does it, how we know, and what changes.
type quirk struct {
	name    string   // in driver_info/redfish_quirks
	vendors []string // words of the system's Manufacturer, lower case; none: by redfish_quirks only
	source  string
	set     func(*behaviour)
}

var quirks = []quirk{
	{
		name:    "boot-mode-required",
		vendors: []string{"american megatrends", "ami", "asrockrack"},
		source:  "Ironic 39, redfish/management.py: VENDORS_REQUIRING_FULL_BOOT_REQUEST",
		set:     func(b *behaviour) { b.sendBootMode, b.alwaysSendEnabled = true, true },
	},
	{
		name:    "boot-enabled-always",
		vendors: []string{"supermicro"},
		source:  "Ironic story 2008547: the persistence must be sent with every boot device. Others refuse it when unchanged (story 2007355)",
		set:     func(b *behaviour) { b.alwaysSendEnabled = true },
	},
	{
		name:    "once-reads-continuous",
		vendors: []string{"sushy emulator"},
		source:  "sushy-tools 2.2, templates/system.json: BootSourceOverrideEnabled is the constant Continuous",
		set:     func(b *behaviour) { b.onceReadsContinuous = true },
	},
	{
		name:   "no-force-off",
		source: "for BMCs that offer ForceOff and refuse or ignore it: power off is then a graceful shutdown",
		set:    func(b *behaviour) { b.noForceOff = true },
	},
}

func quirkNames() []string {
	names := make([]string, 0, len(quirks))
	for _, q := range quirks {
		names = append(names, q.name)
	}
	return names
}

func quirkNamed(name string) (quirk, bool) {
	for _, q := range quirks {
		if q.name == name {
			return q, true
		}
	}
	return quirk{}, false
}

// behaviourOf collects the rows that match a manufacturer, and those that the operator named.
func behaviourOf(manufacturer string, named []string) (b behaviour, names []string) {
	words := " " + strings.Join(strings.FieldsFunc(strings.ToLower(manufacturer), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	}), " ") + " "
	for _, q := range quirks {
		hit := false
		for _, v := range q.vendors {
			hit = hit || strings.Contains(words, " "+v+" ")
		}
		for _, n := range named {
			hit = hit || n == q.name
		}
		if hit {
			q.set(&b)
			names = append(names, q.name)
		}
	}
	return b, names
}

// transient are messages by which a BMC says "not now": the call is tried again
// until Timeouts.Settle. Message ids are matched without registry and version.
var transient = []struct{ messageID, source string }{
	{"UnableToModifyDuringSystemPOST", "HPE iLO refuses boot settings while the firmware runs its self-test (Ironic 39, redfish/management.py)"},
	{"ActionParameterValueConflict", "Dell iDRAC 10 refuses On for a moment after a power-off (Ironic 39, redfish/power.py)"},
	{"ServiceTemporarilyUnavailable", "DSP0266 base registry: retry later"},
	{"ResourceInUse", "DSP0266 base registry: the change is refused while another is under way"},
}

func isTransient(messageIDs []string) bool {
	for _, id := range messageIDs {
		id = id[strings.LastIndex(id, ".")+1:]
		for _, t := range transient {
			if id == t.messageID {
				return true
			}
		}
	}
	return false
}
