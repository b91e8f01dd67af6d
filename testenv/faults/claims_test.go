package faults

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/testenv/fakebmc"
	"github.com/slipway-metal/slipway/testenv/sim"
)

// TestOrdersAreNeitherForgedNorReplayed: who reaches the agent's API, even with
// its token, wipes nothing without an order of its own.
func TestOrdersAreNeitherForgedNorReplayed(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Add("node-a", "52:54:00:aa:00:01")
	r.Verb(m, "inspect", "manageable")
	url, token, boot := m.Agent()
	disk := agent.DiskIdentity{Serial: sim.DiskSerial, Size: sim.DiskSize}
	generation := time.Now().UnixNano()
	order := func(change func(*agent.Order)) agent.Order {
		o := agent.Order{Node: m.UUID, BootID: boot, Disks: []agent.DiskIdentity{disk}, Action: "erase_devices_metadata", Generation: generation, Expiry: time.Now().Add(time.Minute)}
		change(&o)
		return o.Sign(token)
	}
	genuine := order(func(*agent.Order) {})
	altered := genuine
	altered.Generation++
	marked := func() bool {
		f, err := os.Open(m.DiskFile())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got := make([]byte, 6)
		if _, err := f.ReadAt(got, 510); err != nil {
			t.Fatal(err)
		}
		return string(got) == "\x55\xaaEFI "
	}
	mark := func() {
		f, err := os.OpenFile(m.DiskFile(), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("\x55\xaaEFI PART"), 510); err != nil {
			t.Fatal(err)
		}
	}
	mark()
	for _, tc := range []struct {
		name, token string
		order       *agent.Order
		says        string
		erases      bool
	}{
		{name: "wrong token", token: "guessed", order: &genuine, says: "Token invalid"},
		{name: "no order", token: token, says: "order"},
		{name: "altered", token: token, order: &altered, says: "not signed"},
		{name: "of another boot", token: token, order: new(order(func(o *agent.Order) { o.BootID = "other" })), says: "another node, boot or action"},
		{name: "of another node", token: token, order: new(order(func(o *agent.Order) { o.Node = "other" })), says: "another node, boot or action"},
		{name: "for another action", token: token, order: new(order(func(o *agent.Order) { o.Action = "write_image" })), says: "another node, boot or action"},
		{name: "expired", token: token, order: new(order(func(o *agent.Order) { o.Expiry = time.Now().Add(-time.Minute) })), says: "expired"},
		{name: "genuine", token: token, order: &genuine, erases: true},
		{name: "replayed", token: token, order: &genuine, says: "generation"},
	} {
		params := map[string]any{"step": map[string]any{"step": "erase_devices_metadata", "interface": "deploy", "priority": 10}, "node": map[string]any{"uuid": m.UUID}, "ports": []any{}}
		if tc.order != nil {
			params["slipway_order"] = tc.order
		}
		body := execute(t, url, tc.token, "clean.execute_clean_step", params)
		switch {
		case tc.erases:
			if !strings.Contains(body, "SUCCEEDED") || marked() {
				t.Errorf("%s: the disk was not erased: %s", tc.name, body)
			}
			mark()
		case strings.Contains(body, "SUCCEEDED") || !marked():
			t.Fatalf("%s: the disk was erased: %s", tc.name, body)
		case !strings.Contains(body, tc.says):
			t.Errorf("%s: does not say %q: %s", tc.name, tc.says, body)
		}
	}
}

// execute calls an agent's command and returns what it answered.
func execute(t *testing.T, url, token, name string, params any) string {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"name": name, "params": params})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(url+"/v1/commands/?wait=true&agent_token="+token, "application/json", bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// TestConductorKilledAgainAndAgain: kill -9 every moment on the way from
// manageable to active. Nothing is lost and nothing needs a person.
func TestConductorKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Add("node-a", "52:54:00:aa:00:01")
	good := image(t)
	chaos := func(end string) {
		for _, after := range []time.Duration{5, 30, 80, 150, 250} {
			time.Sleep(after * time.Millisecond) // the moment is the point
			r.Kill()
			r.Start()
		}
		r.Await(m, end)
	}
	for _, verb := range []struct{ name, end string }{{"inspect", "manageable"}, {"provide", "available"}} {
		r.Must("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": verb.name}, nil)
		chaos(verb.end)
	}
	m.Deploy(serveImage(t, good, nil), sum(good))
	chaos("active")
	if !m.Bootable() {
		t.Error("the disk does not boot")
	}
	r.Until("the machine runs its system", func() bool { b := m.Boots(); return b[len(b)-1] == "os" })
	noSecrets(t, r, m)
}

// TestMachineThatRestartsByItselfDuringTheWrite: it boots from the network by
// habit, gets no second ramdisk, and is not taken for an impostor.
func TestMachineThatRestartsByItselfDuringTheWrite(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	halfWritten(t, m, good)
	if err := m.SetNextBoot(t.Context(), fakebmc.Override{Device: fakebmc.PXE}); err != nil {
		t.Fatal(err)
	}
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := r.Await(m, "deploy failed")
	if !strings.Contains(n.LastError, "agent lost") {
		t.Errorf("last_error: %s", n.LastError)
	}
	if n.Maintenance {
		t.Errorf("the node was put into maintenance: %s", n.MaintenanceReason)
	}
	if got := m.Boots(); got[len(got)-1] != "nothing" {
		t.Errorf("the machine came up as %q, want nothing to boot", got)
	}
	m.Deploy(serveImage(t, good, nil), sum(good))
	r.Await(m, "active")
}
