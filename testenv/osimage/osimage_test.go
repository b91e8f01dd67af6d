package osimage

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

func TestRecipesAreFoundByName(t *testing.T) {
	for _, name := range []string{"quick", "cloud-init"} {
		if r, err := Find(name); err != nil || r.Name != name || r.Bytes%mib != 0 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if _, err := Find("windows"); err == nil || !strings.Contains(err.Error(), "quick cloud-init") {
		t.Errorf("error = %v", err)
	}
}

func TestPackagesAreUnpackedOnceForManyImages(t *testing.T) {
	a, err := Find("quick")
	if err != nil {
		t.Fatal(err)
	}
	b := a
	b.Cmdline, b.Bytes = "other", 2*a.Bytes
	keyA, err1 := a.treeKey()
	keyB, err2 := b.treeKey()
	if err1 != nil || err2 != nil || keyA != keyB {
		t.Errorf("a change of the command line unpacks Debian again: %s %s %v %v", keyA, keyB, err1, err2)
	}
	b.Packages = append(slices.Clone(a.Packages), "vim")
	if keyB, err2 = b.treeKey(); err2 != nil || keyA == keyB {
		t.Errorf("another package does not: %s %v", keyB, err2)
	}
}

func TestOverlaysHaveTheirUnits(t *testing.T) {
	for _, path := range []string{
		"overlay/common/usr/lib/systemd/system/slipway-ready.service",
		"overlay/quick/usr/lib/systemd/system/slipway-firstboot.service",
		"overlay/cloud-init/etc/cloud/cloud.cfg.d/90-slipway.cfg",
		"script/tree.sh", "script/root.sh",
	} {
		if _, err := files.ReadFile(path); err != nil {
			t.Error(err)
		}
	}
}

// disk is an assembled disk with stand-ins for GRUB's core and filesystems.
func disk(t *testing.T, size int64) (path string, core []byte) {
	t.Helper()
	if _, err := os.Stat(grubBIOS); err != nil {
		t.Skip("skipped: GRUB's boot sector is not here (Debian's grub-pc-bin)")
	}
	dir := t.TempDir()
	core = bytes.Repeat([]byte{0xc0}, 3*sector+100)
	part := func(name string, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, append(make([]byte, 100<<10), text...), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	path = filepath.Join(dir, "disk.raw")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := assemble(out, size, identifiers("test"), slices.Clone(core), part("esp", "EFI"), part("root", "ROOT")); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path, core
}

func TestDiskIsLaidOutForBIOSAndUEFI(t *testing.T) {
	path, core := disk(t, 64*mib)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint64(data[bootKernelLBA:]); got != biosStart/sector {
		t.Errorf("the boot sector loads GRUB from sector %d", got)
	}
	if data[510] != 0x55 || data[511] != 0xaa || data[446+4] != 0xee {
		t.Error("there is no protective MBR that BIOSes start")
	}
	if !bytes.Equal(data[biosStart:biosStart+100], core[:100]) {
		t.Error("GRUB's core is not in the BIOS boot partition")
	}
	list := data[biosStart+coreListStart:]
	if start, length := binary.LittleEndian.Uint64(list), binary.LittleEndian.Uint16(list[8:]); start != biosStart/sector+1 || length != 3 {
		t.Errorf("GRUB's core loads %d sectors from %d", length, start)
	}
	for at, want := range map[int]string{espStart + 100<<10: "EFI", rootStart + 100<<10: "ROOT"} {
		if got := string(data[at : at+len(want)]); got != want {
			t.Errorf("at %d is %q, want %q", at, got, want)
		}
	}
	verify(t, path)
}

// verify asks sgdisk, which nobody here wrote, about the partition tables.
func verify(t *testing.T, path string) {
	t.Helper()
	sgdisk, err := exec.LookPath("sgdisk")
	if err != nil {
		t.Log("sgdisk is not here (Debian's gdisk): the table is not verified by it")
		return
	}
	out, err := exec.Command(sgdisk, "-v", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk -v: %v\n%s", err, out)
	}
}

func TestPaddedImageHasItsTableAtTheNewEnd(t *testing.T) {
	path, _ := disk(t, 64*mib)
	if err := Pad(path, 96*mib); err != nil {
		t.Fatal(err)
	}
	verify(t, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	table, err := gpt.Read(file.New(f, true), sector, sector)
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	for _, p := range table.Partitions {
		if p.Type != gpt.Unused && p.Size > 0 {
			used++
		}
	}
	if used != 3 || table.RecoveredFromBackup {
		t.Errorf("%d partitions, from the second table: %v", used, table.RecoveredFromBackup)
	}
	old := make([]byte, 8)
	if _, err := f.ReadAt(old, 64*mib-sector); err != nil || string(old) == "EFI PART" {
		t.Errorf("a second table is left inside: %q, %v", old, err)
	}
}

func TestPadNeverShrinks(t *testing.T) {
	path, _ := disk(t, 64*mib)
	for _, size := range []int64{32 * mib, 64*mib + 1} {
		if err := Pad(path, size); err == nil {
			t.Errorf("padded to %d bytes", size)
		}
	}
	verify(t, path)
}
