package devices

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Event is a kernel uevent.
type Event struct {
	Action    string // "add", "change", "remove", …
	DevPath   string // under /sys
	Subsystem string
	Modalias  string // empty if the device has none
	DevName   string // under /dev, if it has a node
	DevType   string // "disk", "partition", …
	Interface string // network interfaces
}

// ParseEvent reads a kobject uevent message: "ACTION@PATH", then KEY=VALUE, all
// ended by NUL (lib/kobject_uevent.c).
func ParseEvent(msg []byte) (Event, error) {
	head, rest, _ := strings.Cut(string(msg), "\x00")
	action, devPath, ok := strings.Cut(head, "@")
	if !ok {
		return Event{}, fmt.Errorf("uevent does not begin with ACTION@PATH: %.40q", head)
	}
	e := Event{Action: action, DevPath: devPath}
	for pair := range strings.SplitSeq(rest, "\x00") {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "SUBSYSTEM":
			e.Subsystem = value
		case "MODALIAS":
			e.Modalias = value
		case "DEVNAME":
			e.DevName = value
		case "DEVTYPE":
			e.DevType = value
		case "INTERFACE":
			e.Interface = value
		}
	}
	return e, nil
}

// Listener receives the kernel's uevents.
type Listener struct{ fd int }

// socketBytes holds some thousands of uevents, a burst of a large machine.
const socketBytes = 4 << 20

// Listen subscribes to the kernel's uevents. Listen first and walk /sys after:
// then no device falls between the two.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel's device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to the kernel's device events: %w", err), unix.Close(fd))
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBytes); err != nil {
		return nil, errors.Join(fmt.Errorf("enlarge the buffer for device events: %w", err), unix.Close(fd))
	}
	return &Listener{fd: fd}, nil
}

// ErrLost says that events came faster than they were read: walk /sys again.
var ErrLost = errors.New("device events were lost")

// Next waits for the next event.
func (l *Listener) Next(buf []byte) (Event, error) {
	for {
		n, _, err := unix.Recvfrom(l.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			return Event{}, ErrLost
		case err != nil:
			return Event{}, fmt.Errorf("receive device events: %w", err)
		}
		return ParseEvent(buf[:n])
	}
}

// Present calls f with the modalias of every device on every bus below sys.
func Present(sys string, f func(modalias string)) error {
	buses, err := os.ReadDir(filepath.Join(sys, "bus"))
	if err != nil {
		return fmt.Errorf("list buses: %w", err)
	}
	for _, bus := range buses {
		dir := filepath.Join(sys, "bus", bus.Name(), "devices")
		devices, err := os.ReadDir(dir)
		if err != nil {
			continue // a bus without devices, or gone
		}
		for _, d := range devices {
			text, err := os.ReadFile(filepath.Join(dir, d.Name(), "modalias"))
			if err != nil {
				continue // most devices of some buses have none
			}
			if alias := strings.TrimSpace(string(text)); alias != "" {
				f(alias)
			}
		}
	}
	return nil
}
