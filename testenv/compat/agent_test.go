package compat

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-metal/slipway/agent/bootconf"
	"github.com/slipway-metal/slipway/agent/efi"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/recorded"
	"github.com/slipway-metal/slipway/agent/host/recorded/machines"
	"github.com/slipway-metal/slipway/agent/life"
	"github.com/slipway-metal/slipway/agent/logring"
	"github.com/slipway-metal/slipway/agent/probe"
	"github.com/slipway-metal/slipway/conductor/configdrive"
)

// machine is a recorded machine that a stock Ironic has, whose power is fake:
// somebody has to boot it when Ironic waits for its agent.
type machine struct {
	t       *testing.T
	MAC     string
	dir     string
	wire    *wire
	inspect string // callback URL for the inventory
	vars    efi.Memory

	mu    sync.Mutex
	end   context.CancelFunc
	done  chan struct{}
	halts []host.Action
}

func newMachine(t *testing.T, w *wire) *machine {
	t.Helper()
	m := &machine{t: t, MAC: "52:54:00:aa:bb:01", dir: t.TempDir(), wire: w, vars: efi.Memory{}}
	hw := filepath.Join(m.dir, "host")
	if _, err := machines.Open("qemu-uefi", hw); err != nil {
		t.Fatal(err)
	}
	for _, disk := range []string{"nvme0n1", "sda", "sdb", "sdc"} { // one disk is enough
		if err := os.RemoveAll(filepath.Join(hw, "sys/block", disk)); err != nil {
			t.Fatal(err)
		}
	}
	nic, err := filepath.EvalSymlinks(filepath.Join(hw, "sys/class/net/eth1"))
	if err != nil {
		t.Fatal(err)
	}
	m.write(filepath.Join(nic, "address"), m.MAC+"\n")
	if err := os.RemoveAll(filepath.Join(hw, "sys/class/net/eth0")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.cut)
	return m
}

func (m *machine) write(path, text string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) disk() string { return filepath.Join(m.dir, "host", "dev", "vda") }

