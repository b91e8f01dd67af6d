package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/slipway-metal/slipway/agent/beat"
	"github.com/slipway-metal/slipway/agent/bootconf"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/recorded"
	"github.com/slipway-metal/slipway/agent/host/recorded/machines"
	"github.com/slipway-metal/slipway/agent/life"
	"github.com/slipway-metal/slipway/agent/logring"
	"github.com/slipway-metal/slipway/proto/ironic"
	"github.com/slipway-metal/slipway/testenv/fakebmc"
)

// Password of every machine's BMC: a canary that may turn up nowhere.
const Password = "canary-bmc-5d1e"

// DiskSize of a machine's disk, bytes; DiskSerial its serial.
const (
	DiskSize   = 6 << 30
	DiskSerial = "VIRTIO-1"
)

// Machine is one simulated machine.
type Machine struct {
	rack *Rack
	t    testing.TB
	Name string
	UUID string // of its node
	MAC  string
	BMC  *fakebmc.BMC
	dir  string

	mu    sync.Mutex
	on    bool
	deaf  bool // the firmware does not boot from the network
	next  fakebmc.Override
	end   context.CancelFunc // of the present boot
	done  chan struct{}      // closed when the present boot has ended
	boots []string           // what each start came to: ramdisk, os, nothing
	agent string             // URL of the present agent's API

	nonces, tokens []string // of all its boots
}

var _ fakebmc.Machine = (*Machine)(nil)

// Add makes a machine that is off, enrols it and makes it manageable.
func (r *Rack) Add(name, mac string) *Machine {
	r.t.Helper()
	m := r.Bare(name, mac)
	r.Verb(m, "manage", "manageable")
	return m
}

// Bare makes a machine and its node, in enroll.
func (r *Rack) Bare(name, mac string) *Machine {
	r.t.Helper()
	m := &Machine{rack: r, t: r.t, Name: name, MAC: mac, dir: filepath.Join(r.Dir, name), next: fakebmc.Override{Device: fakebmc.None}}
	id := uuid.NewString()
	m.BMC = fakebmc.New(fakebmc.Config{UUID: id, Name: name, Username: "admin", Password: Password, MACs: []string{mac}}, m)
	server := httptest.NewServer(m.BMC)
	r.t.Cleanup(func() {
		m.BMC.Close()
		server.Close()
		m.cut()
	})
	var n ironic.Node
	r.Must("POST", "/v1/nodes", map[string]any{"name": name, "driver": "redfish", "driver_info": map[string]any{
		"redfish_address": server.URL, "redfish_username": "admin", "redfish_password": Password,
	}}, &n)
	m.UUID = n.UUID
	r.Must("POST", "/v1/ports", map[string]any{"node_uuid": n.UUID, "address": mac}, nil)
	return m
}

// Node reads the machine's node.
func (m *Machine) Node() ironic.Node {
	m.t.Helper()
	var n ironic.Node
	m.rack.Must("GET", "/v1/nodes/"+m.UUID, nil, &n)
	return n
}

// Verb asks for a verb and waits for the state it ends in.
func (r *Rack) Verb(m *Machine, verb, end string) {
	r.t.Helper()
	r.Must("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": verb}, nil)
	r.Await(m, end)
}

func failedState(state string) bool { return strings.HasSuffix(state, "failed") || state == "error" }

// Await waits until the node rests in a state; another resting place fails the test.
func (r *Rack) Await(m *Machine, end string) ironic.Node {
	r.t.Helper()
	var n ironic.Node
	r.until("node in "+end, func() bool {
		n = m.Node()
		failed := failedState(n.ProvisionState)
		if failed && n.ProvisionState != end {
			r.t.Fatalf("node is %s instead of %s: %s", n.ProvisionState, end, n.LastError)
		}
		return n.ProvisionState == end && (failed || n.TargetProvisionState == "")
	})
	if !failedState(end) && n.LastError != "" {
		r.t.Errorf("node is %s and still shows the error of an earlier try: %s", end, n.LastError)
	}
	if status, body := r.Do("GET", "/slipway/v1/nodes/"+m.UUID+"/explain", nil); status != http.StatusOK || n.LastError != "" && !strings.Contains(body, n.LastError[:20]) {
		r.t.Errorf("explain: %d %s", status, body)
	}
	return n
}

// Ready takes a machine to available.
func (r *Rack) Ready(name, mac string) *Machine {
	r.t.Helper()
	m := r.Add(name, mac)
	r.Verb(m, "inspect", "manageable")
	r.Verb(m, "provide", "available")
	return m
}

