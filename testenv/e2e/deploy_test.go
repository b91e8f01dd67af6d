package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// image returns an image built by make image, linked into the served directory.
func (r *rig) image(name, form string) (url, digest string) {
	r.t.Helper()
	out, err := exec.CommandContext(r.t.Context(), root+"/bin/slipway-lab", "image", "build", "--guest", root+"/bin/slipway-guest", name).Output()
	if err != nil {
		r.t.Fatalf("image %s: %v", name, err)
	}
	for line := range strings.Lines(string(out)) {
		sum, path, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok || !strings.HasSuffix(path, "/"+name+"."+form) {
			continue
		}
		return r.offer(path), sum
	}
	r.t.Fatalf("image %s has no form %s:\n%s", name, form, out)
	return "", ""
}

// offer makes a file readable for machines and returns its URL.
func (r *rig) offer(path string) string {
	r.t.Helper()
	base := filepath.Base(path)
	if err := linkOrCopy(path, filepath.Join(r.images(), base)); err != nil {
		r.t.Fatal(err)
	}
	return "http://10.77.0.1:8080/images/" + base
}

// linkOrCopy: the served directory takes no symbolic links that lead out of it.
func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil || os.IsExist(err) {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

func fileDigest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (r *rig) deployTo(url, digest string, extra ...string) {
	r.t.Helper()
	key := filepath.Join(r.lab.Dir(), "ssh", "id_ed25519.pub")
	r.slipway(append([]string{"node", "deploy", "e2e-1", "--yes", "--wait", "--timeout", "12m", "--image", url, "--digest", digest, "--ssh-key", key}, extra...)...)
}

// ready brings the node to available.
func (r *rig) ready() {
	r.t.Helper()
	r.enrol()
	r.slipway("node", "inspect", "e2e-1", "--wait", "--timeout", "5m")
	r.checkInventory()
	r.slipway("node", "provide", "e2e-1", "--wait", "--timeout", "5m")
}

// TestDeploy is the main job, once, with the quick image.
func TestDeploy(t *testing.T) {
	r := newRig(t, quick)
	begun := time.Now()
	r.ready()
	if out := r.slipway("plan", "e2e-1"); !strings.Contains(out, "OVERWRITES it") || !strings.Contains(out, "e2e-disk") {
		t.Errorf("plan does not name the disk:\n%s", out)
	}
	url, digest := r.image("quick", "raw.zst")
	r.deployTo(url, digest)
	r.checkLogin()
	login := time.Now()
	events := r.events()
	f := figuresOf(t, events, login)
	f["enrol to SSH login, s"] = login.Sub(begun).Seconds()
	record(t, "deploy-"+r.machine.firmware, f)
	checkProgress(t, events)
	r.checkNoSecrets(events)
	r.checkDisk()
}

// checkLogin: the system has the name and the key of its config drive.
func (r *rig) checkLogin() {
	r.t.Helper()
	if got := r.ssh("hostname; findmnt -no FSTYPE /"); got != "e2e-1\next4" {
		r.t.Errorf("logged in to %q, want host e2e-1 on ext4", got)
	}
}

// checkInventory: the machine is described as it was made.
func (r *rig) checkInventory() {
	r.t.Helper()
	var body struct {
		Inventory agent.Inventory `json:"inventory"`
	}
	out, err := r.lab.Exec(r.t.Context(), "curl", "-sS", "-H", "X-OpenStack-Ironic-API-Version: 1.115", "http://127.0.0.1:6385/v1/nodes/e2e-1/inventory")
	if err != nil {
		r.t.Fatalf("inventory: %v", err)
	}
	if err := json.Unmarshal(out, &body); err != nil {
		r.t.Fatalf("inventory %q: %v", out, err)
	}
	inv := body.Inventory
	if inv.Boot.CurrentBootMode != r.machine.firmware {
		r.t.Errorf("boot mode %q, want %q", inv.Boot.CurrentBootMode, r.machine.firmware)
	}
	if !slices.ContainsFunc(inv.Disks, func(d agent.Disk) bool { return d.Serial != nil && *d.Serial == "e2e-disk" }) {
		r.t.Errorf("no disk has the serial e2e-disk: %s", out)
	}
	if !slices.ContainsFunc(inv.Interfaces, func(i agent.Interface) bool { return i.MACAddress == mac && i.HasCarrier }) {
		r.t.Errorf("no NIC with a carrier has MAC %s: %s", mac, out)
	}
	if inv.Memory.Total <= 0 || inv.CPU.Count != 1 || inv.SystemVendor.Manufacturer == "" {
		r.t.Errorf("memory, CPU or vendor are missing: %s", out)
	}
}

// checkProgress: progress came, at most once a second, and nearly to the end: what
// is done within the last second is told by the step's end instead.
func checkProgress(t *testing.T, events []event.Event) {
	t.Helper()
	var last time.Time
	var p event.Progress
	n := 0
	for _, e := range events {
		if e.Kind != event.KindProgress {
			continue
		}
		stage := p.Stage
		if err := json.Unmarshal(e.Data, &p); err != nil {
			t.Fatal(err)
		}
		if p.Step != "write_image" {
			continue
		}
		n++
		// A change of stage may be told at once.
		if gap := e.Time.Sub(last); p.Stage == stage && p.Percent < 100 && gap < 900*time.Millisecond {
			t.Errorf("progress again after %s", gap)
		}
		last = e.Time
	}
	if n < 3 || p.Percent < 85 {
		t.Errorf("%d progress events, the last at %.2f %%: want some, up to the end", n, p.Percent)
	}
}

// checkNoSecrets: nothing that was secret turns up in logs, events or on the console.
func (r *rig) checkNoSecrets(events []event.Event) {
	r.t.Helper()
	console, err := r.lab.Machine("node-1").Console()
	if err != nil {
		r.t.Fatal(err)
	}
	all, err := json.Marshal(events)
	if err != nil {
		r.t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(r.dir, "conductor.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	for name, text := range map[string]string{"console": console, "events": string(all), "log": string(log), "node show": r.slipway("node", "show", "e2e-1", "-o", "json")} {
		if strings.Contains(text, canary) {
			r.t.Errorf("the BMC's password is in the %s", name)
		}
		if strings.Contains(text, "agent_token=") {
			r.t.Errorf("an agent token is in the %s", name)
		}
	}
}

// checkDisk: what is on the disk is a valid GPT with its backup at the end.
func (r *rig) checkDisk() {
	r.t.Helper()
	m := r.lab.Machine("node-1")
	if err := m.PowerOff(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	out, err := exec.CommandContext(r.t.Context(), "sgdisk", "-v", m.DiskPath(0)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") {
		r.t.Errorf("sgdisk -v: %v\n%s", err, out)
	}
}
