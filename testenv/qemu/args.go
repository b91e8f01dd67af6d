package qemu

import (
	"fmt"
	"slices"
	"strconv"
)

// Device identifiers in QEMU's object tree.
func diskID(i int) string { return "disk" + strconv.Itoa(i) }
func nicID(i int) string  { return "nic" + strconv.Itoa(i) }

const cdID = "cd0"

// Where Debian's packages put firmware (ovmf).
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// bootIndexes numbers the bootable devices for an order of targets: 1 is tried
// first. A device that no target names gets -1, which keeps firmware from it.
func (c Config) bootIndexes(order []string) map[string]int {
	index := make(map[string]int)
	for i := range c.Disks {
		index[diskID(i)] = -1
	}
	for i := range c.NICs {
		index[nicID(i)] = -1
	}
	index[cdID] = -1
	next := 1
	add := func(id string) {
		if index[id] == -1 {
			index[id] = next
			next++
		}
	}
	for _, target := range order {
		switch target {
		case BootDisk:
			for i := range c.Disks {
				add(diskID(i))
			}
		case BootPXE:
			for i, nic := range c.NICs {
				if nic.ROM || c.Firmware == UEFI {
					add(nicID(i))
				}
			}
		case BootCD:
			add(cdID)
		}
	}
	return index
}

// order puts an override before the lasting order.
func (c Config) order(override string) []string {
	if override == "" {
		return c.Boot
	}
	return append([]string{override}, slices.DeleteFunc(slices.Clone(c.Boot), func(t string) bool { return t == override })...)
}

// args returns QEMU's command line. File descriptors 3 and up are, in order:
// the listening QMP socket and the listening console socket.
func (c Config) args(accel string, order []string, cd string) []string {
	index := c.bootIndexes(order)
	args := []string{
		"-name", "guest=" + c.Name + ",process=slipway-lab:" + c.Name,
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", c.board(), "-accel", accel, "-cpu", "max",
		"-smp", strconv.Itoa(c.CPUs), "-m", strconv.FormatInt(c.Memory>>20, 10),
		"-uuid", c.UUID,
		"-smbios", fmt.Sprintf("type=1,manufacturer=Slipway,product=Lab machine,version=1,serial=%s,uuid=%s,family=slipway-lab", escape(c.Serial), c.UUID),
		"-smbios", fmt.Sprintf("type=3,manufacturer=Slipway,serial=%s", escape(c.Serial)),
		"-device", "virtio-rng-pci", // without it getrandom blocks an early guest for 50 s and more
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off",
		"-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=4,server=on,wait=off,logfile=%s,logappend=on", escape(c.Path(ConsoleLog))),
		"-serial", "chardev:console",
	}
	if c.Firmware == UEFI {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+ovmfCode,
			"-drive", "if=pflash,unit=1,format=raw,file="+escape(c.Path(varsFile)))
	}
	if c.Direct.Kernel != "" {
		args = append(args, "-kernel", c.Direct.Kernel)
		if c.Direct.Initrd != "" {
			args = append(args, "-initrd", c.Direct.Initrd)
		}
		if c.Direct.Cmdline != "" {
			args = append(args, "-append", c.Direct.Cmdline)
		}
	}
	ports := 0 // of the AHCI controller that q35 has on board: six, the last is the CD's
	for i, disk := range c.Disks {
		args = append(args, disk.args(i, &ports, index[diskID(i)])...)
	}
	for i, nic := range c.NICs {
		args = append(args, nic.args(i, index[nicID(i)])...)
	}
	return append(args, cdArgs(cd, index[cdID])...)
}

// board is the machine type. Without graphics SeaBIOS, and the iPXE and boot
// loaders that print through it, use the serial port; OVMF does so by itself.
func (c Config) board() string {
	if c.Firmware == BIOS {
		return "q35,graphics=off"
	}
	return "q35"
}

func (d Disk) args(i int, ports *int, bootIndex int) []string {
	id := diskID(i)
	// Unsafe caching turns a guest's flush into nothing: a lab's disks need
	// not outlive the host's crash, and the host's disk is not what is measured.
	args := []string{"-blockdev", fmt.Sprintf("driver=raw,node-name=%s-raw,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=%s,file.discard=unmap,cache.no-flush=on",
		id, escape(d.Path))}
	common := fmt.Sprintf("id=%s,drive=%s-raw,serial=%s,logical_block_size=%d,physical_block_size=%d", id, id, escape(d.Serial), d.Sector, d.Sector)
	var device string
	switch d.Bus {
	case Virtio:
		device = "virtio-blk-pci," + common
	case NVMe:
		device = "nvme," + common
	case AHCI:
		device = fmt.Sprintf("ide-hd,bus=ide.%d,%s", *ports, common)
		if d.WWN != 0 {
			device += fmt.Sprintf(",wwn=0x%x", d.WWN)
		}
		*ports++
	}
	return append(args, "-device", device+bootArg(bootIndex))
}

func (n NIC) args(i, bootIndex int) []string {
	device := "virtio-net-pci"
	if n.Model == "e1000e" {
		device = "e1000e"
	}
	device = fmt.Sprintf("%s,id=%s,netdev=net%d,mac=%s", device, nicID(i), i, n.MAC)
	if !n.ROM {
		device += ",romfile="
	}
	return []string{
		"-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, n.Tap),
		"-device", device + bootArg(bootIndex),
	}
}

// cdArgs gives every machine a CD drive, the way a BMC offers virtual media:
// present and empty until something is put in.
func cdArgs(path string, bootIndex int) []string {
	drive := "if=none,id=" + cdID + "-drive,media=cdrom,readonly=on"
	if path != "" {
		drive += ",format=raw,file=" + escape(path)
	}
	return []string{"-drive", drive, "-device", "ide-cd,bus=ide.5,id=" + cdID + ",drive=" + cdID + "-drive" + bootArg(bootIndex)}
}

func bootArg(index int) string {
	if index < 0 {
		return ""
	}
	return ",bootindex=" + strconv.Itoa(index)
}

// escape doubles commas, which separate options on QEMU's command line.
func escape(s string) string {
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] == ',' {
			out = append(out, ',')
		}
		out = append(out, s[i])
	}
	return string(out)
}
