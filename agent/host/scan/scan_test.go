package scan

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/proto/agent"
)

// tree makes files below a root: name to content, or "-> target" for a link.
func tree(t *testing.T, files map[string]string) Root {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, p)
		} else {
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Root(dir)
}

// disk is a whole disk at a place under sys/devices.
func disk(place string, more map[string]string) map[string]string {
	name := filepath.Base(place)
	out := map[string]string{
		"sys/block/" + name:                                  "-> ../devices/" + place,
		"sys/devices/" + place + "/size":                     "2048\n",
		"sys/devices/" + place + "/queue/logical_block_size": "512\n",
	}
	for k, v := range more {
		out[k] = v
	}
	return out
}

// The names udev's path_id gives, by the place in the tree (systemd 252,
// src/udev/udev-builtin-path_id.c and its documentation).
func TestByPath(t *testing.T) {
	for want, files := range map[string]map[string]string{
		"pci-0000:00:05.0": disk("pci0000:00/0000:00:05.0/virtio2/block/vda", nil),
		"pci-0000:03:00.0-nvme-1": disk("pci0000:00/0000:00:1c.0/0000:03:00.0/nvme/nvme0/nvme0n1",
			map[string]string{"sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0/nvme/nvme0/nvme0n1/nsid": "1\n"}),
		"pci-0000:00:1f.2-ata-3": disk("pci0000:00/0000:00:1f.2/ata3/host3/target3:0:0/3:0:0:0/block/sda", nil),
		"pci-0000:00:1f.2-ata-2": disk("pci0000:00/0000:00:1f.2/ata9/host3/target3:0:0/3:0:0:0/block/sda",
			map[string]string{"sys/class/ata_port/ata9/port_no": "2\n"}),
		"pci-0000:00:1f.2-ata-3.1": disk("pci0000:00/0000:00:1f.2/ata3/host3/target3:1:1/3:1:1:0/block/sda", nil),
		// The controller's lowest host is 6, so this one is its second.
		"pci-0000:00:07.0-scsi-1:0:2:3": disk("pci0000:00/0000:00:07.0/virtio3/host7/target7:0:2/7:0:2:3/block/sdb",
			map[string]string{"sys/devices/pci0000:00/0000:00:07.0/virtio3/host6/x": ""}),
		"pci-0000:18:00.0-sas-phy4-lun-0": disk("pci0000:17/0000:17:00.0/0000:18:00.0/host0/port-0:1/end_device-0:1/target0:0:1/0:0:1:0/block/sdc",
			map[string]string{"sys/class/sas_device/end_device-0:1/phy_identifier": "4\n"}),
		"pci-0000:00:14.0-usb-0:1.2:1.0-scsi-0:0:0:0": disk("pci0000:00/0000:00:14.0/usb1/1-1/1-1.2/1-1.2:1.0/host9/target9:0:0/9:0:0:0/block/sdd", nil),
	} {
		r := tree(t, files)
		disks := r.Disks()
		if len(disks) != 1 {
			t.Fatalf("%s: %d disks", want, len(disks))
		}
		got := ""
		if disks[0].ByPath != nil {
			got = strings.TrimPrefix(*disks[0].ByPath, "/dev/disk/by-path/")
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestWWN(t *testing.T) {
	s := func(v string) *string { return &v }
	for wwid, want := range map[string]agent.Disk{
		"naa.5000c500a1b2c3d4": {WWN: s("0x5000c500a1b2c3d4"), WWNWithExtension: s("0x5000c500a1b2c3d4")},
		"naa.600508b1001c4d41d2a2a3a4a5a6a7a8": {WWN: s("0x600508b1001c4d41"), WWNVendorExtension: s("0xd2a2a3a4a5a6a7a8"),
			WWNWithExtension: s("0x600508b1001c4d41d2a2a3a4a5a6a7a8")},
		"eui.0025385b71b00001":          {WWN: s("eui.0025385b71b00001"), WWNWithExtension: s("eui.0025385b71b00001")},
		"t10.ATA QEMU HARDDISK QM00001": {},
		"":                              {},
	} {
		var got agent.Disk
		setWWN(&got, wwid)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q: %s", wwid, d)
		}
	}
}

// What no image may go to is no disk.
func TestNotDisks(t *testing.T) {
	usb := "pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/host9/target9:0:0/9:0:0:0"
	for name, files := range map[string]map[string]string{
		"loop":         disk("virtual/block/loop0", nil),
		"optical":      disk("pci0000:00/0000:00:1f.2/ata1/host1/target1:0:0/1:0:0:0/block/sr0", nil),
		"eMMC boot":    disk("platform/x/mmc_host/mmc0/mmc0:0001/block/mmcblk0boot0", nil),
		"empty reader": disk("pci0000:00/0000:00:14.0/y/block/sda", map[string]string{"sys/devices/pci0000:00/0000:00:14.0/y/block/sda/size": "0\n"}),
		"hidden path": disk("pci0000:00/0000:03:00.0/nvme/nvme0/nvme0c0n1",
			map[string]string{"sys/devices/pci0000:00/0000:03:00.0/nvme/nvme0/nvme0c0n1/hidden": "1\n"}),
		"virtual media": disk(usb+"/block/sdb", map[string]string{
			"sys/devices/" + usb + "/block/sdb/removable": "1\n",
			"sys/devices/" + usb + "/block/sdb/device":    "-> ../..",
			"sys/devices/" + usb + "/vendor":              "iDRAC\n",
			"sys/devices/" + usb + "/model":               "Virtual Floppy\n",
		}),
	} {
		if disks := tree(t, files).Disks(); len(disks) != 0 {
			t.Errorf("%s: taken for a disk: %s", name, disks[0].Name)
		}
	}
}

// A device's words reach terminals and pages: they bring no control characters
// (threat T12).
func TestHostileNamesAreCleaned(t *testing.T) {
	r := tree(t, map[string]string{
		"sys/class/dmi/id/product_name":   "Server\x1b]0;owned\x07\n",
		"sys/class/dmi/id/product_serial": "\xff\xfeSN\u009b1\n",
	})
	inv := r.Inventory("")
	if v := inv.SystemVendor; v.ProductName != "Server]0;owned" || v.SerialNumber != "SN1" {
		t.Fatalf("got %q %q", v.ProductName, v.SerialNumber)
	}
}

// A machine that tells nothing still has an inventory that Ironic can read:
// lists are lists and not null.
func TestBareMachine(t *testing.T) {
	raw, err := json.Marshal(tree(t, nil).Inventory(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"interfaces":[]`, `"disks":[]`, `"flags":[]`, `"current_boot_mode":"bios"`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("no %s in %s", want, raw)
		}
	}
}

func TestUSBDiskStillComing(t *testing.T) {
	const bound = "sys/bus/usb/drivers/usb-storage/1-1:1.0/"
	if tree(t, map[string]string{bound + "host7/x": ""}).Settled() {
		t.Error("a USB disk without its target is settled")
	}
	if !tree(t, map[string]string{bound + "host7/target7:0:0/x": ""}).Settled() {
		t.Error("a USB disk with its target is not settled")
	}
}
