// Package faults injects what goes wrong on racks into a simulated one, and
// holds the product to four things: a half-written disk never boots, no node is
// stuck, an error names cause and next step, and no secret shows.
package faults

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/slipway-metal/slipway/testenv/fakebmc"
	"github.com/slipway-metal/slipway/testenv/sim"
)

func itoa(n int) string { return strconv.Itoa(n) }

// rack starts a conductor whose deadlines are short.
func rack(t *testing.T, more ...string) *sim.Rack {
	t.Helper()
	return sim.NewRack(t, append([]string{"--callback-timeout", "20s", "--agent-silence", "4s", "--power-sync", "0"}, more...)...)
}

var makeImage = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "slipway-faults-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	path := filepath.Join(dir, "disk.img")
	const size = 24 << 20
	d, err := diskfs.Create(path, size, diskfs.SectorSize512)
	if err != nil {
		return nil, err
	}
	table := &gpt.Table{ProtectiveMBR: true, LogicalSectorSize: 512, PhysicalSectorSize: 512, Partitions: []*gpt.Partition{
		{Index: 1, Start: 2048, End: 2048 + 16<<20/512 - 1, Type: gpt.LinuxFilesystem, Name: "root"},
	}}
	if err := d.Partition(table); err != nil {
		return nil, err
	}
	if err := d.Close(); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for i := 1 << 20; i < 17<<20; i++ { // content that is not zero
		raw[i] = byte(i * 2654435761 >> 13)
	}
	return raw, nil
})

// image is a raw disk image with a GPT and 16 MiB of data.
func image(t *testing.T) []byte {
	t.Helper()
	raw, err := makeImage()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// noSecrets looks for what must not show in replies, logs, the console and the database.
func noSecrets(t *testing.T, r *sim.Rack, m *sim.Machine) {
	t.Helper()
	texts := map[string][]byte{"the conductor's log": []byte(r.Log())}
	for _, path := range []string{"/v1/nodes/detail", "/v1/nodes/" + m.UUID, "/v1/nodes/" + m.UUID + "/history?detail=true", "/slipway/v1/nodes/" + m.UUID + "/explain", "/slipway/v1/nodes/" + m.UUID + "/log"} {
		_, body := r.Do("GET", path, nil)
		texts[path] = []byte(body)
	}
	err := filepath.WalkDir(r.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(path, r.Data()) && filepath.Base(path) != "console.log" {
			return err
		}
		texts[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range texts {
		for _, canary := range append(m.Secrets(), sim.Password, "canary-user-data-88c2") {
			if bytes.Contains(text, []byte(canary)) {
				t.Errorf("%s is in %s", canary, where)
			}
		}
	}
}

// TestAgentDiesDuringTheWrite: the deploy fails with a reason, the disk does not
// boot, and the next try succeeds.
func TestAgentDiesDuringTheWrite(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	halfWritten(t, m, good)
	m.Die()
	n := r.Await(m, "deploy failed")
	for _, want := range []string{"agent lost", "write_image", "retry"} {
		if !strings.Contains(n.LastError, want) {
			t.Errorf("last_error does not say %q: %s", want, n.LastError)
		}
	}
	if m.Bootable() {
		t.Error("the disk would boot")
	}
	m.Deploy(serveImage(t, good, nil), sum(good))
	r.Await(m, "active")
}

// halfWritten starts a deploy of an image and returns when half of it was sent;
// the rest never comes.
func halfWritten(t *testing.T, m *sim.Machine, content []byte) {
	t.Helper()
	half := make(chan struct{})
	var once sync.Once
	m.Deploy(serveImage(t, content, stallHalfWay(content, &once, half)), sum(content))
	<-half
}

// stallHalfWay serves half of the image, says so, and then nothing until the
// client leaves.
func stallHalfWay(b []byte, once *sync.Once, half chan struct{}) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		w.Header().Set("Content-Length", itoa(len(b)))
		w.Header().Set("ETag", `"v1"`)
		_, _ = w.Write(b[:len(b)/2])
		_ = http.NewResponseController(w).Flush()
		once.Do(func() { close(half) })
		<-r.Context().Done()
		return true
	}
}

// TestPowerCutDuringTheWrite is the same with the machine off; it stays inert
// when somebody switches it on again.
func TestPowerCutDuringTheWrite(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	halfWritten(t, m, good)
	if err := m.ForceOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Await(m, "deploy failed")
	if m.Bootable() {
		t.Error("the disk would boot")
	}
	if got := m.Boots(); got[len(got)-1] != "nothing" {
		t.Errorf("after the power cut the machine came up as %q; want nothing to boot", got)
	}
}

// TestConductorKilledDuringTheWrite: kill -9, start again; the agent went on
// writing, and the image is written once.
func TestConductorKilledDuringTheWrite(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	half, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var gets int
	var mu sync.Mutex
	url := serveImage(t, good, func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet {
			return false
		}
		mu.Lock()
		gets++
		mu.Unlock()
		w.Header().Set("Content-Length", itoa(len(good)))
		w.Header().Set("ETag", `"v1"`)
		_, _ = w.Write(good[:len(good)/2])
		_ = http.NewResponseController(w).Flush()
		once.Do(func() { close(half) })
		select {
		case <-goOn:
		case <-req.Context().Done():
		}
		_, _ = w.Write(good[len(good)/2:])
		return true
	})
	m.Deploy(url, sum(good))
	<-half
	r.Kill()
	if m.Bootable() {
		t.Error("the disk would boot half-written")
	}
	r.Start()
	close(goOn)
	r.Await(m, "active")
	if !m.Bootable() {
		t.Error("the disk does not boot")
	}
	mu.Lock()
	defer mu.Unlock()
	if gets != 1 {
		t.Errorf("the image was fetched %d times, want once", gets)
	}
}

