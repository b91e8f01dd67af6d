// Package qemu runs one virtual machine as a process: it turns a description
// into QEMU's command line, starts and stops it, follows its events, and
// switches its next boot device as a BMC would.
//
// A machine that is off has no process. A guest that powers itself off ends
// the process, and the machine is off.
package qemu

import "path/filepath"

// Firmwares.
const (
	BIOS = "bios" // SeaBIOS
	UEFI = "uefi" // OVMF with a variable store of the machine's own
)

// Disk buses.
const (
	Virtio = "virtio"
	NVMe   = "nvme"
	AHCI   = "ahci"
)

// Boot targets.
const (
	BootPXE  = "pxe"
	BootDisk = "disk"
	BootCD   = "cd"
)

// Acceleration.
const (
	AccelAuto = "auto" // KVM where it works, else TCG
	AccelKVM  = "kvm"
	AccelTCG  = "tcg" // QEMU's own translator: works everywhere, about 20 times slower
)

// Config describes one machine. Dir holds everything of it: disks, variable
// store, sockets, logs.
type Config struct {
	Name     string
	UUID     string // SMBIOS system UUID
	Serial   string // SMBIOS system serial number
	Firmware string // BIOS or UEFI
	Memory   int64  // bytes
	CPUs     int
	Disks    []Disk
	NICs     []NIC
	Boot     []string // lasting boot order, of BootPXE, BootDisk and BootCD
	Direct   Direct   // a kernel to start without firmware's help
	Accel    string
	Dir      string
}

// Disk is one disk; its bytes are in Path, a raw file.
type Disk struct {
	Path   string
	Bus    string
	Serial string
	WWN    uint64 // 0: none; only AHCI and NVMe (as EUI-64) can carry one
	Sector int    // bytes, 512 or 4096
}

// NIC is one network card, on an existing tap device.
type NIC struct {
	Tap   string
	MAC   string
	Model string // "virtio" or "e1000e"
	ROM   bool   // carries iPXE in its option ROM
}

// Direct is a kernel that QEMU puts in memory itself, for tests of a ramdisk
// that do not want to wait for firmware. It is used at every start when Kernel
// is set.
type Direct struct {
	Kernel  string
	Initrd  string
	Cmdline string
}

// Files in a machine's directory.
const (
	ConsoleLog    = "console.log"  // everything the serial port ever said
	ConsoleSocket = "console.sock" // the serial port, both ways
	QEMULog       = "qemu.log"     // what QEMU itself complained about
	EventsLog     = "events.jsonl" // QMP events and starts and ends, one JSON object a line
	varsFile      = "vars.fd"
)

// Path returns the path of one of the machine's files.
func (c Config) Path(name string) string { return filepath.Join(c.Dir, name) }
