package devices

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel's ACPI events (drivers/acpi/event.c): a generic netlink family,
// its multicast group, and where in a message the device class stands.
const (
	acpiFamily     = "acpi_event"
	acpiClassBytes = 20 // acpi_device_class
	acpiHeader     = unix.NLMSG_HDRLEN + unix.GENL_HDRLEN + unix.NLA_HDRLEN
	powerButton    = "button/power"
)

// PowerButton calls pressed whenever the machine's power button is pressed, by
// a hand or by a BMC that switches off softly. It returns only with an error.
func PowerButton(pressed func()) error {
	family, err := netlink.GenlFamilyGet(acpiFamily)
	if err != nil {
		return fmt.Errorf("find the kernel's ACPI events: %w", err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return fmt.Errorf("listen to the power button: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("listen to the power button: %w", err)
	}
	for _, group := range family.Groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group.ID)); err != nil {
			return fmt.Errorf("listen to the power button: join %s: %w", group.Name, err)
		}
	}
	buf := make([]byte, 8<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOBUFS):
			continue // a lost press is pressed again
		case err != nil:
			return fmt.Errorf("listen to the power button: %w", err)
		case isPowerButton(buf[:n]):
			pressed()
		}
	}
}

// isPowerButton tells whether a message of the family is a press of the power
// button. The same class comes when the machine has woken (type 2).
func isPowerButton(msg []byte) bool {
	const typeAt = acpiHeader + acpiClassBytes + 16 // after the bus id, char[15] and padding
	if len(msg) < typeAt+4 {
		return false
	}
	class, _, _ := bytes.Cut(msg[acpiHeader:acpiHeader+acpiClassBytes], []byte{0})
	const pressedType = 0x80 // ACPI_BUTTON_NOTIFY_STATUS
	return string(class) == powerButton && binary.NativeEndian.Uint32(msg[typeAt:]) == pressedType
}
