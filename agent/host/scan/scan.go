// Package scan reads a machine's hardware from /sys and /proc under any root:
// "/" on the machine itself, a directory of copied files for a recorded one. It
// opens no device and makes no system call of its own.
package scan

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/jaypipes/ghw"
	"github.com/u-root/u-root/pkg/smbios"

	"github.com/slipway-metal/slipway/proto/agent"
)

// Root is a directory that holds sys and proc.
type Root string

// text is a one-line file's content without blanks around it; "" when it can't be read.
func (r Root) text(elem ...string) string {
	raw, err := os.ReadFile(r.path(elem...))
	if err != nil {
		return ""
	}
	return clean(string(raw))
}

// clean drops what a hostile device could put into a terminal or a page
// (threat T12), and blanks around.
func clean(s string) string {
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || (c >= 0x80 && c < 0xa0) || c == '\uFFFD' {
			return -1
		}
		return c
	}, strings.ToValidUTF8(s, "")))
}

func (r Root) number(elem ...string) int64 {
	n, err := strconv.ParseInt(r.text(elem...), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (r Root) path(elem ...string) string {
	return filepath.Join(append([]string{string(r)}, elem...)...)
}

func (r Root) exists(elem ...string) bool {
	_, err := os.Stat(r.path(elem...))
	return err == nil
}

// names lists a directory, sorted; nil when there is none.
func (r Root) names(elem ...string) []string {
	entries, err := os.ReadDir(r.path(elem...))
	if err != nil {
		return nil
	}
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Name()
	}
	return out
}

// opt is nil for "": null in the inventory.
func opt(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// BootID is the kernel's boot id.
func (r Root) BootID() string { return r.text("proc/sys/kernel/random/boot_id") }

// UEFI says whether firmware of the UEFI kind booted the machine.
func (r Root) UEFI() bool { return r.exists("sys/firmware/efi") }

// Inventory is everything that files tell; addresses, LLDP, the BMC and the
// disks' content are the host's to add. bootMAC is the NIC that the firmware
// booted from, "" when unknown.
func (r Root) Inventory(bootMAC string) agent.Inventory {
	inv := agent.Inventory{
		Interfaces: r.Interfaces(),
		CPU:        r.CPU(),
		Disks:      r.Disks(),
		Memory:     r.Memory(),
		Boot:       agent.BootInfo{CurrentBootMode: "bios", PXEInterface: opt(bootMAC)},
		Hostname:   r.text("proc/sys/kernel/hostname"),
		BootID:     r.BootID(),
	}
	if r.UEFI() {
		inv.Boot.CurrentBootMode = "uefi"
	}
	const dmi = "sys/class/dmi/id"
	inv.SystemVendor = agent.SystemVendor{
		ProductName:  r.text(dmi, "product_name"),
		SerialNumber: r.text(dmi, "product_serial"),
		Manufacturer: r.text(dmi, "sys_vendor"),
		Firmware: agent.Firmware{
			Vendor:    r.text(dmi, "bios_vendor"),
			Version:   r.text(dmi, "bios_version"),
			BuildDate: r.text(dmi, "bios_date"),
		},
	}
	return inv
}

// ghw's warnings would go to the console; its tools are not in the ramdisk.
func (r Root) ghw() []any {
	return []any{ghw.WithChroot(string(r)), ghw.WithDisableTools(), ghw.WithLogger(slog.New(slog.DiscardHandler))}
}

// architectures are the kernel's names by Go's.
var architectures = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// CPU describes the processors; Count is hardware threads, as IPA counts.
func (r Root) CPU() agent.CPU {
	out := agent.CPU{Architecture: r.text("proc/sys/kernel/arch"), Flags: []string{}} // the file is in Linux 6.1 and later
	if out.Architecture == "" {
		out.Architecture = architectures[runtime.GOARCH]
	}
	info, err := ghw.CPU(r.ghw()...)
	if err != nil {
		return out
	}
	out.Count = int(info.TotalHardwareThreads)
	out.SocketCount = len(info.Processors)
	if len(info.Processors) > 0 {
		p := info.Processors[0]
		out.ModelName = clean(p.Model)
		out.Flags = slices.DeleteFunc(slices.Clone(p.Capabilities), func(s string) bool { return s == "" })
	}
	if khz := r.number("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"); khz > 0 {
		out.Frequency = strconv.FormatFloat(float64(khz)/1000, 'f', 4, 64)
	}
	return out
}

// Memory is what the kernel has and what is plugged in: by SMBIOS, else by the
// firmware's memory map, else by the kernel's memory blocks.
func (r Root) Memory() agent.Memory {
	var out agent.Memory
	var blocks int64
	if info, err := ghw.Memory(r.ghw()...); err == nil {
		out.Total, blocks = info.TotalUsableBytes, info.TotalPhysicalBytes
	}
	physical := r.memorySMBIOS()
	if physical == 0 {
		physical = r.memoryMap()
	}
	if physical == 0 {
		physical = max(blocks, out.Total)
	}
	out.PhysicalMB = physical >> 20
	return out
}

func (r Root) memorySMBIOS() int64 {
	entry, err := os.ReadFile(r.path("sys/firmware/dmi/tables/smbios_entry_point"))
	if err != nil {
		return 0
	}
	tables, err := os.ReadFile(r.path("sys/firmware/dmi/tables/DMI"))
	if err != nil {
		return 0
	}
	info, err := smbios.ParseInfo(entry, tables)
	if err != nil {
		return 0
	}
	devices, err := info.GetMemoryDevices()
	if err != nil {
		return 0
	}
	var sum int64
	for _, d := range devices {
		// An empty or unknown slot must not count as 64 EiB.
		if n := d.GetSizeBytes(); n < 1<<50 {
			sum += int64(n)
		}
	}
	return sum
}

// memoryMap sums the RAM of the firmware's map (e820), rounded up to a MiB as
// the firmware's own holes below 1 MiB would otherwise show.
func (r Root) memoryMap() int64 {
	const dir = "sys/firmware/memmap"
	var sum int64
	for _, n := range r.names(dir) {
		if r.text(dir, n, "type") != "System RAM" {
			continue
		}
		start, err1 := strconv.ParseInt(r.text(dir, n, "start"), 0, 64)
		end, err2 := strconv.ParseInt(r.text(dir, n, "end"), 0, 64)
		if err1 == nil && err2 == nil && end > start {
			sum += end - start + 1
		}
	}
	return (sum + 1<<20 - 1) &^ (1<<20 - 1)
}
