package image

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/slipway-metal/slipway/agent/image/table"
)

// configDrive makes a volume by xorriso.
func configDrive(t testing.TB, label string, extra int) []byte {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "src", "openstack", "latest")
	if err := os.MkdirAll(src, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(src, "meta_data.json"), []byte(`{"uuid":"u"}`))
	writeFile(t, filepath.Join(src, "user_data"), bytes.Repeat([]byte("#"), extra))
	out := filepath.Join(dir, "iso")
	tool(t, "xorriso", "-as", "mkisofs", "-quiet", "-J", "-r", "-V", label, "-o", out, filepath.Join(dir, "src"))
	return readFile(t, out)
}

// mbrImage makes a disk image with an MBR and n partitions.
func mbrImage(t testing.TB, size int64, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mbr.raw")
	b := bytes.Repeat([]byte("x"), int(size))
	clear(b[:512])
	writeFile(t, path, b)
	s := filepath.Join(t.TempDir(), "script")
	writeFile(t, s, []byte(script))
	tool(t, "sh", "-c", "sfdisk -q "+path+" < "+s)
	return path
}

func write(t *testing.T, body, drive []byte, dev *fileDevice) (Report, error) {
	t.Helper()
	req := request(serve(t, body), body)
	req.ConfigDrive = drive
	return Write(t.Context(), req, dev, nil)
}

// The config drive gets a partition of its own at the end of a GPT disk.
func TestConfigDriveOnGPT(t *testing.T) {
	raw := readFile(t, gptImage(t, 24*mib))
	drive := configDrive(t, "config-2", mib)
	dev := newDevice(t, 40*mib)
	report, err := write(t, raw, drive, dev)
	if err != nil {
		t.Fatal(err)
	}
	assertImage(t, dev, raw)
	p := report.ConfigDrive
	if p == nil || p.Number != 3 || p.Size != 2*mib || p.Start%mib != 0 || p.Name != "config-2" || p.Type != table.TypeLinuxData {
		t.Fatalf("config drive %+v", p)
	}
	if p.End() < 38*mib {
		t.Errorf("the partition ends at %d, want the disk's end", p.End())
	}
	got := dev.bytes()[p.Start:p.End()]
	if !bytes.Equal(got[:len(drive)], drive) || len(bytes.Trim(got[len(drive):], "\x00")) != 0 {
		t.Error("the partition is not the drive followed by zeros")
	}
	if out := tool(t, "sgdisk", "-i", "3", dev.f.Name()); !strings.Contains(out, "'config-2'") || !strings.Contains(strings.ToLower(out), p.GUID) {
		t.Errorf("sgdisk -i 3: %s", out)
	}
}

func TestConfigDriveOnMBR(t *testing.T) {
	raw := readFile(t, mbrImage(t, 24*mib, "label: dos\nstart=2048, type=83, bootable\n"))
	drive := configDrive(t, "config-2", 100)
	dev := newDevice(t, 40*mib)
	report, err := write(t, raw, drive, dev)
	if err != nil {
		t.Fatal(err)
	}
	p := report.ConfigDrive
	if report.Table != table.MBR || p == nil || p.Number != 2 || p.End() != 40*mib {
		t.Fatalf("table %s, config drive %+v", report.Table, p)
	}
	got := dev.bytes()
	if !bytes.Equal(got[p.Start:p.Start+int64(len(drive))], drive) {
		t.Error("the partition does not hold the drive")
	}
	if !bytes.Equal(got[512:len(raw)], raw[512:]) {
		t.Error("the image changed outside of the table")
	}
	if out := tool(t, "sfdisk", "-V", dev.f.Name()); !strings.Contains(out, "No errors") {
		t.Errorf("sfdisk -V: %s", out)
	}
}

