package faults

import (
	"strings"
	"testing"

	"github.com/slipway-metal/slipway/testenv/fakebmc"
)

// TestBMCFaults: what a BMC does wrong ends in a state with a reason, and the
// verb succeeds once the BMC is well.
func TestBMCFaults(t *testing.T) {
	for _, tc := range []struct {
		name   string
		faults fakebmc.Faults
		says   []string
	}{
		{"refuses the credentials", fakebmc.Faults{RefuseAuth: true}, []string{"credentials refused", "driver_info"}},
		{"answers 500", fakebmc.Faults{Status: 500}, []string{"BMC", "500"}},
		{"babbles", fakebmc.Faults{Malformed: true}, []string{"BMC"}},
		{"times out", fakebmc.Faults{Hang: true}, []string{"BMC", "timed out"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := rack(t, "--bmc-timeout", "1s")
			m := r.Bare("node-a", "52:54:00:aa:00:01")
			m.BMC.SetFaults(tc.faults)
			r.Must("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": "manage"}, nil)
			r.Until("verifying failed", func() bool { n := m.Node(); return n.ProvisionState == "enroll" && n.LastError != "" })
			n := m.Node()
			for _, want := range append(tc.says, "; ", "manage") {
				if !strings.Contains(n.LastError, want) {
					t.Errorf("last_error does not say %q: %s", want, n.LastError)
				}
			}
			noSecrets(t, r, m)
			m.BMC.SetFaults(fakebmc.Faults{})
			if !tc.faults.RefuseAuth { // those are not tried again for minutes: accounts get locked
				r.Verb(m, "manage", "manageable")
			}
		})
	}
}

// TestBMCThatSaysYesAndDoesNothing: the write is read back, so it is noticed.
func TestBMCThatSaysYesAndDoesNothing(t *testing.T) {
	t.Parallel()
	r := rack(t, "--power-timeout", "1s")
	m := r.Add("node-a", "52:54:00:aa:00:01")
	m.BMC.SetFaults(fakebmc.Faults{IgnorePower: true})
	r.Must("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": "inspect"}, nil)
	n := r.Await(m, "inspect failed")
	for _, want := range []string{"power on", "accepted and did nothing", "; ", "retry the verb"} {
		if !strings.Contains(n.LastError, want) {
			t.Errorf("last_error does not say %q: %s", want, n.LastError)
		}
	}
	if n.PowerState == "power on" {
		t.Error("the node is said to be on")
	}
	m.BMC.SetFaults(fakebmc.Faults{})
	r.Verb(m, "inspect", "manageable")
}
