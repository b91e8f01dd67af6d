// Package host is what the agent needs of the machine it runs on. Everything
// above it is the same on metal (host/linux) and on a recorded machine
// (host/recorded).
package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/slipway-metal/slipway/agent/efi"
	"github.com/slipway-metal/slipway/proto/agent"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNoEFI: the machine was booted by BIOS, so it has no boot entries.
	ErrNoEFI = errors.New("the machine was not booted by UEFI")
	// ErrOtherDisk: the disk at this name is not the one that was meant.
	ErrOtherDisk = errors.New("not the disk that was meant")
	// ErrReadOnly: the disk refuses writes.
	ErrReadOnly = errors.New("disk is read-only")
)

// Action is how the agent's life ends.
type Action int

// The ends of an agent's life.
const (
	PowerOff Action = iota + 1
	Reboot
	Lockdown // all links down, the machine stays on
)

// String is the form that logs print.
func (a Action) String() string {
	switch a {
	case PowerOff:
		return "power off"
	case Reboot:
		return "reboot"
	case Lockdown:
		return "lock down"
	default:
		return fmt.Sprintf("action %d", int(a))
	}
}

// Device is one open whole disk. It has what image.Write needs of its target.
// Offsets and lengths are bytes; a Linux disk is opened with O_DIRECT, so for
// ReadAt and WriteAt they and the memory must be multiples of SectorSize unless
// the implementation says otherwise.
type Device interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Size() int64
	SectorSize() int
	// Zero makes n bytes at off read back as zeros.
	Zero(off, n int64) error
	// Flush returns when everything written is on stable storage.
	Flush() error
	// Discard tells the disk that n bytes at off are not needed. They may read
	// back as anything afterwards.
	Discard(off, n int64) error
	// Reread makes the kernel forget what it knew of the disk's partitions.
	Reread() error
	Close() error
}

// Host is the machine.
type Host interface {
	// BootID is the kernel's boot id, which orders are bound to.
	BootID() string
	// Inventory describes the whole machine.
	Inventory(ctx context.Context) (agent.Inventory, error)
	// Disks describes the disks only, with their content.
	Disks(ctx context.Context) ([]agent.Disk, error)
	// OpenRead opens d for reading.
	OpenRead(ctx context.Context, d agent.Disk) (Device, error)
	// OpenWrite opens d exclusively. It looks at the disk once more and fails
	// with ErrOtherDisk when its identity is no longer d's.
	OpenWrite(ctx context.Context, d agent.Disk) (Device, error)
	// EFI gives the firmware's variables, or ErrNoEFI.
	EFI() (efi.Vars, error)
	// KernelLog is the kernel's ring buffer as text.
	KernelLog() ([]byte, error)
	// Record is the machine as a recording, from which tests can build it again.
	Record() ([]byte, error)
	// SetClock sets the system clock.
	SetClock(t time.Time) error
	// Halt ends the machine's present life. It returns only when it failed, or
	// after a Lockdown.
	Halt(a Action) error
}

// CheckIdentity is OpenWrite's last look: want is the disk that was resolved,
// found the one that stands at its name now.
func CheckIdentity(want, found agent.Disk) error {
	if w, f := want.Identity(), found.Identity(); !w.Matches(f) {
		return fmt.Errorf("%s: %w: wanted %s, found %s; inspect the node again", want.Name, ErrOtherDisk, w, f)
	}
	return nil
}
