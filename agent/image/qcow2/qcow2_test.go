package qcow2

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	qcow2reader "github.com/lima-vm/go-qcow2reader"
)

const mib = 1 << 20

func qemuImg(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

// content is a disk of runs of data, text and nothing.
func content(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{2})
	for off := 0; off < size; off += 96 << 10 {
		piece := b[off:min(off+96<<10, size)]
		switch off / (96 << 10) % 4 {
		case 0:
			_, _ = r.Read(piece)
		case 1, 2:
			copy(piece, bytes.Repeat([]byte("slipway "), len(piece)/8))
		}
	}
	return b
}

// make writes raw as a qcow2 file.
func convert(t testing.TB, raw []byte, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, append(append([]string{"convert", "-O", "qcow2", "-f", "raw"}, args...), in, out)...)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read assembles the disk by Stream, as agent/image does; limit bounds what a
// hostile image may make it hold.
func read(file []byte, limit int64) ([]byte, error) {
	h, err := Parse(file[:min(len(file), FirstBytes)], int64(len(file)))
	if err != nil {
		return nil, err
	}
	if h.Size > limit {
		return nil, errors.New("too large for this test")
	}
	m, err := Open(bytes.NewReader(file), file, int64(len(file)))
	if err != nil {
		return nil, err
	}
	disk := bytes.Repeat([]byte{0xee}, int(m.Size)) // what nobody fills shows
	for _, hole := range m.Holes() {
		clear(disk[hole.Off : hole.Off+hole.Len])
	}
	d, err := m.NewDecoder()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	batch := &Batch{}
	err = m.Stream(bytes.NewReader(file), func() (*Batch, error) { return batch, nil }, func(b *Batch) error {
		d.Reset(b)
		for off := b.Off; ; {
			n, err := d.Read(disk[off : b.Off+b.Len])
			off += int64(n)
			if errors.Is(err, io.EOF) || err == nil && off == b.Off+b.Len {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	if err != nil {
		return nil, err
	}
	head := make([]byte, min(mib, len(disk)))
	if err := m.ReadHead(bytes.NewReader(file), head); err != nil {
		return nil, err
	}
	if !bytes.Equal(head, disk[:len(head)]) {
		return nil, errors.New("the head differs from the stream")
	}
	return disk, nil
}

// variants are what qemu-img makes.
var variants = map[string][]string{
	"v2":              {"-o", "compat=0.10"},
	"v3":              {},
	"lazy refcounts":  {"-o", "lazy_refcounts=on"},
	"preallocated":    {"-o", "preallocation=metadata"},
	"refcounts of 1":  {"-o", "refcount_bits=1"},
	"zlib":            {"-c"},
	"zstd":            {"-c", "-o", "compression_type=zstd"},
	"4 KiB clusters":  {"-c", "-o", "cluster_size=4096"},
	"2 MiB clusters":  {"-c", "-o", "cluster_size=2M"},
	"2 MiB zstd":      {"-c", "-o", "cluster_size=2M,compression_type=zstd"},
	"extended L2":     {"-o", "extended_l2=on,cluster_size=64k"},
	"extended L2 zip": {"-c", "-o", "extended_l2=on,cluster_size=128k"},
	"any order":       {"-W", "-m", "8"},
}

func TestReadsWhatQEMUWrites(t *testing.T) {
	for _, size := range []int{3 * mib, 5*mib + 512} { // the second ends inside a cluster
		raw := content(size)
		for name, args := range variants {
			file := convert(t, raw, args...)
			got, err := read(file, 1<<30)
			if err != nil {
				t.Errorf("%s, %d bytes: %v", name, size, err)
				continue
			}
			if !bytes.Equal(got, raw) {
				t.Errorf("%s, %d bytes: the disk differs", name, size)
			}
		}
	}
}

// Writes after the fact leave clusters out of order, zero flags, half-written
// extended clusters and snapshots: the active disk is what counts.
func TestReadsALivedInImage(t *testing.T) {
	for name, opts := range map[string]string{"plain": "cluster_size=65536", "extended L2": "cluster_size=128k,extended_l2=on"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, flat := filepath.Join(dir, "disk"), filepath.Join(dir, "flat")
			qemuImg(t, "create", "-q", "-f", "qcow2", "-o", opts, path, "64M")
			io := func(cmds ...string) {
				args := []string{"-f", "qcow2"}
				for _, c := range cmds {
					args = append(args, "-c", c)
				}
				if out, err := exec.Command("qemu-io", append(args, path)...).CombinedOutput(); err != nil {
					t.Fatalf("qemu-io: %v\n%s", err, out)
				}
			}
			io("write -P 1 40M 1M", "write -P 2 3M 8k", "write -P 3 1M 300k", "write -c -P 4 20M 128k")
			qemuImg(t, "snapshot", "-c", "before", path)
			io("write -P 5 40M 64k", "write -z 1M 64k", "write -P 6 10M 4k", "discard 41000k 200k", "write -P 7 0 4k")
			qemuImg(t, "convert", "-O", "raw", path, flat)
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(flat)
			if err != nil {
				t.Fatal(err)
			}
			got, err := read(file, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("the disk differs from qemu-img's")
			}
		})
	}
}

// A map too large for the memory it may take is refused by name.
func TestMapLimit(t *testing.T) {
	m := &Image{Header: Header{ClusterSize: 65536}, extents: make([]extent, MaxExtents)}
	if err := m.addPlain(1<<20, 9); !errors.Is(err, ErrRefused) {
		t.Errorf("error %v", err)
	}
}

// The tables that pass in the stream must be those that were read before.
func TestChangedTables(t *testing.T) {
	file := convert(t, content(2*mib))
	m, err := Open(bytes.NewReader(file), file, int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(file)
	changed[m.L1Offset+6] ^= 2
	err = m.Stream(bytes.NewReader(changed), func() (*Batch, error) { return &Batch{}, nil }, func(*Batch) error { return nil })
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
	if err := m.Stream(bytes.NewReader(file[:len(file)/2]), func() (*Batch, error) { return &Batch{}, nil }, func(*Batch) error { return nil }); !errors.Is(err, ErrCorrupt) {
		t.Errorf("half a file: error %v", err)
	}
}

// Whatever the bytes, reading ends without a panic, within its memory, and
// what is accepted is what go-qcow2reader reads.
func FuzzRead(f *testing.F) {
	raw := content(256 << 10)
	for _, args := range variants {
		if b := convert(f, raw, append([]string{"-o", "cluster_size=4096"}, args...)...); len(b) < 1<<20 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := read(file, 8*mib)
		if err != nil {
			return
		}
		img, err := qcow2reader.Open(bytes.NewReader(file))
		if err != nil || img.Readable() != nil || img.Size() != int64(len(got)) {
			return // it is stricter in places that do not matter here
		}
		defer func() { _ = img.Close() }()
		want := make([]byte, len(got))
		if n, err := img.ReadAt(want, 0); n < len(want) {
			t.Logf("the other reader: %v", err)
			return
		}
		if !bytes.Equal(got, want) {
			t.Error("two readers disagree")
		}
	})
}
