package qemu

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample() Config {
	return Config{
		Name: "m", UUID: "f7f5b475-0df2-80ff-8493-7e6e024fe63c", Serial: "S,1", Firmware: UEFI, Memory: 512 << 20, CPUs: 2,
		Boot: []string{BootDisk, BootPXE}, Dir: "/lab",
		Disks: []Disk{
			{Path: "/lab/a,b.raw", Bus: Virtio, Serial: "v", Sector: 4096},
			{Path: "/lab/1.raw", Bus: AHCI, Serial: "a", WWN: 0x5000c50015ea71ac, Sector: 512},
			{Path: "/lab/2.raw", Bus: AHCI, Serial: "b", Sector: 512},
			{Path: "/lab/3.raw", Bus: NVMe, Serial: "n", Sector: 512},
		},
		NICs: []NIC{{Tap: "tap0.0", MAC: "52:54:00:00:00:01", Model: "virtio", ROM: true}, {Tap: "tap0.1", MAC: "52:54:00:00:00:02", Model: "e1000e"}},
	}
}

// valueOf returns the option of the device with this id.
func valueOf(args []string, id string) string {
	i := slices.IndexFunc(args, func(a string) bool { return strings.Contains(a, "id="+id+",") })
	if i < 0 {
		return ""
	}
	return args[i]
}

func TestDevicesCarryTheirIdentity(t *testing.T) {
	c := sample()
	args := c.args("tcg", c.Boot, "")
	for id, want := range map[string]string{
		"disk0": "virtio-blk-pci,id=disk0,drive=disk0-raw,serial=v,logical_block_size=4096,physical_block_size=4096,bootindex=1",
		"disk1": "ide-hd,bus=ide.0,id=disk1,drive=disk1-raw,serial=a,logical_block_size=512,physical_block_size=512,wwn=0x5000c50015ea71ac,bootindex=2",
		"disk2": "ide-hd,bus=ide.1,id=disk2,drive=disk2-raw,serial=b,logical_block_size=512,physical_block_size=512,bootindex=3",
		"disk3": "nvme,id=disk3,drive=disk3-raw,serial=n,logical_block_size=512,physical_block_size=512,bootindex=4",
		"nic0":  "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:01,bootindex=5",
		"nic1":  "e1000e,id=nic1,netdev=net1,mac=52:54:00:00:00:02,romfile=,bootindex=6",
	} {
		if got := valueOf(args, id); got != want {
			t.Errorf("%s:\n got %s\nwant %s", id, got, want)
		}
	}
	all := strings.Join(args, " ")
	for _, want := range []string{"file.filename=/lab/a,,b.raw", "serial=S,,1,uuid=f7f5b475", "virtio-rng-pci", "-m 512", "-smp 2"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %s", want, all)
		}
	}
}

func TestBootOrder(t *testing.T) {
	c := sample()
	c.Disks, c.NICs = c.Disks[:1], c.NICs[:2]
	for name, tc := range map[string]struct {
		firmware, override string
		want               map[string]int
	}{
		"the lasting order":                   {UEFI, "", map[string]int{"disk0": 1, "nic0": 2, "nic1": 3, "cd0": -1}},
		"network first":                       {UEFI, BootPXE, map[string]int{"nic0": 1, "nic1": 2, "disk0": 3, "cd0": -1}},
		"disk first":                          {UEFI, BootDisk, map[string]int{"disk0": 1, "nic0": 2, "nic1": 3, "cd0": -1}},
		"virtual media first":                 {UEFI, BootCD, map[string]int{"cd0": 1, "disk0": 2, "nic0": 3, "nic1": 4}},
		"BIOS cannot boot a card without ROM": {BIOS, BootPXE, map[string]int{"nic0": 1, "nic1": -1, "disk0": 2, "cd0": -1}},
	} {
		t.Run(name, func(t *testing.T) {
			c.Firmware = tc.firmware
			if diff := cmp.Diff(tc.want, c.bootIndexes(c.order(tc.override))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestKVMNeedsAProcessorThatHelps(t *testing.T) {
	for flags, want := range map[string]bool{
		"fpu vmx sse": true, "fpu svm": true, "fpu sse vmx_like": false, "": false,
	} {
		if got := hasVirtualisation("processor\t: 0\nflags\t\t: " + flags + "\nbugs\t: svm\n"); got != want {
			t.Errorf("flags %q: %v, want %v", flags, got, want)
		}
	}
}

func TestTCGCanBeAskedFor(t *testing.T) {
	if arg, _, err := accelerator(AccelTCG); err != nil || !strings.HasPrefix(arg, "tcg") {
		t.Errorf("%s, %v", arg, err)
	}
}

func TestMissingDiskIsTold(t *testing.T) {
	c := sample()
	c.Dir = t.TempDir()
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "disk v") {
		t.Errorf("error = %v", err)
	}
}

// off is a machine that has no disk and is never started.
func off(t *testing.T) *Machine {
	t.Helper()
	m, err := New(Config{Name: "m", Firmware: BIOS, Dir: t.TempDir(), Boot: []string{BootDisk}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMediaIsFetchedWhole(t *testing.T) {
	m := off(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good.iso":
			_, _ = io.WriteString(w, "an image")
		case "/cut.iso":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half an")
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	if err := m.InsertMedia(context.Background(), server.URL+"/good.iso"); err != nil {
		t.Fatal(err)
	}
	inserted := m.Status().CD
	if data, err := os.ReadFile(inserted); err != nil || string(data) != "an image" {
		t.Errorf("%q, %v", data, err)
	}
	for _, bad := range []string{"/cut.iso", "/none.iso"} {
		if err := m.InsertMedia(context.Background(), server.URL+bad); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	if data, err := os.ReadFile(inserted); err != nil || string(data) != "an image" {
		t.Errorf("a failed change spoilt the medium: %q, %v", data, err)
	}
	if left, err := filepath.Glob(filepath.Join(m.cfg.Dir, "cd.iso.*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := m.EjectMedia(context.Background()); err != nil || m.Status().CD != "" {
		t.Errorf("%v, %+v", err, m.Status())
	}
}

func TestAMachineThatIsOffTakesOrders(t *testing.T) {
	m, ctx := off(t), context.Background()
	if err := m.SetNextBoot(ctx, Override{Target: BootPXE, Once: true}); err != nil {
		t.Error(err)
	}
	if got := m.Status(); got.On || got.Override.Target != BootPXE {
		t.Errorf("%+v", got)
	}
	if err := m.PowerOff(ctx); err != nil {
		t.Error(err)
	}
	if err := m.PressPowerButton(ctx); err != nil {
		t.Error(err)
	}
	if err := m.Wait(ctx); err != nil {
		t.Error(err)
	}
}