// A partition that the image made for the purpose is used, whether its name
// or the volume in it says so; there is never a second one.
func TestConfigDriveIntoTheImagesOwnPartition(t *testing.T) {
	drive := configDrive(t, "config-2", 100)
	for name, prepare := range map[string]func(path string){
		"by partition name": func(path string) {
			tool(t, "sgdisk", "-d", "2", "-n", "2:0:+4M", "-n", "3:0:+2M", "-c", "3:config-2", path)
		},
		"by volume label": func(path string) {
			tool(t, "sgdisk", "-d", "2", "-n", "2:0:+4M", "-n", "3:0:+2M", path)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			if _, err := f.WriteAt(configDrive(t, "CONFIG-2", 5), 9*mib); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := gptImage(t, 24*mib)
			prepare(path)
			dev := newDevice(t, 40*mib)
			report, err := write(t, readFile(t, path), drive, dev)
			if err != nil {
				t.Fatal(err)
			}
			p := report.ConfigDrive
			if p == nil || p.Number != 3 || p.Start != 9*mib || len(report.Partitions) != 3 {
				t.Fatalf("config drive %+v of %d partitions", p, len(report.Partitions))
			}
			if !bytes.Equal(dev.bytes()[p.Start:p.Start+int64(len(drive))], drive) {
				t.Error("the partition does not hold the drive")
			}
			if out := tool(t, "sgdisk", "-v", dev.f.Name()); !strings.Contains(out, "No problems found") {
				t.Errorf("sgdisk -v: %s", out)
			}
		})
	}
}

// What leaves no place for a config drive is refused before the first write.
func TestConfigDriveRefused(t *testing.T) {
	raw := readFile(t, gptImage(t, 24*mib))
	good := configDrive(t, "config-2", 100)
	small := gptImage(t, 24*mib)
	tool(t, "sgdisk", "-d", "2", "-n", "2:0:+1M", "-c", "2:config-2", small)
	for _, c := range []struct {
		name  string
		body  []byte
		drive []byte
		disk  int64
		err   error
		text  string
	}{
		{"no table", bytes.Repeat([]byte("fs"), 4*mib), good, 40 * mib, table.ErrNoTable, "no partition table"},
		{"no room", raw, good, 24 * mib, table.ErrNoRoom, "larger disk"},
		{"all MBR entries used", readFile(t, mbrImage(t, 24*mib, "label: dos\nsize=2MiB\nsize=2MiB\nsize=2MiB\nsize=2MiB\n")), good, 40 * mib, table.ErrNoRoom, "all four"},
		{"own partition too small", readFile(t, small), configDrive(t, "config-2", 2*mib), 40 * mib, nil, "enlarge it"},
		{"another label", raw, configDrive(t, "data", 9), 40 * mib, nil, `label is "data"`},
		{"no volume", raw, []byte("hunter2"), 40 * mib, nil, "neither an ISO 9660"},
		{"too large", raw, make([]byte, MaxConfigDrive+1), 40 * mib, nil, "larger than 64 MiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := newDevice(t, c.disk)
			_, err := write(t, c.body, c.drive, dev)
			if err == nil || !strings.Contains(err.Error(), c.text) || c.err != nil && !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %q", err, c.text)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error quotes a secret: %v", err)
			}
			dev.assertUntouched()
		})
	}
}