// Deploy asks for a deploy of an image.
func (m *Machine) Deploy(url, digest string) {
	m.t.Helper()
	m.Set("/instance_info/image_source", url)
	if digest != "" {
		m.Set("/instance_info/image_checksum", digest)
	}
	m.rack.Must("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": "active", "configdrive": map[string]any{
		"meta_data": map[string]any{"hostname": m.Name}, "user_data": "#!/bin/sh\n# canary-user-data-88c2\n",
	}}, nil)
}

// Set patches one field of the node.
func (m *Machine) Set(path string, value any) {
	m.t.Helper()
	m.rack.Must("PATCH", "/v1/nodes/"+m.UUID, []ironic.PatchOp{{Op: "add", Path: path, Value: value}}, nil)
}

// DiskFile is the file in the place of the machine's disk.
func (m *Machine) DiskFile() string { return filepath.Join(m.dir, "host", "dev", "vda") }

// Bootable says whether firmware would find a partition table or boot code.
func (m *Machine) Bootable() bool {
	f, err := os.Open(m.DiskFile())
	if err != nil {
		return false
	}
	defer f.Close()
	var first [1024]byte
	var last [512]byte
	if _, err := f.ReadAt(first[:], 0); err != nil {
		return false
	}
	if _, err := f.ReadAt(last[:], DiskSize-512); err != nil && err != io.EOF {
		return false
	}
	return bytes.Equal(first[510:512], []byte{0x55, 0xAA}) || bytes.HasPrefix(first[512:], []byte("EFI PART")) || bytes.HasPrefix(last[:], []byte("EFI PART"))
}

// Boots lists what each start of the machine came to.
func (m *Machine) Boots() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.boots)
}

// PowerState implements fakebmc.Machine.
func (m *Machine) PowerState(context.Context) (fakebmc.PowerState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on {
		return fakebmc.On, nil
	}
	return fakebmc.Off, nil
}

// PowerOn implements fakebmc.Machine.
func (m *Machine) PowerOn(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on {
		return nil
	}
	m.on = true
	device := m.next.Device
	if m.next.Once {
		m.next = fakebmc.Override{Device: fakebmc.None}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.end, m.done = cancel, done
	go func() {
		defer close(done)
		m.boot(ctx, device)
	}()
	return nil
}

// ForceOff implements fakebmc.Machine.
func (m *Machine) ForceOff(context.Context) error {
	m.cut()
	return nil
}

// GracefulShutdown implements fakebmc.Machine.
func (m *Machine) GracefulShutdown(context.Context) error {
	m.cut()
	return nil
}

// Reset implements fakebmc.Machine.
func (m *Machine) Reset(ctx context.Context) error {
	m.cut()
	return m.PowerOn(ctx)
}

// SetNextBoot implements fakebmc.Machine.
func (m *Machine) SetNextBoot(_ context.Context, o fakebmc.Override) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next = o
	return nil
}

// cut is the power cord: the agent is gone in the middle of what it did.
func (m *Machine) cut() {
	m.mu.Lock()
	end, done := m.end, m.done
	m.end, m.on = nil, false
	m.mu.Unlock()
	if end != nil {
		end()
		<-done
	}
}

// Die ends the agent as a crash of the ramdisk would: the machine stays on.
func (m *Machine) Die() {
	m.mu.Lock()
	end, done := m.end, m.done
	m.mu.Unlock()
	if end != nil {
		end()
		<-done
	}
}

func (m *Machine) note(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boots = append(m.boots, what)
}

// boot is what firmware does: network first when told so, else the disk.
func (m *Machine) boot(ctx context.Context, device fakebmc.Device) {
	conf, err := m.netboot(ctx, device)
	switch {
	case err != nil:
		m.note("failed: " + err.Error())
	case conf != nil:
		m.note("ramdisk")
		m.ramdisk(ctx, *conf)
	case m.Bootable():
		m.note("os")
	default:
		m.note("nothing")
	}
}

// pathInScript finds the boot's secret path in its iPXE script.
var pathInScript = regexp.MustCompile(`/boot/([A-Za-z0-9_-]{16,128})/`)

// netboot fetches what iPXE would; nil without an error is "boot your disk".
func (m *Machine) netboot(ctx context.Context, device fakebmc.Device) (*bootconf.Config, error) {
	m.mu.Lock()
	deaf := m.deaf
	m.mu.Unlock()
	if device != fakebmc.PXE || deaf {
		return nil, nil
	}
	script, err := get(ctx, m.rack.Provision+"/boot/ipxe?mac="+m.MAC)
	if err != nil {
		return nil, err
	}
	found := pathInScript.FindSubmatch(script)
	if found == nil {
		return nil, nil
	}
	base := m.rack.Provision + "/boot/" + string(found[1])
	for _, f := range []string{"/vmlinuz", "/initrd"} {
		if _, err := get(ctx, base+f); err != nil {
			return nil, err
		}
	}
	archive, err := get(ctx, base+"/config.cpio")
	if err != nil {
		return nil, err
	}
	return m.unpack(archive)
}

