// Package hosttest is the behaviour that every host.Device has, on a real block
// device as on a recorded disk.
package hosttest

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/slipway-metal/slipway/agent/host"
)

// Size is the disk that Device wants, bytes.
const Size = 8 << 20

// piece is a multiple of every sector size, bytes.
const piece = 64 << 10

// Aligned is a buffer that O_DIRECT takes.
func Aligned(n int) []byte {
	const to = 4096
	b := make([]byte, n+to)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & (to - 1))
	return b[off : off+n]
}

// Device checks a disk of Size bytes that open opens for writing, and again.
func Device(t *testing.T, open func(t *testing.T) host.Device) {
	t.Helper()
	data := Aligned(piece)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(data) //nolint:errcheck // never fails
	reopen := func(t *testing.T, do func(d host.Device)) {
		t.Helper()
		d := open(t)
		do(d)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	read := func(t *testing.T, d host.Device, off int64) []byte {
		t.Helper()
		got := Aligned(piece)
		_, err := d.ReadAt(got, off)
		must(t, err)
		return got
	}
	t.Run("size", func(t *testing.T) {
		reopen(t, func(d host.Device) {
			if d.Size() != Size || d.SectorSize() < 512 || d.SectorSize()&(d.SectorSize()-1) != 0 {
				t.Fatalf("size %d, sector %d", d.Size(), d.SectorSize())
			}
		})
	})
	t.Run("what is written and flushed is there when the disk is opened again", func(t *testing.T) {
		for _, off := range []int64{0, piece, Size - piece} {
			reopen(t, func(d host.Device) {
				_, err := d.WriteAt(data, off)
				must(t, err)
				must(t, d.Flush())
			})
			reopen(t, func(d host.Device) {
				if !bytes.Equal(read(t, d, off), data) {
					t.Fatalf("other data at %d", off)
				}
			})
		}
	})
	t.Run("zeros reach their range and no further", func(t *testing.T) {
		reopen(t, func(d host.Device) {
			for off := int64(0); off < 3*piece; off += piece {
				_, err := d.WriteAt(data, off)
				must(t, err)
			}
			must(t, d.Zero(piece, piece))
			must(t, d.Zero(0, 0))
			must(t, d.Flush())
			if !bytes.Equal(read(t, d, 0), data) || !bytes.Equal(read(t, d, 2*piece), data) {
				t.Fatal("zeros reached further")
			}
			if !bytes.Equal(read(t, d, piece), make([]byte, piece)) {
				t.Fatal("no zeros")
			}
		})
	})
	t.Run("zeros to the very end", func(t *testing.T) {
		reopen(t, func(d host.Device) {
			_, err := d.WriteAt(data, Size-piece)
			must(t, err)
			must(t, d.Zero(Size-piece, piece))
			if !bytes.Equal(read(t, d, Size-piece), make([]byte, piece)) {
				t.Fatal("no zeros")
			}
		})
	})
	t.Run("nothing goes beyond the end or between sectors", func(t *testing.T) {
		reopen(t, func(d host.Device) {
			if _, err := d.WriteAt(data, Size); err == nil {
				t.Error("wrote beyond the end")
			}
			if err := d.Zero(Size-piece, 2*piece); err == nil {
				t.Error("zeroed beyond the end")
			}
			if _, err := d.WriteAt(data[:100], 0); err == nil {
				t.Error("wrote a part of a sector")
			}
			if err := d.Zero(100, piece); err == nil {
				t.Error("zeroed from within a sector")
			}
		})
	})
	t.Run("partitions are read again", func(t *testing.T) {
		reopen(t, func(d host.Device) { must(t, d.Reread()) })
	})
}
