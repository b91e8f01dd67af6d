package explain

import (
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

var t0 = time.Date(2026, 11, 23, 16, 0, 0, 0, time.UTC)

// Every state has an owner, and every state that nobody rests in has a deadline.
func TestEveryStateHasAnOwnerAndADeadline(t *testing.T) {
	for st, info := range state.States {
		r, ok := rules[st]
		if !ok || r.owner == "" || r.expecting == "" {
			t.Errorf("state %q has no rule", st)
			continue
		}
		if r.owner != Operator && r.deadline <= 0 {
			t.Errorf("state %q is the %s's and has no deadline", st, r.owner)
		}
		if info.Stable && r.owner != Operator {
			t.Errorf("state %q rests but is the %s's", st, r.owner)
		}
		if r.owner == Operator && len(state.Accepted(st)) == 0 {
			t.Errorf("state %q is the operator's but takes no verb", st)
		}
		e := Explain(Input{Node: &store.Node{UUID: "u", ProvisionState: st, ProvisionUpdatedAt: t0}, Now: t0.Add(time.Hour)})
		if e.Summary == "" || e.Expecting == "" || e.Overdue != (r.owner != Operator) {
			t.Errorf("state %q: %+v", st, e)
		}
	}
	for st := range rules {
		if _, ok := state.States[st]; !ok {
			t.Errorf("a rule for %q, which is no state", st)
		}
	}
}

// ev is a good fact, s seconds after the work began.
func ev(s int, hop, fact string, detail ...any) store.Evidence {
	e := store.Evidence{Time: t0.Add(time.Duration(s) * time.Second), Evidence: event.Evidence{Hop: hop, Fact: fact, OK: true}}
	if len(detail) > 0 {
		e.Detail = map[string]any{}
	}
	for i := 0; i+1 < len(detail); i += 2 {
		e.Detail[detail[i].(string)] = detail[i+1]
	}
	return e
}

func failed(e store.Evidence) store.Evidence {
	e.OK = false
	return e
}

var booted = []store.Evidence{
	ev(1, event.HopPower, "power on confirmed"), ev(20, event.HopDHCP, "offer sent"), ev(21, event.HopTFTP, "loader served"),
	ev(24, event.HopHTTP, "ramdisk served"), ev(40, event.HopLookup, "agent looked itself up"), ev(40, event.HopHeartbeat, "agent called"),
}

// The first line names the hop that is missing and its likeliest cause.
func TestFirstLineNamesTheMissingHop(t *testing.T) {
	for _, c := range []struct {
		name  string
		in    Input
		at    int // seconds after the work began
		hop   string
		says  []string
		never string
	}{
		{"no DHCP request", Input{Evidence: booted[:1]}, 400, event.HopDHCP, []string{"no DHCP request", "boot order", "VLAN"}, ""},
		{"a server takes its time", Input{Evidence: booted[:1]}, 30, event.HopDHCP, []string{"waiting 29s", "DHCP request"}, "boot order"},
		{"no TFTP", Input{Evidence: booted[:2]}, 80, event.HopTFTP, []string{"UDP port 69"}, ""},
		{"no HTTP", Input{Evidence: booted[:3]}, 80, event.HopHTTP, []string{"HTTP port is blocked"}, ""},
		{"kernel, no ramdisk", Input{Evidence: append(booted[:3:3], ev(25, event.HopHTTP, "kernel served", "file", "kernel"))}, 80, event.HopHTTP, []string{"ramdisk was not", "Secure Boot"}, "port is blocked"},
		{"script only, no TFTP", Input{Evidence: append(booted[:2:2], ev(25, event.HopHTTP, "script served"))}, 26, event.HopHTTP, []string{"the rest", "script served"}, "TFTP"},
		{"no lookup", Input{Evidence: booted[:4]}, 400, event.HopLookup, []string{"kernel and ramdisk were served", "out of memory"}, ""},
		{"no heartbeat", Input{Evidence: booted[:5]}, 400, event.HopHeartbeat, []string{"sends no heartbeat"}, ""},
		{"ramdisk in part", Input{Evidence: append(booted[:3:3], failed(ev(30, event.HopHTTP, "ramdisk cut off", "bytes", 1000, "total", 9000)))}, 60, event.HopHTTP, []string{"ramdisk cut off", "bytes 1000, total 9000", "packet loss"}, ""},
		{"lookup refused", Input{Evidence: append(booted[:4:4], failed(ev(41, event.HopLookup, "lookup with an unknown nonce", "peer", "192.0.2.9")))}, 60, event.HopLookup, []string{"unknown nonce", "192.0.2.9"}, ""},
		{"BMC fails", Input{Evidence: []store.Evidence{failed(ev(5, event.HopPower, "power on failed", "error", "401 Unauthorized"))}}, 60, event.HopPower, []string{"401", "credentials"}, ""},
		{"silent agent", Input{Evidence: booted, Heartbeat: t0.Add(60 * time.Second)}, 100, event.HopHeartbeat, []string{"heartbeat silent for 40s", "crashed"}, ""},
		{"a step runs", Input{Evidence: booted, Heartbeat: t0.Add(95 * time.Second), ProgressAt: t0.Add(99 * time.Second),
			Progress: &event.Progress{Step: "write_image", Stage: "write", Percent: 43.2, Rate: 110e6, ETA: 12, Bottleneck: "network"}}, 100, "",
			[]string{"write_image", "43 %", "110.0 MB/s", "ETA 12s", "limited by network"}, ""},
		{"agent is up", Input{Evidence: append(booted[:6:6], ev(70, event.HopCommand, "step erase started")), Heartbeat: t0.Add(95 * time.Second)}, 100, "", []string{"agent is up", "step erase started"}, ""},
		{"an old refusal is forgotten", Input{Evidence: append([]store.Evidence{failed(ev(0, event.HopCommand, "step failed"))}, booted...), Heartbeat: t0.Add(95 * time.Second)}, 100, "", []string{"agent is up"}, "step failed"},
		{"an earlier boot does not count", Input{Evidence: append(booted[1:6:6], ev(90, event.HopPower, "power on confirmed")), Heartbeat: t0.Add(60 * time.Second)}, 300, event.HopDHCP, []string{"no DHCP request"}, "silent"},
		{"only powered off so far", Input{Evidence: []store.Evidence{ev(1, event.HopPower, "power off confirmed")}}, 60, event.HopPower, []string{"BMC"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := c.in
			in.Node = &store.Node{UUID: "u", ProvisionState: state.WaitCallback, ProvisionUpdatedAt: t0}
			in.Now = t0.Add(time.Duration(c.at) * time.Second)
			in.Work = &store.Work{Created: t0, Deadline: t0.Add(30 * time.Minute)}
			e := Explain(in)
			if e.MissingHop != c.hop {
				t.Errorf("missing hop %q, want %q: %s", e.MissingHop, c.hop, e.Summary)
			}
			for _, s := range c.says {
				if !strings.Contains(e.Summary, s) {
					t.Errorf("%q does not say %q", e.Summary, s)
				}
			}
			if c.never != "" && strings.Contains(e.Summary, c.never) {
				t.Errorf("%q says %q", e.Summary, c.never)
			}
			if strings.Contains(e.Summary, "\n") || e.Deadline == nil || e.Overdue {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestStatesWithoutAMachineUnderWay(t *testing.T) {
	now := t0.Add(10 * time.Minute)
	for _, c := range []struct {
		name string
		node store.Node
		work *store.Work
		says []string
	}{
		{"failed", store.Node{ProvisionState: state.DeployFailed, LastError: "disk full\nmore"}, nil, []string{"deploy failed: disk full"}},
		{"active", store.Node{ProvisionState: state.Active}, nil, []string{"in use"}},
		{"work lost", store.Node{ProvisionState: state.Deploying}, nil, []string{"no work is queued"}},
		{"retries", store.Node{ProvisionState: state.Verifying}, &store.Work{Attempt: 3, Cause: "BMC timed out", RunAt: now.Add(8 * time.Second), Owner: "c"}, []string{"attempt 3 failed", "BMC timed out", "in 8s"}},
		{"nobody works", store.Node{ProvisionState: state.Verifying}, &store.Work{RunAt: t0}, []string{"no conductor takes the work", "overdue by 5m"}},
		{"quarantined", store.Node{ProvisionState: state.Active, Maintenance: true, Fault: "identity conflict", MaintenanceReason: "two machines"}, nil, []string{"identity conflict", "two machines"}},
		{"maintenance", store.Node{ProvisionState: state.Manageable, Maintenance: true}, nil, []string{"in maintenance; manageable"}},
	} {
		c.node.ProvisionUpdatedAt = t0
		e := Explain(Input{Node: &c.node, Work: c.work, Now: now})
		for _, s := range c.says {
			if !strings.Contains(e.Summary, s) {
				t.Errorf("%s: %q does not say %q", c.name, e.Summary, s)
			}
		}
		if len(e.Hops) != 9 {
			t.Errorf("%s: hops %v", c.name, e.Hops)
		}
	}
}
