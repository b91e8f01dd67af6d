// Package bmc talks to baseboard management controllers: power, boot device,
// identity, virtual media. A driver gives a BMC that has some of the capability
// interfaces below; callers find them by type assertion. Every write is read
// back: a nil error means that the BMC shows what was asked for.
package bmc

import (
	"context"
	"fmt"
)

// PowerState is a machine's power as Ironic spells it; "" is unknown.
type PowerState string

// The power states.
const (
	PowerUnknown PowerState = ""
	PowerOn      PowerState = "power on"
	PowerOff     PowerState = "power off"
)

// Action is a change of power, spelled as the targets of Ironic's PUT
// /v1/nodes/X/states/power.
type Action string

// The actions.
const (
	ActionOn         Action = "power on"
	ActionOff        Action = "power off"      // cuts the power
	ActionSoftOff    Action = "soft power off" // presses the power button
	ActionReboot     Action = "rebooting"      // off, then on
	ActionSoftReboot Action = "soft rebooting" // soft off, then on
)

// Target is the power state in which the action ends.
func (a Action) Target() PowerState {
	switch a {
	case ActionOff, ActionSoftOff:
		return PowerOff
	case ActionOn, ActionReboot, ActionSoftReboot:
		return PowerOn
	}
	return PowerUnknown
}

// ParseAction reads an action; the error lists what is accepted.
func ParseAction(s string) (Action, error) {
	switch a := Action(s); a {
	case ActionOn, ActionOff, ActionSoftOff, ActionReboot, ActionSoftReboot:
		return a, nil
	}
	return "", fmt.Errorf("unknown power action %q: use one of %q, %q, %q, %q, %q", s,
		ActionOn, ActionOff, ActionReboot, ActionSoftOff, ActionSoftReboot)
}

// Device is what a machine boots from, spelled as Ironic's boot devices.
type Device string

// The boot devices. DeviceDefault is the firmware's own order.
const (
	DevicePXE      Device = "pxe"
	DeviceDisk     Device = "disk"
	DeviceCDROM    Device = "cdrom"
	DeviceBIOS     Device = "bios" // the firmware's set-up
	DeviceUEFIHTTP Device = "uefihttp"
	DeviceDefault  Device = ""
)

// Boot is a boot device and how long it holds.
type Boot struct {
	Device     Device
	Persistent bool // false: for the next boot only
}

// Facts are what a BMC says about its machine. Unknown fields are zero.
type Facts struct {
	UUID, Serial, SKU   string
	Manufacturer, Model string
	BIOSVersion         string
	MACs                []string // lower case, colons, sorted
	CPUs                int      // sockets or cores, as the BMC counts
	MemoryMiB           int
}

// BMC is an opened controller. Its methods, and those of the capabilities it
// has, may be called concurrently; calls to one address happen one at a time.
type BMC interface {
	// Driver is the hardware type, e.g. "redfish".
	Driver() string
	// Address is what errors and logs call the BMC. It holds no secret.
	Address() string
	// Close ends sessions at the BMC. The machine is left as it is.
	Close(ctx context.Context) error
}

// Power switches a machine.
type Power interface {
	PowerState(ctx context.Context) (PowerState, error)
	// SetPower carries out a and waits until the BMC shows its target, within
	// the driver's limit (Timeouts) and ctx. It does nothing when a machine that
	// should be on or off is. Reboot passes through power off, so that it can be
	// seen to have happened; a machine that is off is switched on.
	SetPower(ctx context.Context, a Action) error
}

// BootDevice chooses what a machine boots from.
type BootDevice interface {
	BootDevice(ctx context.Context) (Boot, error)
	// SetBootDevice makes the machine boot from dev once, or from now on.
	SetBootDevice(ctx context.Context, dev Device, persistent bool) error
	// BootDevices lists what the machine offers.
	BootDevices(ctx context.Context) ([]Device, error)
}

// Identity tells whose BMC this is.
type Identity interface {
	Identity(ctx context.Context) (Facts, error)
}

// VirtualMedia is a CD drive that reads an ISO image from a web server.
type VirtualMedia interface {
	// Media is the URL of the inserted image, "" when the drive is empty. Some
	// BMCs tell the file's name only.
	Media(ctx context.Context) (string, error)
	// InsertMedia attaches the image at an http or https URL, in place of another.
	InsertMedia(ctx context.Context, url string) error
	// EjectMedia empties the drive; an empty one is no error.
	EjectMedia(ctx context.Context) error
}
