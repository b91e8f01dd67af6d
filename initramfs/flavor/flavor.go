// Package flavor says what each kind of ramdisk holds: which of Debian's
// kernels, which modules, and how large it may become.
package flavor

import "fmt"

// Flavor is one kind of ramdisk.
type Flavor struct {
	Name string
	// Meta is the Debian package that depends on the newest kernel of the kind.
	Meta string
	// Budget is the most that the compressed ramdisk may take, in bytes,
	// modules and agent included and the kernel not (docs: DESIGN, Budgets).
	Budget int64
	// Patterns choose modules; see modules.Select.
	Patterns []string
	// Softdeps are rules in modprobe.d's form, for modules that nothing asks for.
	Softdeps []string
}

// ByName returns the flavor called name.
func ByName(name string) (*Flavor, error) {
	for _, f := range []*Flavor{&cloud, &metal} {
		if f.Name == name {
			return f, nil
		}
	}
	return nil, fmt.Errorf("no ramdisk flavor %q (there are: cloud, metal)", name)
}

// common is what both need: virtio (QEMU, KVM, most clouds), disks, EFI
// variables for the boot entry, the EFI system partition's file system and the
// code pages Debian's kernel mounts it with, VLANs, and the power button that a
// BMC's soft power-off presses.
var common = []string{
	"virtio_pci", "virtio_mmio", "virtio_net", "virtio_blk", "virtio_scsi", "virtio_rng", "virtio_console",
	"nvme", "sd_mod", "ata_piix", "ata_generic",
	"efivarfs", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "nls_iso8859_1",
	"af_packet", "8021q", "button", "qemu_fw_cfg",
}
