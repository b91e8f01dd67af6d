package pack_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/slipway-metal/slipway/initramfs/flavor"
	"github.com/slipway-metal/slipway/initramfs/internal/kotest"
	"github.com/slipway-metal/slipway/initramfs/kernel"
	"github.com/slipway-metal/slipway/initramfs/pack"
)

func TestTheArchiveDependsOnItsContentsOnly(t *testing.T) {
	files := []pack.File{
		{Path: "init", Mode: 0o755, Data: []byte("program")},
		{Path: "bin/sh", Target: "/init"},
		{Path: "lib/modules/6.1/a.ko", Mode: 0o644, Data: bytes.Repeat([]byte("module"), 1000)},
	}
	one, err := pack.Archive(files, pack.Devices()...)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(files)
	two, err := pack.Archive(files, pack.Devices()...)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("the same files in another order gave another archive")
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(one)))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]cpio.Record)
	for _, r := range records {
		seen[r.Name] = r
		if r.MTime != 0 || r.UID != 0 {
			t.Errorf("%s carries a time or an owner: %v", r.Name, r.Info)
		}
		// The kernel unpacks in order and makes no directories of its own.
		if dir := filepath.Dir(r.Name); dir != "." && seen[dir].Name == "" {
			t.Errorf("%s comes before its directory", r.Name)
		}
	}
	for _, name := range []string{"init", "bin/sh", "lib/modules/6.1/a.ko", "dev/console", "proc", "sys", "run", "tmp", "etc/slipway"} {
		if seen[name].Name == "" {
			t.Errorf("the archive lacks /%s", name)
		}
	}
}

func TestTwoFilesOfOneNameAreRefused(t *testing.T) {
	if _, err := pack.Archive([]pack.File{{Path: "init"}, {Path: "init"}}); err == nil || !strings.Contains(err.Error(), "/init") {
		t.Errorf("error %v does not name the file", err)
	}
}

// The kernel allocates the window while archive and contents are in memory: it
// must stay small for a machine of 96 MB.
func TestTheFrameHasASmallWindowAndAChecksum(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	small, err := pack.Compress(data)
	if err != nil {
		t.Fatal(err)
	}
	var h zstd.Header
	if err := h.Decode(small); err != nil {
		t.Fatal(err)
	}
	if h.WindowSize > 8<<20 || h.SingleSegment || !h.HasCheckSum {
		t.Errorf("frame header %+v: want a window of at most 8 MiB and a checksum", h)
	}
	r, err := zstd.NewReader(bytes.NewReader(small))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	back, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(back, data) {
		t.Errorf("decompressing gave %d bytes (%v), want %d", len(back), err, len(data))
	}
}

// inputs makes a kernel package of a few bytes, and programs.
func inputs(t *testing.T) pack.Inputs {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg-deb, which Debian and its kin have")
	}
	dir := t.TempDir()
	mods := "tree/lib/modules/6.1-test/"
	for name, data := range map[string]string{
		"tree/DEBIAN/control":                          "Package: linux-image-test\nVersion: 6.1-1\nArchitecture: amd64\nMaintainer: nobody <nobody@example.org>\nDescription: a test\n",
		"tree/boot/vmlinuz-6.1-test":                   "the kernel",
		"tree/boot/config-6.1-test":                    "CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_ZSTD=y\nCONFIG_DEVTMPFS=y\nCONFIG_TMPFS=y\n",
		mods + "modules.builtin":                       "kernel/nvme.ko\n",
		mods + "kernel/drivers/net/virtio_net.ko":      string(kotest.Module("alias=virtio:d00000001v*", "depends=virtio")),
		mods + "kernel/drivers/virtio/virtio.ko":       string(kotest.Module("depends=")),
		mods + "kernel/drivers/net/ethernet/x/left.ko": string(kotest.Module("depends=")),
		"init":  "the init program",
		"agent": "the agent",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(dir, "kernel.deb")
	if text, err := exec.Command("dpkg-deb", "--build", "--root-owner-group", filepath.Join(dir, "tree"), deb).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, text)
	}
	pkg, err := kernel.Local(t.Context(), deb)
	if err != nil {
		t.Fatal(err)
	}
	return pack.Inputs{
		Flavor: &flavor.Flavor{Name: "test", Budget: 1 << 20, Patterns: []string{"virtio_net", "nvme"}},
		Kernel: pkg, Init: filepath.Join(dir, "init"), Agent: filepath.Join(dir, "agent"),
	}
}

func build(t *testing.T, in pack.Inputs, dir string) (*pack.Manifest, bool) {
	t.Helper()
	m, built, err := pack.Build(context.Background(), in, dir, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return m, built
}

func TestTheSameInputsGiveTheSameBytes(t *testing.T) {
	in := inputs(t)
	one, two := t.TempDir(), t.TempDir()
	build(t, in, one)
	build(t, in, two)
	for _, name := range []string{pack.KernelFile, pack.RamdiskFile, pack.ManifestFile} {
		a, err := os.ReadFile(filepath.Join(one, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(two, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs between two builds of the same inputs", name)
		}
	}
}

func TestABuildIsDoneAgainOnlyWhenItsInputsOrOutputsChanged(t *testing.T) {
	in := inputs(t)
	dir := t.TempDir()
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name   string
		change func()
		built  bool
	}{
		{"the first time", func() {}, true},
		{"nothing changed", func() {}, false},
		{"another agent", func() { write(in.Agent, "another agent") }, true},
		{"another init", func() { write(in.Init, "another init") }, true},
		{"the ramdisk was damaged", func() { write(filepath.Join(dir, pack.RamdiskFile), "x") }, true},
		{"another list of modules", func() { in.Flavor.Patterns = []string{"virtio"} }, true},
		{"nothing changed again", func() {}, false},
	} {
		step.change()
		if _, built := build(t, in, dir); built != step.built {
			t.Errorf("%s: built %v, want %v", step.name, built, step.built)
		}
	}
}

func TestARamdiskOverBudgetFailsWithTheTableAndWritesNothing(t *testing.T) {
	in := inputs(t)
	in.Flavor.Budget = 100
	dir := t.TempDir()
	var table strings.Builder
	_, _, err := pack.Build(t.Context(), in, dir, &table)
	if err == nil || !strings.Contains(err.Error(), "budget") {
		t.Errorf("error %v, want one about the budget", err)
	}
	for _, row := range []string{"agent", "init", "virtio", "budget"} {
		if !strings.Contains(table.String(), row) {
			t.Errorf("the table has no row %s:\n%s", row, &table)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestOnlyWhatWasAskedForIsIn(t *testing.T) {
	m, _ := build(t, inputs(t), t.TempDir())
	if got := strings.Join(m.Modules, " "); got != "virtio_net virtio" {
		t.Errorf("modules %q", got)
	}
	if got := strings.Join(m.BuiltIn, " "); got != "nvme" {
		t.Errorf("built in %q", got)
	}
}
