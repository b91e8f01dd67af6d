// Package e2e deploys virtual machines with the real binaries: bin/slipway, the
// ramdisks in build/ and the images of package osimage. Its tests need QEMU, so
// they run when SLIPWAY_QEMU is set (make test, make lab).
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/proto/event"
	"github.com/slipway-metal/slipway/testenv/lab"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

// root is the top of the repository.
const root = "../.."

// canary is the BMC's password: it may turn up nowhere.
const canary = "canary-7f3a9c"

const mac = "52:54:00:77:00:01"

// machine is one row of the matrix.
type machine struct {
	firmware, bus, nic, rom string
	memory                  string
	diskSize                string
	flavor                  string // of the ramdisk
}

func (m machine) yaml() string {
	return fmt.Sprintf(`
name: e2e
networks: [{name: provision, cidr: 10.77.0.0/24, host: 10.77.0.1}]
machines:
  - name: node-1
    firmware: %s
    memory: %s
    disks: [{size: %s, bus: %s, serial: e2e-disk}]
    nics: [{mac: "%s", model: %s, rom: %s}]
    bmc: {user: admin, password: %s, address: "10.77.0.1:8001"}
`, m.firmware, m.memory, m.diskSize, m.bus, mac, m.nic, m.rom, canary)
}

// quick is what make test deploys to.
var quick = machine{firmware: "uefi", bus: "virtio", nic: "virtio", rom: "ipxe", memory: "512MiB", diskSize: "5GiB", flavor: "cloud"}

// rig is a lab with one machine and a conductor.
type rig struct {
	t         *testing.T
	lab       *lab.Lab
	dir       string
	machine   machine
	conductor *exec.Cmd
	watched   *bytes.Buffer
	watch     *exec.Cmd
}

func needQEMU(t *testing.T) {
	t.Helper()
	if os.Getenv("SLIPWAY_QEMU") == "" {
		t.Skip("starts virtual machines for minutes: make test and make lab set SLIPWAY_QEMU")
	}
}

func newRig(t *testing.T, m machine) *rig {
	t.Helper()
	needQEMU(t)
	spec, err := lab.Parse("e2e.yaml", []byte(m.yaml()))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: t.TempDir(), machine: m}
	if r.lab, err = lab.Start(t.Context(), spec, lab.Options{Dir: filepath.Join(r.dir, "lab")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	r.serve()
	return r
}

func (r *rig) close() {
	if r.t.Failed() {
		r.tail("conductor.log", 40)
		if text, err := r.lab.Machine("node-1").Console(); err == nil {
			r.t.Logf("console:\n%s", lastLines(text, 40))
		}
	}
	if err := r.lab.Close(); err != nil {
		r.t.Errorf("close the lab: %v", err)
	}
}

func (r *rig) tail(name string, n int) {
	raw, err := os.ReadFile(filepath.Join(r.dir, name))
	r.t.Logf("%s (%v):\n%s", name, err, lastLines(string(raw), n))
}

func lastLines(s string, n int) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func abs(t *testing.T, path string) string {
	t.Helper()
	p, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serve starts a conductor on the rig's data directory.
func (r *rig) serve() {
	r.t.Helper()
	cmd, err := r.lab.Command(r.t.Context(), abs(r.t, root+"/bin/slipway"), "serve", "--data", filepath.Join(r.dir, "data"),
		"--boot-interface", "provision", "--images", r.images(), "--ramdisk", abs(r.t, root+"/build/"+r.machine.flavor), "--log-level", "debug")
	if err != nil {
		r.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(r.dir, "conductor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.conductor = cmd
	for r.t.Context().Err() == nil {
		if out, err := r.try("version"); err == nil && strings.Contains(out, "Ironic API") {
			return
		}
		r.pause(100 * time.Millisecond)
	}
}

// pause waits for a machine that tells nobody when it is ready.
func (r *rig) pause(d time.Duration) {
	select {
	case <-r.t.Context().Done():
		r.t.Fatal(r.t.Context().Err())
	case <-time.After(d):
	}
}

func (r *rig) images() string {
	dir := filepath.Join(r.dir, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	return dir
}

// try runs the command line inside the lab.
func (r *rig) try(args ...string) (string, error) {
	cmd, err := r.lab.Command(r.t.Context(), append([]string{abs(r.t, root+"/bin/slipway")}, args...)...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *rig) slipway(args ...string) string {
	r.t.Helper()
	out, err := r.try(args...)
	if err != nil {
		r.t.Fatalf("slipway %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// enrol creates the node and takes it under management.
func (r *rig) enrol() {
	r.t.Helper()
	r.slipway("node", "create", "e2e-1", "--driver", "redfish", "--mac", mac, "--driver-info", "redfish_address=http://10.77.0.1:8001",
		"--driver-info", "redfish_username=admin", "--driver-info", "redfish_password="+canary)
	r.follow()
	r.slipway("node", "manage", "e2e-1", "--wait", "--timeout", "1m")
}

// follow collects the node's events as JSON lines.
func (r *rig) follow() {
	r.t.Helper()
	cmd, err := r.lab.Command(r.t.Context(), abs(r.t, root+"/bin/slipway"), "-o", "json", "node", "watch", "e2e-1")
	if err != nil {
		r.t.Fatal(err)
	}
	r.watched = &bytes.Buffer{}
	cmd.Stdout = r.watched
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.watch = cmd
}

// events ends the watch and returns what it saw.
func (r *rig) events() []event.Event {
	r.t.Helper()
	if err := r.watch.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := r.watch.Wait(); err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	var out []event.Event
	for sc := bufio.NewScanner(bytes.NewReader(r.watched.Bytes())); sc.Scan(); {
		var e event.Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			r.t.Fatalf("event %q: %v", sc.Text(), err)
		}
		out = append(out, e)
	}
	return out
}

// ssh runs a command on the deployed system, once it can be reached.
func (r *rig) ssh(command string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Minute)
	defer cancel()
	for {
		line, err := r.lab.Machine("node-1").SSHCommand(ctx, command)
		if err == nil {
			cmd := exec.CommandContext(ctx, line[0], line[1:]...)
			var out []byte
			if out, err = cmd.Output(); err == nil {
				return strings.TrimSpace(string(out))
			}
		}
		if ctx.Err() != nil {
			r.t.Fatalf("no SSH: %v", err)
		}
		r.pause(500 * time.Millisecond)
	}
}
