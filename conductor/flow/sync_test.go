package flow

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/store/sqlite"
	"github.com/slipway-metal/slipway/proto/event"
)

// switched is a BMC whose machine somebody switches by hand.
type switched struct{ power bmc.PowerState }

func (s *switched) Driver() string                                     { return "redfish" }
func (s *switched) Address() string                                    { return "here" }
func (s *switched) Close(context.Context) error                        { return nil }
func (s *switched) PowerState(context.Context) (bmc.PowerState, error) { return s.power, nil }
func (s *switched) SetPower(context.Context, bmc.Action) error         { panic("power sync must not switch") }

func TestPowerSwitchedByHandIsSeenAndLeftAlone(t *testing.T) {
	st, err := sqlite.Open(filepath.Join(t.TempDir(), "db"), make([]byte, 32), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	machine := &switched{bmc.PowerOff}
	var facts []string
	d := &Deps{
		Store: st, BMC: func(*store.Node) (bmc.BMC, error) { return machine, nil }, Log: slog.New(slog.DiscardHandler),
		Record: func(_ context.Context, _ string, e event.Evidence) { facts = append(facts, e.Fact) },
	}
	for _, n := range []*store.Node{
		{UUID: "5cb1a8f0-0000-4000-8000-000000000001", Driver: "redfish", ProvisionState: state.Active, PowerState: "power on"},
		{UUID: "5cb1a8f0-0000-4000-8000-000000000002", Driver: "redfish", ProvisionState: state.Cleaning, PowerState: "power on"},
		{UUID: "5cb1a8f0-0000-4000-8000-000000000003", Driver: "redfish", ProvisionState: state.Active, PowerState: "power off", TargetPowerState: "power on"},
	} {
		if err := st.CreateNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	d.syncRound(t.Context(), time.Minute)
	d.syncRound(t.Context(), time.Minute)
	for id, want := range map[string]string{"1": "power off", "2": "power on", "3": "power off"} {
		n, err := st.Node(t.Context(), "5cb1a8f0-0000-4000-8000-00000000000"+id)
		if err != nil || n.PowerState != want {
			t.Errorf("node %s: power %q, %v; want %q", id, n.PowerState, err, want)
		}
	}
	if len(facts) != 1 || facts[0] != "power off seen, not by the conductor's doing" {
		t.Errorf("facts %q: want one, of the node at rest", facts)
	}
}
