package probe

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/proto/agent"
)

// run calls a tool that lays out real content; without it the test is skipped.
func run(t *testing.T, stdin, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/sbin/" + name); err != nil {
			t.Skipf("no %s here", name)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func image(t *testing.T, size int64) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return p
}

func content(t *testing.T, path string) []agent.DiskContent {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Content(f, info.Size(), 512)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// File systems made by their own tools are found, with their labels.
func TestFilesystems(t *testing.T) {
	const size = 64 << 20
	for want, mk := range map[string]func(t *testing.T, p string){
		"filesystem ext ROOT": func(t *testing.T, p string) { run(t, "", "mkfs.ext4", "-q", "-F", "-L", "ROOT", p) },
		"filesystem vfat ESP": func(t *testing.T, p string) { run(t, "", "mkfs.vfat", "-F", "16", "-n", "ESP", p) },
		"filesystem vfat BIG": func(t *testing.T, p string) { run(t, "", "mkfs.vfat", "-F", "32", "-n", "BIG", p) },
		"swap swap SW":        func(t *testing.T, p string) { run(t, "", "mkswap", "-q", "-L", "SW", p) },
		"filesystem xfs X":    func(t *testing.T, p string) { run(t, "", "mkfs.xfs", "-q", "-L", "X", p) },
		"filesystem btrfs B":  func(t *testing.T, p string) { run(t, "", "mkfs.btrfs", "-q", "-L", "B", p) },
	} {
		t.Run(strings.Fields(want)[1], func(t *testing.T) {
			p := image(t, size)
			mk(t, p)
			fields := strings.Fields(want)
			if d := cmp.Diff([]agent.DiskContent{{Kind: fields[0], Type: fields[1], Label: fields[2], Size: size}}, content(t, p)); d != "" {
				t.Fatal(d)
			}
		})
	}
}

// What no tool here makes is planted where its format puts it.
func TestPlantedSignatures(t *testing.T) {
	const size = 8 << 20
	for _, c := range []struct {
		want  string
		off   int64
		magic string
	}{
		{"lvm", 512, "LABELONE"},
		{"luks", 0, "LUKS\xba\xbe"},
		{"md", 4096, mdMagic},
		{"md", 0, mdMagic},
		{"md", size - 8192, mdMagic},  // superblock 1.0
		{"md", size - 65536, mdMagic}, // superblock 0.90
		{"zfs", 128<<10 + 4096, "\x0c\xb1\xba\x00\x00\x00\x00\x00"},
		{"zfs", size - 256<<10 + 128<<10, "\x0c\xb1\xba\x00\x00\x00\x00\x00"},
		{"imsm", size - 1024, "Intel Raid ISM Cfg Sig. "},
		{"ddf", size - 512, "\xde\x11\xde\x11"},
		{"bluestore", 0, "bluestore block device"},
		{"iso9660", 0x8001, "CD001"},
	} {
		buf := make([]byte, size)
		copy(buf[c.off:], c.magic)
		hits, err := Signatures(bytes.NewReader(buf), size)
		if err != nil {
			t.Fatal(err)
		}
		if len(hits) != 1 || hits[0].Type != c.want || hits[0].Offset != c.off {
			t.Errorf("%s at %d: got %+v", c.want, c.off, hits)
		}
	}
}

func TestGPT(t *testing.T) {
	p := image(t, 64<<20)
	run(t, "", "sgdisk", "-n1:2048:+20M", "-t1:ef00", "-c1:EFI system", "-n2:0:0", "-t2:8300", "-c2:root", p)
	raw, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, backup bool) {
		t.Helper()
		table, err := ReadTable(bytes.NewReader(raw), int64(len(raw)), 512)
		if err != nil {
			t.Fatal(err)
		}
		if table.Scheme != "gpt" || table.Backup != backup || len(table.Partitions) != 2 {
			t.Fatalf("%s: %+v", what, table)
		}
		esp := table.Partitions[0]
		if !esp.IsESP() || esp.Number != 1 || esp.Start != 1<<20 || esp.Size != 20<<20 || esp.Label != "EFI system" || len(esp.GUID) != 36 {
			t.Fatalf("%s: %+v", what, esp)
		}
	}
	check("whole", false)
	raw[600]++ // breaks the primary header's checksum
	check("damaged primary header", true)
	clear(raw[len(raw)-512:])
	table, err := ReadTable(bytes.NewReader(raw), int64(len(raw)), 512)
	if err != nil || table.Scheme != "mbr" || len(table.Partitions) != 0 {
		t.Fatalf("both headers damaged leave the protective MBR: %+v, %v", table, err)
	}
}

