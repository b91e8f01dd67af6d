package table

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

const mib = 1 << 20

// disk makes a GPT disk in a file by go-diskfs, which knows 4096-byte sectors.
func disk(t testing.TB, size int64, sector int, parts ...*gpt.Partition) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := file.OpenFromPath(path, false)
	if err != nil {
		t.Fatal(err)
	}
	w, err := b.Writable()
	if err != nil {
		t.Fatal(err)
	}
	table := &gpt.Table{LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, Partitions: parts}
	if err := table.Write(w, size); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A table moved to a larger disk, with a partition added, is one that
// go-diskfs and sgdisk accept, at both sector sizes.
func TestMoveAndAdd(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			s := uint64(sector)
			img := disk(t, 8*mib, sector,
				&gpt.Partition{Index: 1, Start: mib / s, End: 2*mib/s - 1, Type: gpt.EFISystemPartition, Name: "esp"},
				&gpt.Partition{Index: 2, Start: 2 * mib / s, End: 6*mib/s - 1, Type: gpt.LinuxFilesystem, Name: "root"})
			table, err := Parse(img[:HeadSize], sector)
			if err != nil {
				t.Fatal(err)
			}
			const size = 16 * mib
			if err := table.Fit(size); err != nil {
				t.Fatal(err)
			}
			added, err := table.Add("config-2", 5)
			if err != nil {
				t.Fatal(err)
			}
			if esp, ok := table.ESP(); !ok || esp.Number != 1 || esp.Start != mib || esp.Size != mib {
				t.Errorf("ESP %+v", esp)
			}
			if added.Start != 14*mib || added.Size != mib {
				t.Errorf("added %+v, want the last whole MiB", added)
			}
			out := make([]byte, size)
			copy(out, img[:HeadSize])
			table.Primary(out[:HeadSize])
			off, backup := table.Backup()
			if off+int64(len(backup)) != size {
				t.Errorf("the backup ends at %d", off+int64(len(backup)))
			}
			copy(out[off:], backup)
			path := filepath.Join(t.TempDir(), "out")
			if err := os.WriteFile(path, out, 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := file.OpenFromPath(path, true)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = b.Close() }()
			read, err := gpt.Read(b, sector, sector)
			if err != nil {
				t.Fatal(err)
			}
			names := ""
			for _, p := range read.Partitions {
				if p.Type != gpt.Unused {
					names += p.Name + " "
				}
			}
			if names != "esp root config-2 " {
				t.Errorf("go-diskfs reads partitions %q", names)
			}
			again, err := Parse(out[:HeadSize], sector)
			if err != nil || len(again.Partitions) != 3 || again.Partitions[2].Name != "config-2" || again.DiskGUID != table.DiskGUID {
				t.Errorf("read again: %+v, %v", again, err)
			}
			if sector == 512 {
				log, err := exec.Command("sgdisk", "-v", path).CombinedOutput()
				if err != nil || !strings.Contains(string(log), "No problems found") {
					t.Errorf("sgdisk -v: %v %s", err, log)
				}
			}
		})
	}
}

// Add takes the last gap that is wide enough, wherever it is.
func TestAddFindsTheLastGap(t *testing.T) {
	img := disk(t, 16*mib, 512,
		&gpt.Partition{Index: 1, Start: 2048, End: 2*2048 - 1, Type: gpt.LinuxFilesystem, Name: "a"},
		&gpt.Partition{Index: 2, Start: 4 * 2048, End: 15*2048 - 1, Type: gpt.LinuxFilesystem, Name: "b"})
	table, err := Parse(img[:HeadSize], 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Fit(16 * mib); err != nil {
		t.Fatal(err)
	}
	p, err := table.Add("config-2", mib)
	if err != nil || p.Start != 3*mib {
		t.Fatalf("added %+v, %v, want the gap at 2 to 4 MiB", p, err)
	}
	table.Remove(p.Number)
	if p, err = table.Add("config-2", 2*mib); err != nil || p.Start != 2*mib || p.Number != 3 {
		t.Fatalf("added %+v, %v, want all of the gap", p, err)
	}
	if _, err = table.Add("more", 3*mib); !errors.Is(err, ErrNoRoom) {
		t.Errorf("error %v", err)
	}
}

// Damage is found before anything depends on it.
func TestDamagedGPT(t *testing.T) {
	img := disk(t, 8*mib, 512, &gpt.Partition{Index: 1, Start: 2048, End: 4095, Type: gpt.LinuxFilesystem, Name: "a"})[:HeadSize]
	for _, c := range []struct {
		name string
		edit func(b []byte)
		want string
	}{
		{"header", func(b []byte) { b[512+60] ^= 1 }, "header checksum"},
		{"entries", func(b []byte) { b[1024+60] ^= 1 }, "entries checksum"},
		{"header size", func(b []byte) { b[512+13] = 0xff }, "header size"},
		{"no protective MBR", func(b []byte) { b[510] = 0 }, "without a protective MBR"},
		{"header gone", func(b []byte) { b[512] = 'X' }, "without a GPT header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(img)
			c.edit(b)
			if _, err := Parse(b, 512); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	if _, err := Parse(img, 4096); !errors.Is(err, ErrSectorSize) {
		t.Errorf("on a 4096-byte disk: error %v", err)
	}
	table, err := Parse(img, 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Fit(2 * mib); !errors.Is(err, ErrTooSmall) {
		t.Errorf("on a small disk: error %v", err)
	}
}

// A bare file system's boot sector is not a partition table.
func TestBootSectorIsNoTable(t *testing.T) {
	head := make([]byte, HeadSize)
	copy(head[446:], "BOOTMGR is missing, press a key")
	head[510], head[511] = 0x55, 0xaa
	table, err := Parse(head, 512)
	if err != nil || table.Kind != None {
		t.Errorf("kind %v, %v", table, err)
	}
}

// Whatever the bytes, Parse returns, and what it accepts survives a move.
func FuzzParse(f *testing.F) {
	gptDisk := disk(f, 4*mib, 512, &gpt.Partition{Index: 1, Start: 2048, End: 4095, Type: gpt.EFISystemPartition, Name: "a"})
	f.Add(gptDisk[:34*512], int64(8*mib), true)
	f.Add(disk(f, 4*mib, 4096)[:24<<10], int64(8*mib), false)
	mbr := make([]byte, 512)
	mbr[446+4], mbr[446+9], mbr[446+13], mbr[510], mbr[511] = 0x83, 8, 8, 0x55, 0xaa
	f.Add(mbr, int64(8*mib), true)
	f.Fuzz(func(t *testing.T, data []byte, size int64, small bool) {
		sector := 4096
		if small {
			sector = 512
		}
		head := make([]byte, HeadSize)
		copy(head, data)
		table, err := Parse(head, sector)
		if err != nil || size < 4*mib || size > 1<<50 || table.Fit(size) != nil {
			return
		}
		before := len(table.Partitions)
		if p, err := table.Add("config-2", mib); err == nil {
			if p.Start < 0 || p.End() > size || p.Start%Alignment != 0 {
				t.Fatalf("added %+v on %d bytes", p, size)
			}
			before++
		}
		table.Primary(head)
		again, err := Parse(head, sector)
		if err != nil || again.Kind != table.Kind || len(again.Partitions) != before {
			t.Fatalf("after the move: %+v, %v", again, err)
		}
		if off, backup := table.Backup(); backup != nil && (off < 0 || off+int64(len(backup)) > size) {
			t.Fatalf("backup at %d with %d bytes on %d", off, len(backup), size)
		}
	})
}
