package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-metal/slipway/conductor/configdrive"
	"github.com/slipway-metal/slipway/proto/ironic"
	"github.com/slipway-metal/slipway/testenv/fakebmc"
	"github.com/slipway-metal/slipway/testenv/sim"
)

func TestMain(m *testing.M) { os.Exit(sim.Main(m)) }

// stock is a machine whose ramdisk is the real ironic-python-agent. It has a
// BMC, and it boots the ramdisk when that told it to boot from the network.
type stock struct {
	fakebmc.Memory
	t      *testing.T
	python string
	dir    string
	want   map[string]any // run.py's JSON

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// stockDisk is the size of its disk, bytes, most of it a hole: agents take none below 4 GiB.
const stockDisk = 5 << 30

func newStock(t *testing.T, api, mac, inspect string, tls bool) *stock {
	t.Helper()
	s := &stock{t: t, python: filepath.Join(peer(t, "SLIPWAY_COMPAT_IPA"), "bin", "python"), dir: t.TempDir()}
	s.want = map[string]any{"api_url": api, "port": freePort(t), "mac": mac, "disk_bytes": stockDisk, "tls": tls, "inspect_url": inspect}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			raw, err := os.ReadFile(s.log())
			t.Logf("ironic-python-agent (%v):\n%s", err, tail(raw, 12000))
		}
	})
	return s
}

func (s *stock) log() string  { return filepath.Join(s.dir, "ipa.log") }
func (s *stock) disk() string { return filepath.Join(s.dir, "work", "disk") }

// PowerOn implements fakebmc.Machine.
func (s *stock) PowerOn(ctx context.Context) error {
	if st, err := s.PowerState(ctx); err != nil || st == fakebmc.On {
		return err
	}
	if err := s.Memory.PowerOn(ctx); err != nil {
		return err
	}
	if boots := s.Boots(); boots[len(boots)-1] != fakebmc.PXE {
		return nil
	}
	return s.start()
}

// told changes what the next ramdisk is told.
func (s *stock) told(key string, value any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want[key] = value
}

func (s *stock) start() error {
	script, err := filepath.Abs("ipa/run.py")
	if err != nil {
		return err
	}
	s.mu.Lock()
	want, err := json.Marshal(s.want)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	work := filepath.Join(s.dir, "work")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(s.python, script, work, string(want))
	cmd.Dir, cmd.Stdout, cmd.Stderr = work, log, log
	cmd.Env = append(os.Environ(), "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	go func() {
		defer close(done)
		if cmd.Wait() == nil { // it said poweroff
			_ = s.Memory.ForceOff(context.Background()) // Memory can't fail unless told to
		}
	}()
	return nil
}

func (s *stock) kill() {
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.cmd = nil
	s.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill() // it may have ended
		<-done
	}
}

// ForceOff implements fakebmc.Machine.
func (s *stock) ForceOff(ctx context.Context) error {
	s.kill()
	return s.Memory.ForceOff(ctx)
}

// GracefulShutdown implements fakebmc.Machine.
func (s *stock) GracefulShutdown(ctx context.Context) error { return s.ForceOff(ctx) }

// Reset implements fakebmc.Machine.
func (s *stock) Reset(ctx context.Context) error {
	if err := s.ForceOff(ctx); err != nil {
		return err
	}
	return s.PowerOn(ctx)
}

// enrol gives the machine a BMC, a node and a port.
func (s *stock) enrol(r *sim.Rack, name string) (node string) {
	s.t.Helper()
	mac, _ := s.want["mac"].(string)
	bmc := fakebmc.New(fakebmc.Config{UUID: uuid.NewString(), Name: name, Username: "admin", Password: sim.Password, MACs: []string{mac}}, s)
	srv := httptest.NewServer(bmc)
	s.t.Cleanup(func() { bmc.Close(); srv.Close() })
	var n ironic.Node
	r.Must(http.MethodPost, "/v1/nodes", map[string]any{"name": name, "driver": "redfish", "driver_info": map[string]any{
		"redfish_address": srv.URL, "redfish_username": "admin", "redfish_password": sim.Password,
	}}, &n)
	r.Must(http.MethodPost, "/v1/ports", map[string]any{"node_uuid": n.UUID, "address": mac}, nil)
	return n.UUID
}

// verb asks our conductor for a verb and waits for the state that it ends in.
func verb(t *testing.T, r *sim.Rack, node, target, end string, more map[string]any) {
	t.Helper()
	begun := time.Now()
	body := map[string]any{"target": target}
	for k, v := range more {
		body[k] = v
	}
	r.Must(http.MethodPut, "/v1/nodes/"+node+"/states/provision", body, nil)
	within(t, 2*time.Minute, target+" ends in "+end, func() bool {
		var n ironic.Node
		r.Must(http.MethodGet, "/v1/nodes/"+node, nil, &n)
		if strings.HasSuffix(n.ProvisionState, "failed") || n.ProvisionState == "error" {
			t.Fatalf("%s: node is %s: %s", target, n.ProvisionState, n.LastError)
		}
		return n.ProvisionState == end && n.TargetProvisionState == ""
	})
	t.Logf("%s: %.1f s", target, time.Since(begun).Seconds())
}