// TestMachineThatNeverCalls: the callback deadline passes, twice; explain says
// which hop is missing.
func TestMachineThatNeverCalls(t *testing.T) {
	t.Parallel()
	r := sim.NewRack(t, "--callback-timeout", "2s", "--agent-silence", "4s", "--power-sync", "0")
	m := r.Add("node-a", "52:54:00:aa:00:01")
	m.BMC.SetFaults(fakebmc.Faults{}) // a machine whose NIC is not in the boot order:
	m.Deaf()
	r.Must("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": "inspect"}, nil)
	r.Until("explain names the missing hop", func() bool {
		out, _ := r.CLI("explain", m.UUID)
		first, _, _ := strings.Cut(out, "\n")
		return strings.Contains(first, "DHCP")
	})
	n := r.Await(m, "inspect failed")
	for _, want := range []string{"did not call back", "tried 2 times", "explain"} {
		if !strings.Contains(n.LastError, want) {
			t.Errorf("last_error does not say %q: %s", want, n.LastError)
		}
	}
}

// TestTwoMachinesWithOneMAC: the second can't be enrolled, and is told whose it is.
func TestTwoMachinesWithOneMAC(t *testing.T) {
	t.Parallel()
	r := rack(t)
	a := r.Bare("node-a", "52:54:00:aa:00:01")
	r.Must("POST", "/v1/nodes", map[string]any{"name": "node-b", "driver": "fake-hardware"}, nil)
	status, body := r.Do("POST", "/v1/ports", map[string]any{"node_uuid": r.UUIDOf("node-b"), "address": "52:54:00:AA:00:01"})
	if status != http.StatusConflict || !strings.Contains(body, a.UUID) && !strings.Contains(body, "52:54:00:aa:00:01") {
		t.Errorf("%d %s", status, body)
	}
}

