package boot

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/vishvananda/netlink"

	"github.com/slipway-metal/slipway/conductor/boot/cpio"
	"github.com/slipway-metal/slipway/conductor/boot/dhcp"
	"github.com/slipway-metal/slipway/conductor/boot/ipxe"
)

// The firmware tests boot real firmware under QEMU. They take a minute and
// need SLIPWAY_QEMU=1 (2 prints the consoles) and a kernel in SLIPWAY_BOOT_KERNEL.
const (
	qemuVariable   = "SLIPWAY_QEMU"
	kernelVariable = "SLIPWAY_BOOT_KERNEL"
	machineMAC     = "52:54:00:12:34:56"
)

var ovmf = slices.Clip([]string{"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
	"-drive", "if=pflash,format=raw,unit=1,file=VARS"})

// machine is one kind of firmware. Budget is for power-on to "Linux version".
type machine struct {
	args   []string
	mode   dhcp.Mode // "" is full
	uefi   string    // Config.UEFIFile
	first  string    // an iPXE script that is given once in place of the boot's
	idle   bool      // the resolver says: boot your disk
	disk   bool      // there is one, and it must be booted
	budget time.Duration
}

func nic(more string) []string {
	return []string{"-device", "virtio-net-pci,netdev=n,bootindex=1,mac=" + machineMAC + more}
}

func TestSeaBIOSWithIPXEROMBoots(t *testing.T) {
	firmwareBoots(t, machine{args: nic(""), budget: 10 * time.Second})
}

// A BIOS's own PXE is played by the ROM's iPXE chaining what BIOS clients are given.
func TestBIOSWithUndionlyBoots(t *testing.T) {
	firmwareBoots(t, machine{args: nic(""), first: "#!ipxe\nchain tftp://10.77.0.1/undionly.kpxe\n", budget: 20 * time.Second})
}

func TestOVMFWithIPXEROMBoots(t *testing.T) {
	firmwareBoots(t, machine{args: append(ovmf, nic("")...), budget: 18 * time.Second})
}

func TestOVMFOwnPXEBoots(t *testing.T) {
	firmwareBoots(t, machine{args: append(ovmf, nic(",romfile=")...), budget: 25 * time.Second})
}

func TestOVMFOwnPXEBootsWithIPXEsOwnDrivers(t *testing.T) {
	firmwareBoots(t, machine{args: append(ovmf, nic(",romfile=")...), uefi: "ipxe.efi", budget: 25 * time.Second})
}

func TestOVMFHTTPBoots(t *testing.T) {
	noPXE := []string{"-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n", "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n"}
	firmwareBoots(t, machine{args: append(append(ovmf, noPXE...), nic(",romfile=")...), budget: 25 * time.Second})
}

func TestOVMFOwnPXEBootsBesideAnotherDHCPServer(t *testing.T) {
	firmwareBoots(t, machine{mode: dhcp.Proxy, args: append(ovmf, nic(",romfile=")...), budget: 25 * time.Second})
}

func TestSeaBIOSWithIPXEROMBootsBesideAnotherDHCPServer(t *testing.T) {
	firmwareBoots(t, machine{mode: dhcp.Proxy, args: nic(""), budget: 15 * time.Second})
}

func TestMachineThatShouldNotNetbootGoesToItsDisk(t *testing.T) {
	firmwareBoots(t, machine{args: nic(""), idle: true, disk: true, budget: 10 * time.Second})
}

func TestDiskScriptBootsTheDiskUnderBIOS(t *testing.T) {
	firmwareBoots(t, machine{args: nic(""), first: ipxe.Disk(), disk: true, budget: 10 * time.Second})
}

// bootSector prints "SLIPWAY-DISK" and ends QEMU by its isa-debug-exit device.
func bootSector() []byte {
	b := []byte{
		0x31, 0xc0, 0x8e, 0xd8, 0xfc, 0xbe, 0x1b, 0x7c, // ds = 0; si = message
		0xac, 0x84, 0xc0, 0x74, 0x09, // next: al = [si++]; if 0 goto end
		0xb4, 0x0e, 0xbb, 0x07, 0x00, 0xcd, 0x10, 0xeb, 0xf2, // teletype; goto next
		0xe6, 0xf4, 0xf4, 0xeb, 0xfd, // end: out 0xf4; halt
	}
	b = append(b, "SLIPWAY-DISK\r\nbye\r\n\x00"...) // SeaBIOS's serial console lags by a character
	return append(b, append(make([]byte, 510-len(b)), 0x55, 0xaa)...)
}