// Our conductor takes a machine with a stock agent from enroll to active. It
// asks it for what a real Ironic was recorded asking for, in that order.
func TestConductorDrivesIPA(t *testing.T) {
	for name, tls := range map[string]bool{"plain, inspection by call-back": false, "TLS, inspection on demand": true} {
		t.Run(name, func(t *testing.T) {
			peer(t, "SLIPWAY_COMPAT_IPA")
			r := sim.NewRack(t)
			w := newWire(t, r.Provision)
			inspect := ""
			if !tls {
				inspect = w.URL + "/v1/continue_inspection"
			}
			s := newStock(t, w.URL, "52:54:00:aa:bb:02", inspect, tls)
			img := makeImage(t)
			node := s.enrol(r, "stock")

			verb(t, r, node, "manage", "manageable", nil)
			verb(t, r, node, "inspect", "manageable", nil)
			if posted := w.sent("POST /v1/continue_inspection"); (posted == 1) == tls {
				t.Errorf("the inventory was posted %d times", posted)
			}
			s.told("inspect_url", "") // Ironic, too, has the ramdisk post its inventory only when it inspects
			w.take()
			verb(t, r, node, "provide", "available", nil)
			cleaning := w.take()
			for k, v := range map[string]any{"image_source": img.URL, "image_checksum": img.SHA256, "image_disk_format": "raw"} {
				r.Must(http.MethodPatch, "/v1/nodes/"+node, []ironic.PatchOp{{Op: "add", Path: "/instance_info/" + k, Value: v}}, nil)
			}
			verb(t, r, node, "active", "active", map[string]any{"configdrive": map[string]any{"meta_data": map[string]any{"hostname": "stock"}}})
			s.judge(img)
			if tls { // its commands did not pass by the wire
				raw, err := os.ReadFile(s.log())
				if err != nil || !strings.Contains(string(raw), "Started API service with TLS 1.3") || len(w.take()) != 0 {
					t.Errorf("the agent's API was not spoken to by TLS: %v", err)
				}
				return
			}
			s.judgeCalls(cleaning, w.take(), img)
		})
	}
}

// judge looks at what is left: the disk, and how the machine was started.
func (s *stock) judge(img image) {
	s.t.Helper()
	f, err := os.Open(s.disk())
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, imageSize)
	if _, err := io.ReadFull(f, got); err != nil || !bytes.Equal(got, img.bytes) {
		s.t.Errorf("the disk's content is not the image's: %v", err)
	}
	boots := s.Boots()
	if last := boots[len(boots)-1]; last != fakebmc.Disk {
		s.t.Errorf("the machine was last started from %s: %v", last, boots)
	}
	raw, err := os.ReadFile(s.log())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, want := range []string{"confined: config drive of", "confined: boot entry, uefi", "confined: poweroff"} {
		if n := strings.Count(string(raw), want); n != 1 {
			s.t.Errorf("%q happened %d times", want, n)
		}
	}
	if strings.Contains(string(raw), "PermissionError") {
		s.t.Error("the agent tried what its guard does not allow")
	}
}

func (s *stock) judgeCalls(cleaning, deploying []call, img image) {
	s.t.Helper()
	if got, want := labels(cleaning), []string{"clean.get_clean_steps", "clean.execute_clean_step erase_devices_metadata"}; !slices.Equal(got, want) {
		s.t.Errorf("cleaning asked for %q, want %q", got, want)
	}
	// A real Ironic asks for deploy.get_deploy_steps and standby.get_partition_uuids,
	// too: for steps of others, and for partition images.
	want := []string{"deploy.execute_deploy_step write_image", "image.install_bootloader", "standby.power_off"}
	if got := labels(deploying); !slices.Equal(got, want) {
		s.t.Errorf("deploying asked for %q, want %q", got, want)
	}
	for _, c := range slices.Concat(cleaning, deploying) {
		for key := range c.Params {
			if strings.HasPrefix(key, "slipway") {
				s.t.Errorf("%s carried %s, which a stock agent takes for an argument of the step", c.label(), key)
			}
		}
		if node, ok := c.Params["node"].(map[string]any); ok && strings.Contains(fmt.Sprint(node), sim.Password) {
			s.t.Errorf("%s carried the BMC's password", c.label())
		}
	}
	if len(deploying) == 0 {
		return
	}
	step, _ := deploying[0].Params["step"].(map[string]any)
	args, _ := step["args"].(map[string]any)
	info, _ := args["image_info"].(map[string]any)
	if info["os_hash_algo"] != "sha256" || info["os_hash_value"] != img.SHA256 || info["stream_raw_images"] != true || info["disk_format"] != "raw" {
		s.t.Errorf("image_info: %v", info)
	}
	drive, _ := args["configdrive"].(string)
	if iso, err := configdrive.Decode(drive); err != nil || !bytes.Contains(iso, []byte("CD001")) {
		s.t.Errorf("the config drive is no ISO in gzip in base64: %v", err)
	}
}
