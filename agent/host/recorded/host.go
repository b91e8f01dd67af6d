package recorded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/agent/efi"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/scan"
	"github.com/slipway-metal/slipway/agent/probe"
	"github.com/slipway-metal/slipway/proto/agent"
)

// Host is a recorded machine: Dir holds sys and proc as recorded, and dev with a
// file for each disk that has content; a disk without one is all zeros.
type Host struct {
	Dir     string
	BootMAC string
	// Vars are the firmware's variables when the machine was booted by UEFI.
	Vars efi.Memory

	mu     sync.Mutex
	open   map[string]bool // by disk, opened for writing
	halted []host.Action
	clock  time.Time
}

func (h *Host) root() scan.Root { return scan.Root(h.Dir) }

// BootID implements host.Host.
func (h *Host) BootID() string { return h.root().BootID() }

// Inventory implements host.Host.
func (h *Host) Inventory(ctx context.Context) (agent.Inventory, error) {
	inv := h.root().Inventory(h.BootMAC)
	disks, err := h.Disks(ctx)
	inv.Disks = disks
	return inv, err
}

// Disks implements host.Host.
func (h *Host) Disks(ctx context.Context) ([]agent.Disk, error) {
	disks := h.root().Disks()
	for i := range disks {
		d := &disks[i]
		dev, err := h.OpenRead(ctx, *d)
		if err != nil {
			return nil, err
		}
		d.Content, err = probe.Content(dev, d.Size, d.LogicalSectors)
		if err := errors.Join(err, dev.Close()); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	return disks, ctx.Err()
}

// OpenRead implements host.Host.
func (h *Host) OpenRead(_ context.Context, d agent.Disk) (host.Device, error) {
	return OpenFile(filepath.Join(h.Dir, d.Name), d.Size, max(d.LogicalSectors, 512))
}

// OpenWrite implements host.Host.
func (h *Host) OpenWrite(ctx context.Context, d agent.Disk) (host.Device, error) {
	name := filepath.Base(d.Name)
	found, ok := h.root().Disk(name)
	if !ok {
		return nil, fmt.Errorf("disk %s is gone: %w", d.Identity(), host.ErrOtherDisk)
	}
	if err := host.CheckIdentity(d, found); err != nil {
		return nil, err
	}
	if h.root().ReadOnly(name) {
		return nil, fmt.Errorf("disk %s: %w", d.Identity(), host.ErrReadOnly)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open[name] {
		return nil, fmt.Errorf("disk %s is in use", d.Identity())
	}
	dev, err := h.OpenRead(ctx, d)
	if err != nil {
		return nil, err
	}
	f, ok := dev.(*File)
	if !ok {
		return nil, errors.New("not a file")
	}
	if h.open == nil {
		h.open = map[string]bool{}
	}
	h.open[name] = true
	f.direct = true
	f.closed = func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.open, name)
	}
	return f, nil
}

// EFI implements host.Host.
func (h *Host) EFI() (efi.Vars, error) {
	if h.Vars == nil {
		return nil, host.ErrNoEFI
	}
	return h.Vars, nil
}

// KernelLog implements host.Host.
func (h *Host) KernelLog() ([]byte, error) { return []byte("recorded machine\n"), nil }

// Record implements host.Host.
func (h *Host) Record() ([]byte, error) { return Capture(h.Dir) }

// SetClock implements host.Host.
func (h *Host) SetClock(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock = t
	return nil
}

// Clock is what SetClock set last.
func (h *Host) Clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clock
}

// Halt implements host.Host.
func (h *Host) Halt(a host.Action) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.halted = append(h.halted, a)
	return nil
}

// Halted is what the machine was told to do.
func (h *Host) Halted() []host.Action {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.halted
}

// File is a host.Device over a sparse file. Opened for writing it is as strict
// about sectors as O_DIRECT is.
type File struct {
	f      *os.File
	size   int64
	sector int
	direct bool
	closed func()
}

// OpenFile opens, or makes, a disk of size bytes in a file.
func OpenFile(path string, size int64, sector int) (*File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		if info.Size() != 0 {
			err = fmt.Errorf("%s has %d bytes, the recorded disk %d: %w", path, info.Size(), size, fs.ErrInvalid)
		} else {
			err = f.Truncate(size)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{f: f, size: size, sector: sector}, nil
}

var errAlign = errors.New("offset or length is not a multiple of the sector size")

func (d *File) check(off, n int64) error {
	switch s := int64(d.sector); {
	case off < 0 || n < 0 || off+n > d.size:
		return fmt.Errorf("%d bytes at %d are beyond the disk's %d: %w", n, off, d.size, fs.ErrInvalid)
	case d.direct && (off%s != 0 || n%s != 0):
		return fmt.Errorf("%d bytes at %d: %w", n, off, errAlign)
	}
	return nil
}

// ReadAt implements host.Device.
func (d *File) ReadAt(p []byte, off int64) (int, error) {
	if d.direct {
		if err := d.check(off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	return d.f.ReadAt(p, off)
}

// WriteAt implements host.Device.
func (d *File) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.f.WriteAt(p, off)
}

// Size implements host.Device.
func (d *File) Size() int64 { return d.size }

// SectorSize implements host.Device.
func (d *File) SectorSize() int { return d.sector }

// Zero implements host.Device.
func (d *File) Zero(off, n int64) error {
	if err := d.check(off, n); err != nil {
		return err
	}
	const piece = 1 << 20
	zero, have := make([]byte, piece), make([]byte, piece)
	for ; n > 0; off, n = off+piece, n-piece {
		part := zero[:min(n, piece)]
		// What is a hole already stays one.
		if _, err := d.f.ReadAt(have[:len(part)], off); err == nil && string(have[:len(part)]) == string(part) {
			continue
		}
		if _, err := d.f.WriteAt(part, off); err != nil {
			return err
		}
	}
	return nil
}

// Discard implements host.Device: the range reads back as before.
func (d *File) Discard(off, n int64) error { return d.check(off, n) }

// Flush implements host.Device.
func (d *File) Flush() error { return d.f.Sync() }

// Reread implements host.Device.
func (d *File) Reread() error { return nil }

// Close implements host.Device.
func (d *File) Close() error {
	if d.closed != nil {
		d.closed()
	}
	return d.f.Close()
}
