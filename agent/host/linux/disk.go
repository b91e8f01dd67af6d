package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/proto/agent"
)

// OpenRead implements host.Host: buffered, so that any range may be read.
func (h *Host) OpenRead(_ context.Context, d agent.Disk) (host.Device, error) {
	f, err := os.OpenFile(d.Name, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Identity(), err)
	}
	return newDevice(f, d)
}

// OpenWrite implements host.Host. O_EXCL on a block device makes the kernel
// refuse when a file system, md or anybody else holds it; O_DIRECT keeps the
// page cache out, which a ramdisk has no RAM for.
func (h *Host) OpenWrite(_ context.Context, d agent.Disk) (host.Device, error) {
	name := kernelName(d)
	found, ok := root.Disk(name)
	if !ok {
		return nil, fmt.Errorf("disk %s is gone: %w", d.Identity(), host.ErrOtherDisk)
	}
	if err := host.CheckIdentity(d, found); err != nil {
		return nil, err
	}
	if root.ReadOnly(name) {
		return nil, fmt.Errorf("disk %s: %w", d.Identity(), host.ErrReadOnly)
	}
	f, err := os.OpenFile(d.Name, os.O_RDWR|unix.O_EXCL|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("disk %s is in use by the kernel (mounted, md or LVM): %w", d.Identity(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Identity(), err)
	}
	// Between the look and the open the name could have moved to another disk:
	// the open file's number must still be that of the disk looked at.
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("disk %s: %w", d.Identity(), err), f.Close())
	}
	if again, ok := root.Disk(name); !ok || host.CheckIdentity(d, again) != nil || !root.HasNumber(name, unix.Major(st.Rdev), unix.Minor(st.Rdev)) {
		return nil, errors.Join(fmt.Errorf("disk %s moved while it was opened: %w", d.Identity(), host.ErrOtherDisk), f.Close())
	}
	return newDevice(f, d)
}

// device is a block device.
type device struct {
	*os.File
	id     agent.DiskIdentity
	size   int64
	sector int
}

func newDevice(f *os.File, d agent.Disk) (*device, error) {
	dev := &device{File: f, id: d.Identity()}
	var size uint64
	if err := dev.ioctl("size", unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	var sector int32
	if err := dev.ioctl("sector size", unix.BLKSSZGET, unsafe.Pointer(&sector)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	dev.size, dev.sector = int64(size), int(sector)
	return dev, nil
}

// ioctl does one call on the open file; it uses SyscallConn so that the file
// stays in Go's poller's hands.
func (d *device) ioctl(what string, req uint, arg unsafe.Pointer) error {
	raw, err := d.SyscallConn()
	if err != nil {
		return fmt.Errorf("disk %s: %s: %w", d.id, what, err)
	}
	var errno unix.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(req), uintptr(arg))
	}); err != nil {
		return fmt.Errorf("disk %s: %s: %w", d.id, what, err)
	}
	if errno != 0 {
		return fmt.Errorf("disk %s: %s: %w", d.id, what, errno)
	}
	return nil
}

// Size is bytes.
func (d *device) Size() int64 { return d.size }

// SectorSize is the logical sector, bytes.
func (d *device) SectorSize() int { return d.sector }

// Zero uses BLKZEROOUT: the disk's write-zeroes where it has it, else the kernel
// writes zeros itself; the range reads back as zeros either way.
func (d *device) Zero(off, n int64) error {
	return d.rangeIoctl("write zeros", unix.BLKZEROOUT, off, n)
}

// Discard uses BLKDISCARD.
func (d *device) Discard(off, n int64) error { return d.rangeIoctl("discard", unix.BLKDISCARD, off, n) }

func (d *device) rangeIoctl(what string, req uint, off, n int64) error {
	if n == 0 {
		return nil
	}
	span := [2]uint64{uint64(off), uint64(n)}
	if err := d.ioctl(what, req, unsafe.Pointer(&span)); err != nil {
		return fmt.Errorf("%w (%d bytes at %d)", err, n, off)
	}
	return nil
}

// Flush waits for the disk's own cache, and drops the kernel's pages of the disk.
func (d *device) Flush() error {
	if err := d.Sync(); err != nil {
		return fmt.Errorf("disk %s: flush: %w", d.id, err)
	}
	return d.ioctl("drop caches", unix.BLKFLSBUF, nil)
}

// Reread makes the kernel read the partition table again. A disk without a
// table, or one that can't be partitioned (a loop device), is no error.
func (d *device) Reread() error {
	err := d.ioctl("re-read partitions", unix.BLKRRPART, nil)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}