func TestDecodeConfigDrive(t *testing.T) {
	drive := configDrive(t, "config-2", 9)
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(drive); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString(z.Bytes())
	got, err := DecodeConfigDrive(text)
	if err != nil || !bytes.Equal(got, drive) {
		t.Fatalf("%d bytes, error %v", len(got), err)
	}
	for name, bad := range map[string]string{"cut": text[:len(text)/2&^3], "plain": "hunter2", "not gzip": "aHVudGVyMg=="} {
		if _, err := DecodeConfigDrive(bad); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// Disks of odd lengths and of 4096-byte sectors get their image.
func TestGeometry(t *testing.T) {
	path := gptImage(t, 24*mib)
	raw := readFile(t, path)
	for name, size := range map[string]int64{"equal to the image": 24 * mib, "one sector more": 24*mib + 512, "odd": 40*mib - 7*512} {
		t.Run(name, func(t *testing.T) {
			for format, body := range map[string][]byte{"raw": raw, "qcow2": qemuImg(t, path, "-c")} {
				dev := newDevice(t, size)
				if _, err := write(t, body, nil, dev); err != nil {
					t.Fatalf("%s: %v", format, err)
				}
				assertImage(t, dev, raw)
			}
		})
	}
	t.Run("image for 512-byte sectors on a 4096-byte disk", func(t *testing.T) {
		dev := newDevice(t, 40*mib)
		dev.sector = 4096
		_, err := write(t, raw, nil, dev)
		if !errors.Is(err, table.ErrSectorSize) {
			t.Fatalf("error %v", err)
		}
		dev.assertUntouched()
	})
	t.Run("4096-byte sectors", func(t *testing.T) {
		img := newDevice(t, 24*mib)
		b, err := file.OpenFromPath(img.f.Name(), false)
		if err != nil {
			t.Fatal(err)
		}
		w, err := b.Writable()
		if err != nil {
			t.Fatal(err)
		}
		parts := []*gpt.Partition{{Index: 1, Start: 256, End: 5000, Type: gpt.EFISystemPartition, Name: "esp"}}
		if err := (&gpt.Table{LogicalSectorSize: 4096, PhysicalSectorSize: 4096, ProtectiveMBR: true, Partitions: parts}).Write(w, 24*mib); err != nil {
			t.Fatal(err)
		}
		dev := newDevice(t, 40*mib+4096)
		dev.sector = 4096
		report, err := write(t, img.bytes(), configDrive(t, "config-2", 9), dev)
		if err != nil {
			t.Fatal(err)
		}
		out, err := file.OpenFromPath(dev.f.Name(), true)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = out.Close() }()
		got, err := gpt.Read(out, 4096, 4096)
		if err != nil || report.ConfigDrive.Number != 2 || int64(got.Partitions[1].Start)*4096 != report.ConfigDrive.Start {
			t.Errorf("config drive %+v, go-diskfs says %v", report.ConfigDrive, err)
		}
		if !bytes.Equal(dev.bytes()[mib:22*mib], img.bytes()[mib:22*mib]) {
			t.Error("the disk differs from the image")
		}
	})
	t.Run("image of no whole sector", func(t *testing.T) {
		body := append(bytes.Repeat([]byte("fs"), 2*mib), 'x')
		dev := newDevice(t, 8*mib)
		report, err := write(t, body, nil, dev)
		if err != nil {
			t.Fatal(err)
		}
		got := dev.bytes()
		if !bytes.Equal(got[:len(body)], body) || report.ImageBytes != int64(len(body)) || report.Table != table.None {
			t.Errorf("report %+v", report)
		}
	})
}

// Nothing of a disk's former life survives at its ends.
func TestOldBackupTableIsGone(t *testing.T) {
	dev := newDevice(t, 40*mib)
	tool(t, "sgdisk", "-Z", "-n", "1:0:0", dev.f.Name())
	body := bytes.Repeat([]byte("fs"), 2*mib)
	if _, err := write(t, body, nil, dev); err != nil {
		t.Fatal(err)
	}
	dev.assertNotBootable()
}

// However a write ends, by kill -9 or a power cut before any of its writes,
// the disk boots nothing until the whole image is durable on it.
func TestNothingBootsBeforeAllIsDurable(t *testing.T) {
	path := gptImage(t, 12*mib)
	raw := readFile(t, path)
	for name, body := range map[string][]byte{"raw": raw, "qcow2": qemuImg(t, path, "-c")} {
		t.Run(name, func(t *testing.T) {
			const size = 20 * mib
			dev := newDevice(t, size)
			tool(t, "sgdisk", "-n", "1:0:0", dev.f.Name()) // the disk's former life boots
			tails, checked := 0, 0
			dev.onWrite = func(off int64) error {
				dev.mu.Lock()
				defer dev.mu.Unlock()
				if off == size-mib {
					tails++
				}
				switch {
				case tails == 0: // the first write wipes the start
				case tails == 1 && off != size-mib:
					dev.assertNotBootable()
					checked++
				case tails == 2 && off == size-mib:
					// The first boot structure is about to be written.
					if dev.unflushed > 1 { // this write itself
						t.Errorf("%d writes were not durable before the boot structures", dev.unflushed-1)
					}
					if !bytes.Equal(dev.bytes()[mib:11*mib], raw[mib:11*mib]) {
						t.Error("boot structures are written before the image is whole")
					}
					dev.assertNotBootable()
				}
				return nil
			}
			if _, err := write(t, body, nil, dev); err != nil {
				t.Fatal(err)
			}
			if checked < 5 || tails != 2 {
				t.Errorf("%d writes seen, the disk's end written %d times", checked, tails)
			}
			assertImage(t, dev, raw)
		})
	}
}