// TestAgentsCallsAreChecked: lookup of an unknown machine, heartbeats with a
// wrong token, and a second claimant of an identity.
func TestAgentsCallsAreChecked(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	call := func(method, path, body string, header map[string]string) (int, string) {
		req, err := http.NewRequest(method, r.Provision+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range header {
			req.Header.Set(k, v)
		}
		req.Header.Set("X-OpenStack-Ironic-API-Version", "1.68")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}
	if status, body := call("GET", "/v1/lookup?addresses=52:54:00:ff:ff:ff", "", nil); status != http.StatusNotFound {
		t.Errorf("lookup of an unknown MAC: %d %s", status, body)
	}
	beat := `{"callback_url":"http://127.0.0.1:1","agent_token":"wrong","agent_version":"13.0.0"}`
	if status, body := call("POST", "/v1/heartbeat/"+m.UUID, beat, nil); status != http.StatusBadRequest || !strings.Contains(body, "token") {
		t.Errorf("heartbeat with a wrong token: %d %s", status, body)
	}
	status, body := call("GET", "/v1/lookup?addresses="+m.MAC, "", map[string]string{"X-Slipway-Nonce": "guessed", "X-Slipway-Boot-Id": "other"})
	if status != http.StatusForbidden || strings.Contains(body, "agent_token\": \"") {
		t.Errorf("a second claimant: %d %s", status, body)
	}
	r.Until("quarantine", func() bool { return m.Node().Maintenance })
	if n := m.Node(); !strings.Contains(n.MaintenanceReason, "Two machines") {
		t.Errorf("maintenance without the reason: %q", n.MaintenanceReason)
	}
}

// TestBadRequests: what users get wrong on the API and the command line.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Add("node-a", "52:54:00:aa:00:01")
	status, body := r.Do("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": "active"})
	if status != http.StatusConflict || !strings.Contains(body, "provide") || !strings.Contains(body, "inspect") {
		t.Errorf("wrong verb: %d %s; want 409 with the verbs that are accepted", status, body)
	}
	for _, bad := range []string{`{`, `[`, `{"target":`, strings.Repeat("[", 5000), `{"target": 5}`} {
		if status, body := r.Do("PUT", "/v1/nodes/"+m.UUID+"/states/provision", bad); status != http.StatusBadRequest {
			t.Errorf("body %.20q: %d %s", bad, status, body)
		}
	}
	out, code := r.CLI("node", "deploy", "node-a", "--yes", "--wait")
	if code != 4 || strings.Count(strings.TrimSpace(out), "\n") < 1 || !strings.Contains(out, "why:") {
		t.Errorf("exit code %d, want 4 (conflict), and an error of lines:\n%s", code, out)
	}
	if out, code := r.CLI("node", "show", "nobody"); code != 3 || !strings.Contains(out, "next:") {
		t.Errorf("exit code %d, want 3 (not found):\n%s", code, out)
	}
	if n := m.Node(); n.ProvisionState != "manageable" || n.LastError != "" {
		t.Errorf("bad requests changed the node: %s, %q", n.ProvisionState, n.LastError)
	}
}

// TestAbortLeavesASafeMachine: an abort in the middle of the write ends with the
// machine off, so that nothing goes on writing.
func TestAbortLeavesASafeMachine(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	halfWritten(t, m, good)
	r.Until("wait call-back", func() bool { return m.Node().ProvisionState == "wait call-back" })
	r.Must("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": "abort"}, nil)
	r.Await(m, "deploy failed")
	r.Until("the machine is off", func() bool {
		on, err := m.PowerState(t.Context())
		return err == nil && on == fakebmc.Off
	})
	if m.Bootable() {
		t.Error("the disk would boot")
	}
	m.Deploy(serveImage(t, good, nil), sum(good))
	r.Await(m, "active")
}

// TestDeployedMachineGetsNoRamdisk: who netboots without being asked to boots its disk.
func TestDeployedMachineGetsNoRamdisk(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	m.Deploy(serveImage(t, good, nil), sum(good))
	r.Await(m, "active")
	if err := m.SetNextBoot(t.Context(), fakebmc.Override{Device: fakebmc.PXE, Once: true}); err != nil {
		t.Fatal(err)
	}
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Until("the machine boots", func() bool { b := m.Boots(); return b[len(b)-1] == "os" })
}

// TestDeleteDuringADeployIsRefused, and maintenance does not disturb it.
func TestDeleteDuringADeployIsRefused(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	half, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.Deploy(serveImage(t, good, func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet {
			once.Do(func() { close(half) })
			<-goOn
		}
		return false
	}), sum(good))
	<-half
	if status, body := r.Do("DELETE", "/v1/nodes/"+m.UUID, nil); status != http.StatusConflict {
		t.Errorf("delete: %d %s", status, body)
	}
	r.Must("PUT", "/v1/nodes/"+m.UUID+"/maintenance", map[string]any{"reason": "test"}, nil)
	if status, body := r.Do("DELETE", "/v1/nodes/"+m.UUID, nil); status != http.StatusConflict {
		t.Errorf("delete in maintenance: %d %s", status, body)
	}
	r.Must("DELETE", "/v1/nodes/"+m.UUID+"/maintenance", nil, nil)
	close(goOn)
	r.Await(m, "active")
}
