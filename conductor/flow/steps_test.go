package flow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/agentclient"
	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/store/sqlite"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// ramdisk is an agent that keeps its commands, as ours does with own ids and a
// stock one with its own.
type ramdisk struct {
	stock    bool
	commands []agent.CommandResult
	sent     int
	err      error
}

func (r *ramdisk) Close() {}

func (r *ramdisk) Commands(context.Context) ([]agent.CommandResult, error) {
	return r.commands, r.err
}

func (r *ramdisk) Execute(_ context.Context, name string, params any, _ bool) (*agent.CommandResult, error) {
	if r.err != nil {
		return nil, r.err
	}
	_, short, _ := strings.Cut(name, ".")
	c := agent.CommandResult{ID: fmt.Sprintf("stock-%d", len(r.commands)), CommandName: short, CommandStatus: agent.Running}
	if p, ok := params.(string); ok && !r.stock {
		c.ID = p
	}
	r.sent++
	r.commands = append(r.commands, c)
	return &r.commands[len(r.commands)-1], nil
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func bench(r *ramdisk) (*Deps, *work.Job) {
	d := &Deps{
		Dial:          func(string, string, string) (Agent, error) { return r, nil },
		LastHeartbeat: func(string) time.Time { return start }, Now: func() time.Time { return start.Add(time.Second) },
		Record: func(context.Context, string, event.Evidence) {}, Config: Defaults, Log: slog.New(slog.DiscardHandler),
	}
	n := &store.Node{UUID: "n", DriverInternalInfo: map[string]any{store.KeyURL: "http://a", store.KeyToken: "t"}}
	j := &work.Job{Node: n}
	j.Save = func(_ context.Context, v any) (err error) { j.Payload, err = json.Marshal(v); return err }
	j.Update = func(_ context.Context, f func(*store.Node) error) error { return f(n) }
	return d, j
}

// TestAConductorThatDiedAnywhereInAStepSendsItOnce: the payload that was saved
// last is all the next conductor has.
func TestAConductorThatDiedAnywhereInAStepSendsItOnce(t *testing.T) {
	for _, stock := range []bool{false, true} {
		for _, died := range []string{"before it was saved", "before it was sent", "before the answer", "after the answer"} {
			t.Run(fmt.Sprintf("stock=%v/%s", stock, died), func(t *testing.T) {
				r := &ramdisk{stock: stock, commands: []agent.CommandResult{{ID: "earlier", CommandName: "execute_deploy_step", CommandStatus: agent.Succeeded}}}
				d, j := bench(r)
				plan := []Planned{NewStep("deploy.execute_deploy_step", agent.Step{Step: "write_image"})}
				params := func(s *Planned) (any, error) { return s.ID, nil }
				saved, err := json.Marshal(plan)
				if err != nil {
					t.Fatal(err)
				}
				run := func() work.Result {
					var again []Planned
					if err := json.Unmarshal(saved, &again); err != nil {
						t.Fatal(err)
					}
					res := d.Run(t.Context(), j, again, params, again)
					if w, ok := res.(work.Wait); ok {
						if saved, err = json.Marshal(w.Payload); err != nil {
							t.Fatal(err)
						}
					} else if res == nil {
						saved = j.Payload
					}
					return res
				}
				switch died {
				case "before it was sent":
					r.err = agentclient.ErrUnreachable // also: the agent is away for a moment
					plan[0].Status, plan[0].Before, plan[0].Started = sending, "earlier", start
					saved, _ = json.Marshal(plan)
					if _, ok := run().(work.Wait); !ok {
						t.Fatal("a silent moment is not waited out")
					}
					r.err = nil
				case "before the answer":
					plan[0].Status, plan[0].Before, plan[0].Started = sending, "earlier", start
					saved, _ = json.Marshal(plan)
					if _, err := r.Execute(t.Context(), plan[0].Command, plan[0].ID, false); err != nil {
						t.Fatal(err)
					}
				case "after the answer":
					run()
				}
				if w, ok := run().(work.Wait); !ok || w.Poll == 0 || w.Until.IsZero() {
					t.Fatalf("the running step is not waited for: %+v", w)
				}
				r.commands[len(r.commands)-1].CommandStatus = agent.Succeeded
				if res := run(); res != nil {
					t.Fatalf("the step that ended is not done: %+v", res)
				}
				if res := run(); res != nil || r.sent != 1 {
					t.Errorf("%+v, sent %d times; want once", res, r.sent)
				}
			})
		}
	}
}

func TestAnAgentThatStartedAnewInAStepFailsIt(t *testing.T) {
	d, j := bench(&ramdisk{})
	plan := []Planned{NewStep("deploy.execute_deploy_step", agent.Step{Step: "write_image"})}
	plan[0].Status, plan[0].AgentID = running, "gone"
	f, ok := d.Run(t.Context(), j, plan, nil, plan).(work.Fail)
	if !ok || !strings.Contains(f.Cause.Error(), "step write_image: the agent started anew") || f.Next == "" {
		t.Errorf("%+v", f)
	}
}

func TestAFailedStepSaysWhyOnce(t *testing.T) {
	for _, tc := range []struct {
		e    *agent.CommandError
		want string
	}{
		{nil, "step s: the agent gave no reason"},
		{&agent.CommandError{Message: "Command execution failed", Details: "step s: disk is full"}, "step s: disk is full"},
		{&agent.CommandError{Message: "Command execution failed", Details: "Command execution failed: disk is full"}, "step s: disk is full"},
		{&agent.CommandError{Message: "Error writing", Details: "disk is full"}, "step s: Error writing: disk is full"},
		{&agent.CommandError{Message: "same", Details: "same"}, "step s: same"},
	} {
		r := &ramdisk{commands: []agent.CommandResult{{ID: "1", CommandStatus: agent.Failed, CommandError: tc.e}}}
		d, j := bench(r)
		plan := []Planned{NewStep("clean.execute_clean_step", agent.Step{Step: "s"})}
		plan[0].Status, plan[0].AgentID = running, "1"
		f, ok := d.Run(t.Context(), j, plan, nil, plan).(work.Fail)
		if !ok || f.Cause.Error() != tc.want {
			t.Errorf("%v; want %s", f.Cause, tc.want)
		}
	}
}

// TestWhatAnAgentsErrorComesTo: no answer is waited out as long as it was heard
// of lately; who may go on without obeying is switched off.
func TestWhatAnAgentsErrorComesTo(t *testing.T) {
	heard, silent := time.Second, Defaults.Silence+time.Second
	for _, tc := range []struct {
		name     string
		err      error
		ago      time.Duration
		wait     bool
		orphaned bool
	}{
		{"unreachable for a moment", agentclient.ErrUnreachable, heard, true, false},
		{"unreachable for long", agentclient.ErrUnreachable, silent, false, true},
		{"busy", agentclient.ErrBusy, silent, true, false},
		{"other token", agentclient.ErrToken, heard, false, true},
		{"other", errors.New("other"), heard, false, false},
	} {
		d, j := bench(&ramdisk{})
		d.Now = func() time.Time { return start.Add(tc.ago) }
		switch res := d.AgentFailed(j, tc.err, "during step s", 1).(type) {
		case work.Wait:
			if !tc.wait || res.For == "" || res.Poll == 0 {
				t.Errorf("%s: %+v", tc.name, res)
			}
			// The engine keeps the deadline before when none is given.
			if errors.Is(tc.err, agentclient.ErrBusy) && !res.Until.IsZero() {
				t.Errorf("%s: a busy agent renews its own deadline", tc.name)
			}
		case work.Fail:
			if tc.wait || res.Next == "" || !errors.Is(res.Cause, tc.err) {
				t.Errorf("%s: %+v", tc.name, res)
			}
			if res.Set != nil {
				if err := res.Set(j.Node); err != nil {
					t.Error(err)
				}
			}
			if orphaned(j.Node) != tc.orphaned {
				t.Errorf("%s: to be switched off: %v, want %v", tc.name, orphaned(j.Node), tc.orphaned)
			}
		}
	}
}

// button is a BMC with a power button.
type button struct {
	switched
	err error
}

func (b *button) SetPower(_ context.Context, a bmc.Action) error {
	if b.err == nil {
		b.power = a.Target()
	}
	return b.err
}

// TestOrphansAreSwitchedOff, as often as it takes, and others are left alone.
func TestOrphansAreSwitchedOff(t *testing.T) {
	st, err := sqlite.Open(filepath.Join(t.TempDir(), "db"), make([]byte, 32), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	const orphan, other = "5cb1a8f0-0000-4000-8000-000000000001", "5cb1a8f0-0000-4000-8000-000000000002"
	machines := map[string]*button{}
	for _, id := range []string{orphan, other} {
		n := &store.Node{UUID: id, Driver: "redfish", ProvisionState: state.DeployFailed, PowerState: "power on", DriverInternalInfo: map[string]any{store.KeyToken: "t"}}
		if id == orphan {
			if err := Orphan(n); err != nil {
				t.Fatal(err)
			}
		}
		if err := st.CreateNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		machines[id] = &button{switched: switched{bmc.PowerOn}}
	}
	d, _ := bench(&ramdisk{})
	d.Store, d.BMC = st, func(n *store.Node) (bmc.BMC, error) { return machines[n.UUID], nil }
	read := func(id string) *store.Node {
		n, err := st.Node(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	machines[orphan].err = errors.New("BMC away")
	d.haltRound(t.Context())
	if n := read(orphan); !orphaned(n) || n.PowerState != "power on" {
		t.Error("a machine that could not be switched off is forgotten")
	}
	machines[orphan].err = nil
	d.haltRound(t.Context())
	if n := read(orphan); orphaned(n) || n.PowerState != "power off" || machines[orphan].power != bmc.PowerOff {
		t.Errorf("the machine is %s, its node says %s", machines[orphan].power, n.PowerState)
	}
	if n := read(other); n.PowerState != "power on" || machines[other].power != bmc.PowerOn || n.DriverInternalInfo[store.KeyToken] != "t" {
		t.Error("another machine was switched off")
	}
}

// Nor does it get an id of ours with a step: it would be an argument of the step.
func TestOnlyOurAgentIsGivenOurIDs(t *testing.T) {
	s := NewStep("clean.execute_clean_step", agent.Step{Step: "erase_devices_metadata"}, agent.DiskIdentity{Serial: "s", Size: 1})
	for boot, want := range map[string]string{"": "", "a-boot-id": s.ID} {
		n := &store.Node{UUID: "n", DriverInternalInfo: map[string]any{store.KeyBootID: boot}}
		if got := CommandID(n, &s); got != want {
			t.Errorf("boot id %q: %q, want %q", boot, got, want)
		}
	}
}
