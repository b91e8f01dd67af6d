package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unsafe"
)

// fileDevice is a disk in a file. It holds its callers to the contract of
// Device, keeps unflushed writes apart from durable ones only by counting, and
// fails where it is told to.
type fileDevice struct {
	t      testing.TB
	f      *os.File
	size   int64
	sector int

	mu        sync.Mutex
	failWrite int64 // writes that cover this byte fail; -1 none
	failRead  int64 // reads that cover this byte fail; -2 all
	flipRead  int64 // reads of this byte give another value; -2 the first byte of all
	unflushed int
	writes    int
	onWrite   func(off int64) error
}

var errEIO = errors.New("input/output error")

// newDevice makes a disk full of old data, so that what is not written shows.
func newDevice(t testing.TB, size int64) *fileDevice {
	t.Helper()
	d := openDevice(t, filepath.Join(t.TempDir(), "disk"), size)
	old := bytes.Repeat([]byte("OLD DATA"), 128<<10)
	for off := int64(0); off < size; off += int64(len(old)) {
		if _, err := d.f.WriteAt(old[:min(int64(len(old)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// openDevice makes an empty disk.
func openDevice(t testing.TB, path string, size int64) *fileDevice {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &fileDevice{t: t, f: f, size: size, sector: 512, failWrite: -1, failRead: -1, flipRead: -1}
}

func (d *fileDevice) Size() int64     { return d.size }
func (d *fileDevice) SectorSize() int { return d.sector }
func (d *fileDevice) String() string  { return "test-disk" }

func (d *fileDevice) check(p []byte, off int64) error {
	n := int64(len(p))
	end := off + n
	switch {
	case uintptr(unsafe.Pointer(unsafe.SliceData(p)))%Alignment != 0:
		return fmt.Errorf("buffer at %p is not aligned", p)
	case off%Alignment != 0 || off < 0 || end > d.size || n == 0:
		return fmt.Errorf("offset %d, length %d on a disk of %d bytes", off, n, d.size)
	case n%Alignment != 0 && (end != d.size || n%int64(d.sector) != 0):
		return fmt.Errorf("length %d at %d is not aligned", n, off)
	}
	return nil
}

func (d *fileDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(p, off); err != nil {
		d.t.Errorf("ReadAt breaks the contract: %v", err)
		return 0, err
	}
	d.mu.Lock()
	failed, flip := d.failRead, d.flipRead
	d.mu.Unlock()
	if failed == -2 || failed >= off && failed < off+int64(len(p)) {
		return 0, errEIO
	}
	n, err := d.f.ReadAt(p, off)
	if flip == -2 {
		flip = off
	}
	if flip >= off && flip < off+int64(len(p)) {
		p[flip-off] ^= 1
	}
	return n, err
}

func (d *fileDevice) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(p, off); err != nil {
		d.t.Errorf("WriteAt breaks the contract: %v", err)
		return 0, err
	}
	d.mu.Lock()
	failed, hook := d.failWrite, d.onWrite
	d.unflushed++
	d.writes++
	d.mu.Unlock()
	if hook != nil {
		if err := hook(off); err != nil {
			return 0, err
		}
	}
	if failed >= off && failed < off+int64(len(p)) {
		return 0, errEIO
	}
	return d.f.WriteAt(p, off)
}

func (d *fileDevice) Zero(off, n int64) error {
	if off%Alignment != 0 || n <= 0 || off+n > d.size || n%Alignment != 0 && off+n != d.size {
		d.t.Errorf("Zero breaks the contract: offset %d, length %d", off, n)
	}
	d.mu.Lock()
	d.unflushed++
	d.writes++
	d.mu.Unlock()
	for n > 0 {
		c := min(n, int64(len(zeros)))
		if _, err := d.f.WriteAt(zeros[:c], off); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

func (d *fileDevice) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unflushed = 0
	return nil
}

// bytes is the disk's content.
func (d *fileDevice) bytes() []byte {
	d.t.Helper()
	b := make([]byte, d.size)
	if _, err := d.f.ReadAt(b, 0); err != nil {
		d.t.Fatal(err)
	}
	return b
}

// assertNotBootable fails when firmware could find anything on the disk: an
// MBR, a GPT header at either end, for either sector size.
func (d *fileDevice) assertNotBootable() {
	d.t.Helper()
	b := d.bytes()
	if b[510] == 0x55 && b[511] == 0xaa {
		d.t.Error("the disk has an MBR signature")
	}
	for _, s := range []int64{512, 4096} {
		for _, off := range []int64{s, d.size - s} {
			if string(b[off:off+8]) == "EFI PART" {
				d.t.Errorf("the disk has a GPT header at byte %d", off)
			}
		}
	}
}

// assertUntouched fails when anything was written at all.
func (d *fileDevice) assertUntouched() {
	d.t.Helper()
	if d.writes != 0 {
		d.t.Errorf("%d writes reached the disk, want none", d.writes)
	}
}
