package steps_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/agent/efi"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/recorded"
	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/agent/steps"
	"github.com/slipway-metal/slipway/proto/agent"
)

const diskSize = 6 << 30 // above Ironic's least root disk of 4 GiB

// machine has disks sda, sdb, … with serials S-sda, …; all zeros.
func machine(t *testing.T, names ...string) *recorded.Host {
	t.Helper()
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "-- sys/block/%s/size --\n%d\n-- sys/block/%s/serial --\nS-%s\n-- sys/block/%s/queue/logical_block_size --\n512\n", n, diskSize/512, n, n, n)
	}
	h := &recorded.Host{Dir: t.TempDir()}
	if err := recorded.Extract([]byte(b.String()), h.Dir); err != nil {
		t.Fatal(err)
	}
	return h
}

func disks(t *testing.T, h host.Host) []agent.Disk {
	t.Helper()
	d, err := h.Disks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func path(h *recorded.Host, name string) string { return filepath.Join(h.Dir, "dev", name) }

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		if p, err = exec.LookPath("/sbin/" + name); err != nil {
			t.Skipf("no %s here", name)
		}
	}
	if out, err := exec.Command(p, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// permitted is h with an order for the disks of these serials.
type keeper struct{ id orders.Identity }

func (k keeper) Identity() orders.Identity { return k.id }
func (keeper) SetLastOrder(int64) error    { return nil }

func permitted(t *testing.T, h host.Host, action string, ordered ...agent.Disk) host.Host {
	t.Helper()
	o := agent.Order{Action: action, Generation: 1, Expiry: time.Now().Add(time.Hour)}
	for _, d := range ordered {
		o.Disks = append(o.Disks, d.Identity())
	}
	o = o.Sign("T")
	p, err := orders.NewBook(keeper{orders.Identity{Token: "T", Required: true}}, "", time.Now).Take(&o, action)
	if err != nil {
		t.Fatal(err)
	}
	return p.Guard(h)
}

func stock(t *testing.T, h host.Host) host.Host {
	t.Helper()
	p, err := orders.NewBook(keeper{orders.Identity{Token: "T"}}, "", time.Now).Take(nil, "x")
	if err != nil {
		t.Fatal(err)
	}
	return p.Guard(h)
}

type root struct {
	id  agent.DiskIdentity
	set bool
}

func registry(r *root) steps.Registry {
	return steps.All(steps.Deps{
		Log: slog.New(slog.DiscardHandler), AllowMD5: func() bool { return false },
		SetRoot: func(d agent.DiskIdentity) error { r.id, r.set = d, true; return nil },
		Root:    func() (agent.DiskIdentity, bool) { return r.id, r.set },
	})
}

func do(ctx context.Context, r *root, h host.Host, kind steps.Kind, name, args string, node steps.Node) (steps.Result, error) {
	s, err := registry(r).Find(kind, name)
	if err != nil {
		return steps.Result{}, err
	}
	run, err := s.Bind(json.RawMessage(args), node)
	if err != nil {
		return steps.Result{}, err
	}
	return run(ctx, h)
}

// fill gives a disk a GPT with file systems, md and ZFS leftovers.
func fill(t *testing.T, h *recorded.Host, name string) {
	t.Helper()
	disks(t, h) // makes the files
	p := path(h, name)
	tool(t, "sgdisk", "-n1:2048:+64M", "-t1:ef00", "-n2:0:+512M", "-t2:8300", "-n3:0:0", p)
	tool(t, "mkfs.ext4", "-q", "-F", "-L", "OLD", "-E", "offset=68157440", p, "100M")
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	zfs := binary.LittleEndian.AppendUint64(nil, 0x00bab10c)
	part3 := int64(1<<20 + 64<<20 + 512<<20) // as sgdisk lays partition 3 out
	for off, b := range map[int64][]byte{
		part3 + 128<<10:                 zfs,                        // in partition 3
		part3 + 64<<10 + 0x40:           []byte("_BHRfS_M"),         // btrfs in partition 3
		part3 + 64<<20 + 0x40:           []byte("_BHRfS_M"),         // its mirror
		diskSize - 65536:                []byte("\xfc\x4e\x2b\xa9"), // md 0.90 on the whole disk
		diskSize/262144*262144 - 131072: zfs,
	} {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// After the metadata erase, nobody (blkid least of all) finds anything, and the
// data in between is as it was: that is what makes it quick.
func TestEraseMetadata(t *testing.T) {
	h := machine(t, "sda", "sdb")
	fill(t, h, "sda")
	before := disks(t, h)
	kinds := fmt.Sprint(before[0].Content)
	for _, want := range []string{"gpt", "ext", "md", "zfs", "btrfs"} {
		if !strings.Contains(kinds, want) {
			t.Fatalf("the test's disk has no %s: %s", want, kinds)
		}
	}
	const kept = 40 << 20
	f, err := os.OpenFile(path(h, "sda"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only from here on
	if _, err := f.WriteAt([]byte("data"), kept); err != nil {
		t.Fatal(err)
	}
	res, err := do(t.Context(), &root{}, permitted(t, h, "erase_devices_metadata", before...), steps.Clean, "erase_devices_metadata", `{}`, steps.Node{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range disks(t, h) {
		if len(d.Content) != 0 {
			t.Errorf("%s still has %v", d.Name, d.Content)
		}
	}
	got := make([]byte, 4)
	if _, err := f.ReadAt(got, kept); err != nil || string(got) != "data" {
		t.Errorf("data: %q %v", got, err)
	}
	erased, ok := res.Value.(map[string]steps.Erased)
	if !ok || len(erased) != 2 || len(erased["/dev/sda"].Found) == 0 || erased["/dev/sda"].Bytes == 0 || erased["/dev/sdb"].Skipped != "" {
		t.Errorf("result: %+v", res.Value)
	}
	if p, err := exec.LookPath("blkid"); err == nil {
		if out, err := exec.Command(p, "-p", path(h, "sda")).CombinedOutput(); len(out) > 0 {
			t.Errorf("blkid still finds: %s (%v)", out, err)
		}
	}
	// The mirror of btrfs is gone too: its tools find file systems by it.
	mirror := make([]byte, 8)
	if _, err := f.ReadAt(mirror, 1<<20+64<<20+512<<20+64<<20+0x40); err != nil || !bytes.Equal(mirror, make([]byte, 8)) {
		t.Errorf("btrfs mirror: %q %v", mirror, err)
	}
}

// Only the ordered disk is touched; a read-only one is left alone and named; one
// that is gone makes the step fail before any other is touched.
func TestEraseKeepsToItsOrder(t *testing.T) {
	h := machine(t, "sda", "sdb")
	fill(t, h, "sda")
	fill(t, h, "sdb")
	all := disks(t, h)
	if _, err := do(t.Context(), &root{}, permitted(t, h, "erase_devices_metadata", all[0]), steps.Clean, "erase_devices_metadata", ``, steps.Node{}); err != nil {
		t.Fatal(err)
	}
	if now := disks(t, h); len(now[0].Content) != 0 || len(now[1].Content) == 0 {
		t.Fatalf("sda %v, sdb %v", now[0].Content, now[1].Content)
	}
	ro := filepath.Join(h.Dir, "sys/block/sdb/ro")
	if err := os.WriteFile(ro, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	res, err := do(t.Context(), &root{}, stock(t, h), steps.Clean, "erase_devices_metadata", ``, steps.Node{})
	if err != nil {
		t.Fatal(err)
	}
	if e := res.Value.(map[string]steps.Erased)["/dev/sdb"]; e.Skipped != "read-only" || e.Bytes != 0 {
		t.Fatalf("read-only: %+v", e)
	}
	gone := all[1]
	gone.Size++
	if _, err := do(t.Context(), &root{}, permitted(t, h, "erase_devices_metadata", all[0], gone), steps.Clean, "erase_devices_metadata", ``, steps.Node{}); !errors.Is(err, orders.ErrGone) {
		t.Fatalf("gone: %v", err)
	}
	// Without a permit, as steps that are not destructive run, no disk is touched.
	if err := os.WriteFile(ro, []byte("0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	res, err = do(t.Context(), &root{}, (orders.Permit{}).Guard(h), steps.Clean, "erase_devices_metadata", ``, steps.Node{})
	if n := len(disks(t, h)[1].Content); n == 0 {
		t.Fatalf("erased without a permit: %v %v", res, err)
	}
}

func TestArgumentsAreCheckedFirst(t *testing.T) {
	h := machine(t, "sda")
	for args, want := range map[string]string{
		`{}`:                         "missing 'urls'",
		`{"image_info":{"urls":[]}}`: "at least one element",
		`{"image_info":{"urls":["file:///etc/shadow"]}}`:                    "only http and https",
		`{"image_info":{"urls":["http://a/b"],"image_type":"partition"}}`:   "partition image",
		`{"image_info":{"urls":["http://a/b"],"checksum":"http://a/SUMS"}}`: "checksum is a URL",
		`{"image_info":7}`: "image_info",
	} {
		_, err := do(t.Context(), &root{}, stock(t, h), steps.Deploy, "write_image", args, steps.Node{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := do(t.Context(), &root{}, stock(t, h), steps.Clean, "erase_devices_metadata", `{"skip":["sda"]}`, steps.Node{}); err == nil {
		t.Error("an argument that the step does not have was dropped in silence")
	}
	if _, err := do(t.Context(), &root{}, stock(t, h), steps.Clean, "write_image", `{}`, steps.Node{}); !errors.Is(err, steps.ErrUnknown) {
		t.Errorf("a deploy step while cleaning: %v", err)
	}
}

// bootable is a small disk image with an EFI system partition that holds path.
func bootable(t *testing.T, loader string) []byte {
	t.Helper()
	p, esp := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "esp")
	for f, size := range map[string]int64{p: 64 << 20, esp: 20 << 20} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f, size); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "sgdisk", "-n1:2048:+20M", "-t1:ef00", "-n2:0:0", p)
	tool(t, "mkfs.vfat", esp)
	at := "::"
	parts := strings.Split(loader, "/")
	for _, dir := range parts[:len(parts)-1] {
		at += "/" + dir
		tool(t, "mmd", "-i", esp, at)
	}
	file := filepath.Join(t.TempDir(), "loader")
	if err := os.WriteFile(file, []byte("loader"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, "mcopy", "-i", esp, file, at+"/"+parts[len(parts)-1])
	raw, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	fat, err := os.ReadFile(esp)
	if err != nil {
		t.Fatal(err)
	}
	copy(raw[1<<20:], fat)
	return raw
}

func gz(t *testing.T, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// iso is the least that counts as an ISO labelled config-2.
func iso() []byte {
	b := make([]byte, 64<<10)
	copy(b[0x8000:], "\x01CD001\x01")
	copy(b[0x8028:], "config-2                        ")
	return b
}

// The image, its config drive and its boot entry, as the conductor asks for them.
func TestDeploy(t *testing.T) {
	h := machine(t, "sda", "sdb")
	h.Vars = efi.Memory{"Boot0000": {1, 0, 0, 0, 0, 0, 'P', 0, 0, 0}, "BootOrder": {0, 0}}
	stored := gz(t, bootable(t, "EFI/debian/shimx64.efi"))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "image", time.Time{}, bytes.NewReader(stored))
	}))
	defer s.Close()
	sum := sha256.Sum256(stored)
	args := fmt.Sprintf(`{"image_info":{"id":"x","urls":[%q],"disk_format":"raw","container_format":null,"stream_raw_images":true,"os_hash_algo":"sha256","os_hash_value":%q,"new_in_ironic_40":1},"configdrive":%q}`,
		s.URL+"/image", hex.EncodeToString(sum[:]), base64.StdEncoding.EncodeToString(gz(t, iso())))
	sdb := disks(t, h)[1]
	r := &root{}
	res, err := do(t.Context(), r, permitted(t, h, "write_image", sdb), steps.Deploy, "write_image", args, steps.Node{})
	if err != nil {
		t.Fatal(err)
	}
	w, ok := res.Value.(steps.Written)
	if !ok || w.Name != "/dev/sdb" || w.ImageBytes != 64<<20 || r.id != sdb.Identity() {
		t.Fatalf("%+v", res.Value)
	}
	now := disks(t, h)
	if content := fmt.Sprint(now[1].Content); !strings.Contains(content, "gpt") || !strings.Contains(content, "config-2") {
		t.Fatalf("sdb has %s", content)
	}
	if len(now[0].Content) != 0 {
		t.Fatalf("sda has %v", now[0].Content)
	}
	text, err := do(t.Context(), r, h, steps.Deploy, "install_bootloader", `{"root_uuid":null,"target_boot_mode":"uefi"}`, steps.Node{})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(text.Value); !strings.Contains(got, `Boot0001 starts \EFI\debian\shimx64.efi of partition 1`) {
		t.Fatal(got)
	}
	if got := h.Vars["BootOrder"]; !bytes.Equal(got, []byte{1, 0, 0, 0}) {
		t.Fatalf("boot order %x", got)
	}
}

// Under a stock Ironic the node's hints choose the disk, and no choice is no guess.
func TestHintsChooseTheDisk(t *testing.T) {
	h := machine(t, "sda", "sdb")
	args := `{"image_info":{"urls":["http://127.0.0.1:1/image"],"os_hash_algo":"sha256","os_hash_value":"` + strings.Repeat("0", 64) + `"}}`
	hinted := func(v string) steps.Node {
		return steps.Node{Properties: map[string]any{"root_device": map[string]any{"serial": v}}}
	}
	if _, err := do(t.Context(), &root{}, stock(t, h), steps.Deploy, "write_image", args, hinted("S-none")); !errors.Is(err, agent.ErrNoRootDisk) {
		t.Errorf("a hint that fits none: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // before the first byte is fetched: the choice is made by then
	r := &root{}
	if _, err := do(ctx, r, stock(t, h), steps.Deploy, "write_image", args, hinted("S-sdb")); err == nil {
		t.Error("an image from nowhere was written")
	}
}

func TestBootEntryFindsTheCause(t *testing.T) {
	h := machine(t, "sda")
	if _, err := do(t.Context(), &root{}, h, steps.Deploy, "install_bootloader", `{"target_boot_mode":"uefi"}`, steps.Node{}); err == nil || !strings.Contains(err.Error(), "booted by BIOS") {
		t.Errorf("a UEFI node on BIOS: %v", err)
	}
	if res, err := do(t.Context(), &root{}, h, steps.Deploy, "install_bootloader", `{"target_boot_mode":"bios"}`, steps.Node{}); err != nil {
		t.Errorf("BIOS: %v %v", res, err)
	}
	h.Vars = efi.Memory{}
	d := disks(t, h)[0]
	if _, err := do(t.Context(), &root{id: d.Identity(), set: true}, h, steps.Deploy, "install_bootloader", `{}`, steps.Node{}); err == nil || !strings.Contains(err.Error(), "no EFI system partition") {
		t.Errorf("no ESP: %v", err)
	}
	other := d.Identity()
	other.Serial = "swapped"
	if _, err := do(t.Context(), &root{id: other, set: true}, h, steps.Deploy, "install_bootloader", `{}`, steps.Node{}); !errors.Is(err, orders.ErrGone) {
		t.Errorf("the written disk is gone: %v", err)
	}
	if len(h.Vars) != 0 {
		t.Errorf("variables were written: %v", h.Vars)
	}
}

// What the conductor sees of the steps is Ironic's dict.
func TestStepList(t *testing.T) {
	raw, err := json.Marshal(registry(&root{}).List(steps.Clean))
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"step":"erase_devices_metadata","interface":"deploy","priority":10,"abortable":true,"slipway_destructive":true},` +
		`{"step":"erase_devices","interface":"deploy","priority":0,"abortable":true,"slipway_destructive":true}]`
	if string(raw) != want {
		t.Fatalf("got  %s\nwant %s", raw, want)
	}
}