// firmwareBoots powers a machine on and waits until the ramdisk's init has printed
// the boot configuration, or the disk's boot sector its message.
func firmwareBoots(t *testing.T, m machine) {
	kernel := os.Getenv(kernelVariable)
	if os.Getenv(qemuVariable) == "" || kernel == "" {
		t.Skipf("boots a machine under QEMU: set %s=1 and %s to a kernel with virtio", qemuVariable, kernelVariable)
	}
	if !inNamespace(t) {
		return
	}
	bridge := lan(t)
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0", MasterIndex: bridge.Index}, Mode: netlink.TUNTAP_MODE_TAP}
	must(t, netlink.LinkAdd(tap))
	up(t, "tap0", "")

	plan := testPlan(t)
	plan.Kernel = kernel
	plan.Config.BootMAC = machineMAC
	plan.Cmdline = []string{"console=ttyS0,115200"}
	must(t, os.WriteFile(plan.Initrd, ramdisk(t), 0o600))
	seen := newBook()
	cfg := testConfig(t, seen, &fixed{plan: plan})
	cfg.FirmwareDir, cfg.UEFIFile = "", m.uefi
	if m.mode == dhcp.Proxy {
		cfg.DHCP = m.mode
		dnsmasq(t, bridge)
	}
	if m.idle {
		cfg.Resolver = &fixed{plan: Plan{Node: plan.Node}}
	}
	serve(t, cfg, m.first)

	limit, cancel := context.WithTimeout(t.Context(), 4*m.budget)
	defer cancel()
	args := []string{"-machine", "q35,graphics=off", "-accel", "tcg", "-cpu", "max", "-m", "512", "-display", "none", "-serial", "stdio",
		"-no-reboot", "-device", "virtio-rng-pci", "-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"}
	for _, a := range m.args {
		if strings.HasSuffix(a, "file=VARS") {
			vars := filepath.Join(t.TempDir(), "vars.fd")
			raw, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
			must(t, err)
			must(t, os.WriteFile(vars, raw, 0o600))
			a = strings.Replace(a, "VARS", vars, 1)
		}
		args = append(args, a)
	}
	start, end := "Linux version", "SLIPWAY-CONFIG "
	if m.disk {
		start, end = "SLIPWAY-DISK", "SLIPWAY-DISK"
		image := filepath.Join(t.TempDir(), "disk")
		must(t, os.WriteFile(image, append(bootSector(), make([]byte, 1<<20)...), 0o600))
		args = append(args, "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-drive", "if=none,id=d,format=raw,file="+image, "-device", "virtio-blk-pci,drive=d,bootindex=2")
	}
	qemu := exec.CommandContext(limit, "qemu-system-x86_64", args...)
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	serial, err := qemu.StdoutPipe()
	must(t, err)
	var complaints bytes.Buffer
	qemu.Stderr = &complaints
	seen.start = time.Now()
	must(t, qemu.Start())
	started, ended, last := time.Duration(0), time.Duration(0), ""
	var console strings.Builder
	for lines := bufio.NewScanner(serial); lines.Scan(); {
		at, line := time.Since(seen.start), lines.Text()
		fmt.Fprintf(&console, "%6.2f %s\n", at.Seconds(), line)
		if strings.Contains(line, start) && started == 0 {
			started = at
		}
		if _, after, ok := strings.Cut(line, end); ok {
			ended, last = at, after
		}
	}
	err = qemu.Wait()
	for _, r := range seen.all() {
		t.Logf("%6.2f s %s %s %v", r.at.Seconds(), r.Hop, r.Fact, r.Detail)
	}
	used := qemu.ProcessState.UserTime() + qemu.ProcessState.SystemTime()
	t.Logf("power-on to %q: %.1f s, to %q: %.1f s, QEMU's CPU time %.1f s", start, started.Seconds(), end, ended.Seconds(), used.Seconds())
	if ended == 0 || !m.disk && !strings.Contains(last, `"nonce":"n0nce"`) {
		t.Fatalf("%q did not come, or without the configuration: %q; QEMU: %v %s\n%s", end, last, err, complaints.String(), console.String())
	}
	if started > m.budget {
		t.Errorf("it took %s, budget %s\n%s", started, m.budget, console.String())
	}
	if os.Getenv(qemuVariable) == "2" {
		t.Log(console.String())
	}
}

// ramdisk is a zstd-compressed archive with testdata/init, of a size that is no multiple of 4.
func ramdisk(t *testing.T) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the ramdisk's init: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(program)
	must(t, err)
	archive, err := cpio.Archive([]cpio.File{{Name: "init", Mode: 0o755, Data: raw}})
	must(t, err)
	enc, err := zstd.NewWriter(nil)
	must(t, err)
	packed := enc.EncodeAll(archive, nil)
	for len(packed)%4 != 1 { // a skippable frame would do, zeros are simpler
		packed = append(packed, 0)
	}
	return packed
}
