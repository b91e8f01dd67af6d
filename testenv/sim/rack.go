// Package sim is a rack in one process: the real conductor (its own process, so
// that it can be killed) and machines that are simulated down to their BMC, whose
// ramdisk is the real agent on a recorded machine with files for disks. What
// takes QEMU a minute takes it a second; what it can't show is firmware.
package sim

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/proto/ironic"
)

// build compiles the conductor once for all tests of a process.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "slipway-sim-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "slipway")
	built = dir
	args := []string{"build", "-o", bin}
	cgo := "CGO_ENABLED=0"
	if race {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.Command("go", append(args, "github.com/slipway-metal/slipway/conductor")...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the conductor: %w\n%s", err, out)
	}
	return bin, nil
})

// built is the directory of what build made, "" for nothing yet.
var built string

// Main is for TestMain: it runs the tests, several more at once than there are
// cores, as they mostly wait, and removes the conductor that was built for them.
func Main(m *testing.M) int {
	if err := flag.Set("test.parallel", "6"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if built != "" {
			_ = os.RemoveAll(built) // a temporary directory
		}
	}()
	return m.Run()
}

// Rack is a conductor and its machines.
type Rack struct {
	t         testing.TB
	Dir       string
	API       string // base URL
	Provision string // base URL for machines
	bin       string
	args      []string
	cmd       *exec.Cmd
}

// NewRack starts a conductor with further arguments of serve.
func NewRack(t testing.TB, args ...string) *Rack {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	r := &Rack{t: t, Dir: t.TempDir(), bin: bin}
	api, provision := freePort(t), freePort(t)
	r.API, r.Provision = "http://"+api, "http://"+provision
	ramdisk := filepath.Join(r.Dir, "ramdisk")
	for _, f := range []string{"vmlinuz", "initramfs.cpio.zst"} {
		r.write(filepath.Join(ramdisk, f), []byte("stands for "+f))
	}
	r.args = append([]string{"serve", "--data", r.Data(), "--listen", api, "--provision-listen", provision, "--ramdisk", ramdisk}, args...)
	r.Start()
	t.Cleanup(func() {
		r.stop(os.Interrupt)
		if strings.Contains(r.Log(), "DATA RACE") {
			t.Error("the conductor has a data race")
		}
		if t.Failed() {
			t.Logf("conductor:\n%s", r.Log())
		}
	})
	return r
}

// freePort is an address nobody listens on. Another process may take it before
// the conductor does; the conductor says so then.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (r *Rack) write(path string, data []byte) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// Data is the conductor's data directory.
func (r *Rack) Data() string { return filepath.Join(r.Dir, "data") }

// Log is what the conductor wrote.
func (r *Rack) Log() string {
	raw, err := os.ReadFile(filepath.Join(r.Dir, "conductor.log"))
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// Start runs the conductor and returns when it answers.
func (r *Rack) Start() {
	r.t.Helper()
	log, err := os.OpenFile(filepath.Join(r.Dir, "conductor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	r.cmd = exec.Command(r.bin, r.args...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.until("the conductor answers", func() bool {
		resp, err := http.Get(r.API + "/slipway/v1/health")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// Kill ends the conductor as kill -9 does.
func (r *Rack) Kill() { r.stop(os.Kill) }

func (r *Rack) stop(sig os.Signal) {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Signal(sig) // it may have ended
	_ = r.cmd.Wait()
	r.cmd = nil
}

// patience bounds every wait of a test: busy machines are slow.
const patience = 90 * time.Second

// until polls what nobody tells.
func (r *Rack) until(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not after %s: %s", patience, what)
		}
	}
}

// Until polls ok until it is true; the test fails when it never is.
func (r *Rack) Until(what string, ok func() bool) {
	r.t.Helper()
	r.until(what, ok)
}

// Do calls the API and returns status and body.
func (r *Rack) Do(method, path string, body any) (int, string) {
	r.t.Helper()
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string: // as it is, also when it is no JSON
		in = bytes.NewReader([]byte(b))
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			r.t.Fatal(err)
		}
		in = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, r.API+path, in)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set(ironic.HeaderVersion, ironic.MaxVersion)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

// Must is Do for what has to succeed; out takes the answer unless nil.
func (r *Rack) Must(method, path string, body, out any) {
	r.t.Helper()
	status, raw := r.Do(method, path, body)
	if status >= 300 {
		r.t.Fatalf("%s %s: %d %s", method, path, status, raw)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(raw), out); err != nil {
			r.t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
}

// CLI runs the command line and returns all it printed and its exit code.
func (r *Rack) CLI(args ...string) (string, int) {
	r.t.Helper()
	cmd := exec.Command(r.bin, append([]string{"--url", r.API}, args...)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		r.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// UUIDOf finds a node by name.
func (r *Rack) UUIDOf(name string) string {
	r.t.Helper()
	var n ironic.Node
	r.Must("GET", "/v1/nodes/"+name, nil, &n)
	return n.UUID
}