func TestMBRWithLogicalPartitions(t *testing.T) {
	p := image(t, 64<<20)
	run(t, "2048 20480 83 *\n22528 + 5\n24576 8192 83\n34816 8192 82\n", "sfdisk", "-q", "--label", "dos", "-uS", p)
	raw, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	table, err := ReadTable(bytes.NewReader(raw), int64(len(raw)), 512)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range table.Partitions {
		got = append(got, fmt.Sprintf("%d %d %d %s", x.Number, x.Start/512, x.Size/512, x.Type))
	}
	if d := cmp.Diff([]string{"1 2048 20480 0x83", "5 24576 8192 0x83", "6 34816 8192 0x82"}, got); d != "" {
		t.Fatal(d)
	}
}

// A FAT boot sector ends in 55aa as an MBR does and is none.
func TestFATIsNoMBR(t *testing.T) {
	p := image(t, 16<<20)
	run(t, "", "mkfs.vfat", p)
	for _, c := range content(t, p) {
		if c.Kind == KindTable {
			t.Fatalf("taken for a partition table: %+v", c)
		}
	}
}

func TestFATDirectories(t *testing.T) {
	for kind, size := range map[string]int64{"12": 4 << 20, "16": 32 << 20, "32": 64 << 20} {
		t.Run(kind, func(t *testing.T) {
			p := image(t, size)
			run(t, "", "mkfs.vfat", "-F", kind, p)
			for _, d := range []string{"::EFI", "::EFI/BOOT", "::EFI/a long directory name"} {
				run(t, "", "mmd", "-i", p, d)
			}
			run(t, "loader", "mcopy", "-i", p, "-", "::EFI/BOOT/BOOTX64.EFI")
			run(t, "loader", "mcopy", "-i", p, "-", "::EFI/a long directory name/systemd-bootx64.efi")
			f, err := os.Open(p)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close() //nolint:errcheck // read only
			fat, err := OpenFAT(f, size)
			if err != nil {
				t.Fatal(err)
			}
			list := func(dir string) (names []string) {
				entries, err := fat.List(dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range entries {
					names = append(names, e.Name)
				}
				return names
			}
			if d := cmp.Diff([]string{"BOOT", "a long directory name"}, list("efi")); d != "" {
				t.Fatal(d)
			}
			if d := cmp.Diff([]string{"BOOTX64.EFI"}, list(`\EFI\boot`)); d != "" {
				t.Fatal(d)
			}
			if d := cmp.Diff([]string{"systemd-bootx64.efi"}, list("EFI/A LONG directory NAME")); d != "" {
				t.Fatal(d)
			}
			if got := list("EFI/none"); got != nil {
				t.Fatalf("a missing directory has %v", got)
			}
		})
	}
}

// What lies on a disk is a stranger's: whatever it is, reading it ends, reads no
// more than a bounded part and gives partitions inside the disk.
func FuzzContent(f *testing.F) {
	seed := make([]byte, 64<<10)
	copy(seed[510:], "\x55\xaa")
	seed[446+4], seed[446+8], seed[446+12] = 5, 1, 255
	f.Add(seed)
	f.Add([]byte("EFI PART"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		size := int64(len(raw))
		if size < 1024 {
			return
		}
		r := bytes.NewReader(raw)
		if _, err := Content(r, size, 512); err != nil {
			t.Fatal(err)
		}
		table, err := ReadTable(r, size, 512)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range table.Partitions {
			if p.Start < 0 || p.Size < 0 || p.Start+p.Size > size {
				t.Fatalf("partition outside the disk: %+v of %d", p, size)
			}
		}
	})
}

func FuzzFAT(f *testing.F) {
	boot := make([]byte, 16<<10)
	boot[11], boot[12], boot[13], boot[14], boot[16], boot[17], boot[19], boot[22] = 0, 2, 1, 1, 1, 16, 32, 1
	copy(boot[510:], "\x55\xaa")
	f.Add(boot)
	f.Fuzz(func(t *testing.T, raw []byte) {
		fat, err := OpenFAT(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		for _, dir := range []string{"", "EFI", "EFI/BOOT"} {
			if _, err := fat.List(dir); err != nil && !strings.Contains(err.Error(), "clusters") {
				t.Fatal(err)
			}
		}
	})
}