func (m *Machine) unpack(archive []byte) (*bootconf.Config, error) {
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(archive)))
	if err != nil {
		return nil, err
	}
	root := filepath.Join(m.dir, "ramdisk")
	for _, rec := range records {
		if rec.Name != bootconf.File {
			continue
		}
		raw, err := io.ReadAll(io.NewSectionReader(rec, 0, int64(rec.FileSize)))
		if err != nil {
			return nil, err
		}
		path := filepath.Join(root, rec.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			return nil, err
		}
		conf, err := bootconf.Load(os.DirFS(root))
		return &conf, err
	}
	return nil, fmt.Errorf("the configuration's archive has no %s", bootconf.File)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// ramdisk lives the agent's life on the recorded machine.
func (m *Machine) ramdisk(ctx context.Context, conf bootconf.Config) {
	h, err := m.host()
	if err != nil {
		m.t.Errorf("machine %s: %v", m.Name, err)
		return
	}
	console, err := os.OpenFile(filepath.Join(m.dir, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Errorf("machine %s: %v", m.Name, err)
		return
	}
	defer console.Close()
	ring := logring.New(console, slog.LevelInfo)
	identity := m.identity()
	if err := os.RemoveAll(identity); err != nil {
		m.t.Errorf("machine %s: %v", m.Name, err)
	}
	listen := freePort(m.t)
	m.mu.Lock()
	m.agent = "http://" + listen
	m.nonces = append(m.nonces, conf.Nonce)
	m.mu.Unlock()
	defer m.keepToken()
	l := &life.Life{Conf: conf, Machine: h, State: identity, Listen: listen, Memory: 64 << 20, Log: slog.New(ring), Ring: ring}
	action, err := l.Run(ctx)
	if err != nil && ctx.Err() == nil {
		m.t.Errorf("agent of %s: %v", m.Name, err)
	}
	if action == host.PowerOff {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.on = false
	}
}

func (m *Machine) identity() string { return filepath.Join(m.dir, "agent.json") }

// keepToken remembers the token of the agent that is or was last there.
func (m *Machine) keepToken() {
	st, err := beat.LoadState(m.identity())
	if err != nil || st.Token() == "" {
		return // it never looked itself up
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.tokens, st.Token()) {
		m.tokens = append(m.tokens, st.Token())
	}
}

// Secrets are the nonces and tokens of all boots so far.
func (m *Machine) Secrets() []string {
	m.keepToken()
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Concat(m.nonces, m.tokens)
}

// Agent is the URL of the running agent's API, its token and its boot's id.
func (m *Machine) Agent() (url, token, boot string) {
	m.t.Helper()
	st, err := beat.LoadState(m.identity())
	if err != nil {
		m.t.Fatal(err)
	}
	id, err := os.ReadFile(filepath.Join(m.dir, "host/proc/sys/kernel/random/boot_id"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.agent, st.Token(), strings.TrimSpace(string(id))
}

// host is the recorded machine with this one's MAC and a new boot id. Its disk
// stays from boot to boot.
func (m *Machine) host() (*recorded.Host, error) {
	dir := filepath.Join(m.dir, "host")
	if _, err := os.Stat(dir); err != nil {
		if _, err := machines.Open("qemu-uefi", dir); err != nil {
			return nil, err
		}
		if err := m.shape(dir); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "proc/sys/kernel/random/boot_id"), []byte(uuid.NewString()+"\n"), 0o600); err != nil {
		return nil, err
	}
	return &recorded.Host{Dir: dir, BootMAC: m.MAC}, nil
}

// shape leaves one disk, gives the NIC this machine's MAC, and takes UEFI away, so
// that images need no boot loader.
func (m *Machine) shape(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, "sys/firmware/efi")); err != nil {
		return err
	}
	for _, disk := range []string{"nvme0n1", "sda", "sdb", "sdc"} {
		if err := os.RemoveAll(filepath.Join(dir, "sys/block", disk)); err != nil {
			return err
		}
	}
	nic, err := filepath.EvalSymlinks(filepath.Join(dir, "sys/class/net/eth1"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(nic, "address"), []byte(m.MAC+"\n"), 0o600); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, "sys/class/net/eth0"))
}

// Deaf makes the firmware ignore the network, as when its NIC is not in the boot order.
func (m *Machine) Deaf() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deaf = true
}
