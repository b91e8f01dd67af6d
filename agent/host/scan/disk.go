package scan

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/slipway-metal/slipway/proto/agent"
)

const sysBlock = "sys/block"

// notDisks are block devices that no image is ever written to: virtual ones,
// optical drives, floppies, and the boot partitions of an eMMC.
var notDisks = regexp.MustCompile(`^(loop|ram|zram|nbd|sr|fd|dm-|md|rbd|drbd|mmcblk\d+(boot|rpmb))`)

// virtualMedia is how BMCs name the drives they show to the host.
var virtualMedia = regexp.MustCompile(`(?i)\bvirtual|idrac|LCDRIVE|\bSecureDigital|\biLO\b`)

var (
	hctl      = regexp.MustCompile(`^\d+:\d+:\d+:\d+$`)
	usbDevice = regexp.MustCompile(`^\d+-[\d.]+$`)
	ataDir    = regexp.MustCompile(`/ata\d+/`)
)

// Disks are the whole disks of the machine, in the kernel's order of names.
func (r Root) Disks() []agent.Disk {
	out := []agent.Disk{}
	for _, name := range r.names(sysBlock) {
		if notDisks.MatchString(name) {
			continue
		}
		if d, ok := r.Disk(name); ok {
			out = append(out, d)
		}
	}
	return out
}

// Disk describes one block device by the kernel's name, such as sda; false when
// it is none that could be installed to.
func (r Root) Disk(name string) (agent.Disk, bool) {
	at := func(elem ...string) string { return r.text(append([]string{sysBlock, name}, elem...)...) }
	const sector = 512 // of /sys/block/*/size, whatever the disk's own
	size := r.number(sysBlock, name, "size") * sector
	if size <= 0 || at("hidden") == "1" { // a path of a multipath NVMe disk is hidden
		return agent.Disk{}, false
	}
	dev, err := filepath.EvalSymlinks(r.path(sysBlock, name))
	if err != nil {
		dev = ""
	}
	d := agent.Disk{
		Name: "/dev/" + strings.ReplaceAll(name, "!", "/"), Size: size,
		Model:           opt(at("device/model")),
		Vendor:          opt(at("device/vendor")),
		Serial:          opt(r.serial(name, dev)),
		Rotational:      at("queue/rotational") == "1",
		LogicalSectors:  int(r.number(sysBlock, name, "queue/logical_block_size")),
		PhysicalSectors: int(r.number(sysBlock, name, "queue/physical_block_size")),
		Tran:            opt(transport(dev)),
	}
	setWWN(&d, r.wwid(name))
	if dir, err := filepath.EvalSymlinks(r.path(sysBlock, name, "device")); err == nil && hctl.MatchString(filepath.Base(dir)) {
		d.HCTL = opt(filepath.Base(dir))
	}
	if p := r.byPath(dev); p != "" {
		d.ByPath = opt("/dev/disk/by-path/" + p)
	}
	if at("removable") == "1" && transport(dev) == "usb" && virtualMedia.MatchString(at("device/vendor")+" "+at("device/model")) {
		return agent.Disk{}, false
	}
	return d, true
}

// ReadOnly says whether the kernel refuses writes to the disk.
func (r Root) ReadOnly(name string) bool { return r.text(sysBlock, name, "ro") == "1" }

// Partitions are the kernel's names of the disk's partitions.
func (r Root) Partitions(name string) []string {
	var out []string
	for _, n := range r.names(sysBlock, name) {
		if strings.HasPrefix(n, name) && r.exists(sysBlock, name, n, "partition") {
			out = append(out, n)
		}
	}
	return out
}

// serial: virtio and MMC have a file on the disk or the device, SCSI (and ATA
// through libata) the unit serial number page of the vital product data, whose
// text starts at byte 4 (SPC-5, 7.7.11).
func (r Root) serial(name, dev string) string {
	for _, f := range []string{"serial", "device/serial"} {
		if s := r.text(sysBlock, name, f); s != "" {
			return s
		}
	}
	page := r.raw(sysBlock, name, "device/vpd_pg80")
	if len(page) > 4 {
		return clean(string(page[4:]))
	}
	return usbSerial(dev)
}

// usbSerial is the serial number of the USB device that a disk hangs on: what
// udev gives for disks whose bridge passes no number of the disk on.
func usbSerial(dev string) string {
	for ; strings.Contains(dev, "/usb"); dev = filepath.Dir(dev) {
		if usbDevice.MatchString(filepath.Base(dev)) {
			raw, err := os.ReadFile(filepath.Join(dev, "serial"))
			if err != nil {
				return ""
			}
			return clean(string(raw))
		}
	}
	return ""
}

// Settled says whether the kernel has no disk in the making that we can see: a
// USB mass-storage interface with a driver gets its disk a second later
// (usb_storage.delay_use).
func (r Root) Settled() bool {
	for _, driver := range []string{"usb-storage", "uas"} {
		dir := "sys/bus/usb/drivers/" + driver
		for _, name := range r.names(dir) {
			if !usbPort.MatchString(name) {
				continue
			}
			targets, err := filepath.Glob(r.path(dir, name, "host*/target*"))
			if err == nil && len(targets) == 0 {
				return false
			}
		}
	}
	return true
}

// BlockDevices are the kernel's names of all block devices there are now.
func (r Root) BlockDevices() []string { return r.names(sysBlock) }

// wwid is the kernel's choice of a world-wide name, by its kind: naa., eui.,
// uuid., t10., nvme.
func (r Root) wwid(name string) string {
	for _, f := range []string{"wwid", "device/wwid"} {
		if s := r.text(sysBlock, name, f); s != "" {
			return s
		}
	}
	return ""
}

// setWWN splits a name as udev does for SCSI: an NAA name of 16 bytes is the
// first 8 and a vendor's extension. NVMe names stay whole, as udev's ID_WWN.
func setWWN(d *agent.Disk, wwid string) {
	kind, id, ok := strings.Cut(wwid, ".")
	switch {
	case !ok:
	case kind == "naa":
		d.WWN, d.WWNWithExtension = opt("0x"+id), opt("0x"+id)
		if len(id) == 32 {
			d.WWN, d.WWNVendorExtension = opt("0x"+id[:16]), opt("0x"+id[16:])
		}
	case kind == "eui" || kind == "uuid" || kind == "nvme":
		d.WWN, d.WWNWithExtension = opt(wwid), opt(wwid)
	}
	// t10 names of ATA disks repeat model and serial: not world-wide, so no WWN.
}

// transport is lsblk's TRAN, by the device's place in the tree; virtio has none.
func transport(dev string) string {
	switch {
	case strings.Contains(dev, "/nvme/"):
		return "nvme"
	case strings.Contains(dev, "/usb"):
		return "usb"
	case ataDir.MatchString(dev):
		return "sata"
	case strings.Contains(dev, "/end_device-"):
		return "sas"
	case strings.Contains(dev, "/session"):
		return "iscsi"
	case strings.Contains(dev, "/rport-"):
		return "fc"
	case strings.Contains(dev, "/mmc_host/"):
		return "mmc"
	}
	return ""
}

// HasNumber says whether the disk's device number is major:minor.
func (r Root) HasNumber(name string, major, minor uint32) bool {
	return r.text(sysBlock, name, "dev") == fmt.Sprintf("%d:%d", major, minor)
}
