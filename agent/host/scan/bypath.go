package scan

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// raw is a file's bytes; nil when it can't be read.
func (r Root) raw(elem ...string) []byte {
	b, err := os.ReadFile(r.path(elem...))
	if err != nil {
		return nil
	}
	return b
}

var (
	ataPort   = regexp.MustCompile(`^ata(\d+)$`)
	usbPort   = regexp.MustCompile(`^\d+-([\d.]+(?::[\d.]+)?)$`)
	scsiHost  = regexp.MustCompile(`^host(\d+)$`)
	sasEnd    = regexp.MustCompile(`^end_device-`)
	nvmeSpace = regexp.MustCompile(`^nvme\d+(c\d+)?n\d+$`)
)

// byPath is the name udev's path_id builtin would give the disk under
// /dev/disk/by-path: there is no udev in the ramdisk, and hints and orders fall
// back to it for disks that have neither WWN nor serial. dev is the disk's
// place under /sys/devices. It is "" where path_id gives none.
func (r Root) byPath(dev string) string {
	root := r.path("sys/devices") + "/"
	if evaluated, err := filepath.EvalSymlinks(r.path("sys/devices")); err == nil {
		root = evaluated + "/"
	}
	rel, ok := strings.CutPrefix(dev, root)
	if !ok {
		return ""
	}
	parts := strings.Split(rel, "/")
	var tail []string
	var scsi, usb bool
	bus := ""
	for i := len(parts) - 1; i >= 0 && bus == ""; i-- {
		name := parts[i]
		here := filepath.Join(append([]string{root}, parts[:i+1]...)...)
		switch {
		case nvmeSpace.MatchString(name):
			nsid, err := os.ReadFile(filepath.Join(here, "nsid"))
			if err != nil {
				return ""
			}
			tail = append([]string{"nvme-" + clean(string(nsid))}, tail...)
		case hctl.MatchString(name) && !scsi:
			scsi = true
			part := r.scsiPath(root, parts[:i+1])
			if part == "" {
				return ""
			}
			tail = append([]string{part}, tail...)
		case usbPort.MatchString(name) && !usb: // the interface, 1-1:1.0, names its port too
			usb = true
			tail = append([]string{"usb-0:" + usbPort.FindStringSubmatch(name)[1]}, tail...)
		case pciAddress.MatchString(name):
			bus = "pci-" + name
		case strings.Contains(name, ".") && i == 1 && parts[0] == "platform":
			bus = "platform-" + name
		}
	}
	if bus == "" {
		return ""
	}
	return strings.Join(append([]string{bus}, tail...), "-")
}

// scsiPath is path_id's name of a SCSI disk below its controller; parts end in
// its address host:channel:target:LUN.
func (r Root) scsiPath(root string, parts []string) string {
	var host, channel, target, lun int
	if _, err := fmt.Sscanf(parts[len(parts)-1], "%d:%d:%d:%d", &host, &channel, &target, &lun); err != nil {
		return ""
	}
	for i := len(parts) - 1; i >= 0; i-- {
		switch {
		case sasEnd.MatchString(parts[i]):
			phy := r.text("sys/class/sas_device", parts[i], "phy_identifier")
			if phy == "" {
				return ""
			}
			return fmt.Sprintf("sas-phy%s-lun-%d", phy, lun)
		case ataPort.MatchString(parts[i]):
			port := r.text("sys/class/ata_port", parts[i], "port_no")
			if port == "" {
				port = ataPort.FindStringSubmatch(parts[i])[1]
			}
			if target != 0 { // behind a port multiplier
				return fmt.Sprintf("ata-%s.%d", port, target)
			}
			return "ata-" + port
		case scsiHost.MatchString(parts[i]):
			if ok, base := lowestHost(filepath.Join(append([]string{root}, parts[:i]...)...)); ok && i > 0 && !ataPort.MatchString(parts[i-1]) {
				return fmt.Sprintf("scsi-%d:%d:%d:%d", host-base, channel, target, lun)
			}
		}
	}
	return ""
}

// lowestHost is the smallest SCSI host number below a controller: path_id counts
// from it, because the kernel's numbers change from boot to boot.
func lowestHost(dir string) (bool, int) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, 0
	}
	best := -1
	for _, e := range entries {
		var n int
		if m := scsiHost.FindStringSubmatch(e.Name()); m != nil {
			if _, err := fmt.Sscan(m[1], &n); err == nil && (best < 0 || n < best) {
				best = n
			}
		}
	}
	return best >= 0, best
}