// boot starts the ramdisk as Ironic's iPXE script would: what it has to know is
// on the kernel's command line. It is a new life, with no memory of the last.
func (m *machine) boot() {
	m.t.Helper()
	root := filepath.Join(m.dir, "ramdisk")
	cmdline := fmt.Sprintf("nofb ipa-debug=1 ipa-api-url=%s BOOTIF=%s", m.wire.URL, m.MAC)
	if m.inspect != "" {
		cmdline += " ipa-inspection-callback-url=" + m.inspect + " ipa-inspection-collectors=default,logs"
	}
	m.write(filepath.Join(root, "proc/cmdline"), cmdline+"\n")
	m.write(filepath.Join(m.dir, "host/proc/sys/kernel/random/boot_id"), uuid.NewString()+"\n")
	conf, err := bootconf.Load(os.DirFS(root))
	if err != nil {
		m.t.Fatal(err)
	}
	console, err := os.OpenFile(filepath.Join(m.dir, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	ring := logring.New(console, slog.LevelInfo)
	l := &life.Life{
		Conf: conf, Machine: &recorded.Host{Dir: filepath.Join(m.dir, "host"), BootMAC: m.MAC, Vars: m.vars},
		State: filepath.Join(m.t.TempDir(), "agent.json"), Listen: fmt.Sprintf("127.0.0.1:%d", freePort(m.t)),
		Memory: 64 << 20, Log: slog.New(ring), Ring: ring,
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.mu.Lock()
	m.end, m.done = cancel, done
	m.mu.Unlock()
	go func() {
		defer close(done)
		defer console.Close()
		action, err := l.Run(ctx)
		if err != nil && ctx.Err() == nil {
			m.t.Errorf("agent: %v", err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if action != 0 {
			m.halts = append(m.halts, action)
		}
	}()
}

// cut is the power cord.
func (m *machine) cut() {
	m.mu.Lock()
	end, done := m.end, m.done
	m.end = nil
	m.mu.Unlock()
	if end != nil {
		end()
		<-done
	}
}

// during runs do while somebody stands at the machine: it is booted when Ironic
// begins to wait for an agent, once, and cut off in the end.
func (m *machine) during(i *realIronic, node string, do func()) {
	m.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			_, raw, err := i.try(http.MethodGet, "/v1/nodes/"+node+"/states", nil)
			if err == nil && (strings.Contains(raw, `"clean wait"`) || strings.Contains(raw, `"wait call-back"`) || strings.Contains(raw, `"inspect wait"`)) {
				m.boot()
				return
			}
		}
	}()
	defer m.cut()
	defer func() { stop(); <-ended }()
	do()
}

// A stock Ironic takes a machine with our agent from enroll to active: its own
// inspection, automated cleaning, and direct deploy with a config drive.
func TestIronicDrivesOurAgent(t *testing.T) {
	i := startIronic(t)
	w := newWire(t, i.URL)
	m := newMachine(t, w)
	img := makeImage(t)
	defer func() {
		if t.Failed() {
			raw, err := os.ReadFile(filepath.Join(m.dir, "console.log"))
			t.Logf("agent's console (%v):\n%s", err, tail(raw, 8000))
		}
	}()

	node, _ := i.must(http.MethodPost, "/v1/nodes", map[string]any{
		"driver": "manual-management", "name": "n1", "power_interface": "fake", "management_interface": "noop", "boot_interface": "ipxe",
		"deploy_interface": "direct", "inspect_interface": "agent", "network_interface": "noop",
		"driver_info": map[string]any{"deploy_kernel": "file://" + i.dir + "/kernel", "deploy_ramdisk": "file://" + i.dir + "/ramdisk"},
		"properties":  map[string]any{"cpu_arch": "x86_64", "capabilities": "boot_mode:uefi"},
	})["uuid"].(string)
	i.must(http.MethodPost, "/v1/ports", map[string]any{"node_uuid": node, "address": m.MAC})
	i.verb(node, "manage", "manageable", nil)

	m.inspect = w.URL + "/v1/continue_inspection"
	m.during(i, node, func() { i.verb(node, "inspect", "manageable", nil) })
	m.inspect = ""
	inv, _ := i.must(http.MethodGet, "/v1/nodes/"+node+"/inventory", nil)["inventory"].(map[string]any)
	if disks, _ := inv["disks"].([]any); len(disks) != 1 {
		t.Errorf("inventory in Ironic: %v", inv)
	}
	w.take()

	// What was on the disk, its tables at both ends, is gone after cleaning.
	old := bytes.Repeat([]byte("OLD DATA"), 2*mib/8)
	f, err := os.OpenFile(m.disk(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(img.bytes[:espStart], 0); err != nil {
		t.Fatal(err)
	}
	m.during(i, node, func() { i.verb(node, "provide", "available", nil) })
	first := make([]byte, 34*512)
	if _, err := f.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, make([]byte, len(first))) {
		t.Error("the partition table is still there after erase_devices_metadata")
	}
	cleaning := w.take()
	if got, want := labels(cleaning), []string{"clean.get_clean_steps", "clean.execute_clean_step erase_devices_metadata"}; !slices.Equal(got, want) {
		t.Errorf("cleaning asked for %q, want %q", got, want)
	}

	// Old data under the image's zeros must not shine through.
	if _, err := f.WriteAt(old, 47*mib-mib/2); err != nil {
		t.Fatal(err)
	}
	drive, err := configdrive.Normalize(map[string]any{"meta_data": map[string]any{"hostname": "n1", "uuid": node}, "user_data": "#!/bin/sh\n"}, configdrive.Options{})
	if err != nil {
		t.Fatal(err)
	}
	packed, err := drive.Encode()
	if err != nil {
		t.Fatal(err)
	}
	i.must(http.MethodPatch, "/v1/nodes/"+node, instance(img))
	m.during(i, node, func() { i.verb(node, "active", "active", map[string]any{"configdrive": packed}) })

	deploying := w.take()
	if got, want := labels(deploying), []string{
		"deploy.get_deploy_steps", "deploy.execute_deploy_step write_image", "standby.get_partition_uuids", "image.install_bootloader", "standby.power_off",
	}; !slices.Equal(got, want) {
		t.Errorf("deploying asked for %q, want %q (as recorded)", got, want)
	}
	for _, c := range slices.Concat(cleaning, deploying) {
		if c.Params["slipway_order"] != nil || c.Params["slipway_command_id"] != nil {
			t.Errorf("%s carried an order or an id of ours, and this is a stock Ironic", c.label())
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Equal(m.halts, []host.Action{host.PowerOff}) {
		t.Errorf("the machine ended by %v, want one power off", m.halts)
	}
	m.judge(f, img, packed)
}

func instance(img image) []map[string]any {
	var ops []map[string]any
	for k, v := range map[string]any{"image_source": img.URL, "image_os_hash_algo": "sha256", "image_os_hash_value": img.SHA256, "image_disk_format": "raw", "root_gb": 1} {
		ops = append(ops, map[string]any{"op": "add", "path": "/instance_info/" + k, "value": v})
	}
	return ops
}

// judge looks at the disk: partitions byte for byte, zeros included, a table at
// the disk's own end, the config drive, and one boot entry of ours.
func (m *machine) judge(f *os.File, img image, drive string) {
	m.t.Helper()
	info, err := f.Stat()
	if err != nil {
		m.t.Fatal(err)
	}
	got := make([]byte, 47*mib-espStart)
	if _, err := f.ReadAt(got, espStart); err != nil {
		m.t.Fatal(err)
	}
	if !bytes.Equal(got, img.bytes[espStart:47*mib]) {
		m.t.Error("the disk's content is not the image's")
	}
	table, err := probe.ReadTable(f, info.Size(), 512)
	if err != nil || len(table.Partitions) != 3 {
		m.t.Fatalf("partitions: %v %+v", err, table)
	}
	var last [512]byte
	if _, err := f.ReadAt(last[:], info.Size()-512); err != nil || !bytes.HasPrefix(last[:], []byte("EFI PART")) {
		m.t.Errorf("no backup table at the end of the disk: %v", err)
	}
	iso, err := configdrive.Decode(drive)
	if err != nil {
		m.t.Fatal(err)
	}
	config := table.Partitions[2]
	have := make([]byte, len(iso))
	if _, err := f.ReadAt(have, config.Start); err != nil || !bytes.Equal(have, iso) {
		m.t.Errorf("partition %d is not the config drive: %v", config.Number, err)
	}
	entries := 0
	for name := range m.vars {
		if strings.HasPrefix(name, "Boot0") {
			entries++
		}
	}
	if entries != 1 {
		m.t.Errorf("%d boot entries, want one: %v", entries, m.vars)
	}
}
