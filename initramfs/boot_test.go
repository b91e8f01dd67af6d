package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/initramfs/iso"
	"github.com/slipway-metal/slipway/initramfs/pack"
)

// Boots under QEMU need a minute or two and the real kernel packages, so they
// run on request: SLIPWAY_QEMU=1 go test ./initramfs

var builds struct {
	sync.Mutex
	dir  string
	done map[string]bool
}

func TestMain(m *testing.M) {
	code := m.Run()
	if builds.dir != "" {
		if err := os.RemoveAll(builds.dir); err != nil {
			panic(err)
		}
	}
	os.Exit(code)
}

// ramdisk builds a flavor with the stand-in for an agent, once for all tests,
// and returns the directory.
func ramdisk(t *testing.T, name string) string {
	t.Helper()
	if os.Getenv("SLIPWAY_QEMU") != "1" {
		t.Skip("boots a machine under QEMU: set SLIPWAY_QEMU=1")
	}
	builds.Lock()
	defer builds.Unlock()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir) // go build takes packages relative to the module
	if builds.dir == "" {
		if builds.dir, err = os.MkdirTemp("", "slipway-boot-test-"); err != nil {
			t.Fatal(err)
		}
		builds.done = make(map[string]bool)
	}
	out := filepath.Join(builds.dir, name)
	if builds.done[name] {
		return out
	}
	agent := filepath.Join(builds.dir, "standin")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := goBuild(ctx, "./initramfs/testdata/standin", agent); err != nil {
		t.Fatal(err)
	}
	if err := fatten(agent); err != nil {
		t.Fatal(err)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	cache := os.Getenv("SLIPWAY_CACHE")
	if cache == "" {
		cache = filepath.Join(home, ".cache", "slipway")
	}
	b := &buildCmd{Flavor: name, Out: builds.dir, Agent: agent, Cache: cache}
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	builds.done[name] = true
	return out
}

// fatten makes the stand-in as large as the agent, packed and unpacked: the
// least memory depends on it. What follows a program in its file is not read.
func fatten(program string) error {
	const random, zeros = 3 << 20, 5 << 20
	data := make([]byte, random+zeros)
	rand.NewChaCha8([32]byte{}).Read(data[:random]) //nolint:errcheck // documented never to fail
	f, err := os.OpenFile(program, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func TestAVirtualMachineReachesItsDevicesAndItsAgent(t *testing.T) {
	v := boot(t, ramdisk(t, "cloud"), machine{memory: 256, args: virtioAndNVMe(t)})
	v.expect(`Run /init as init process`)
	v.expect(`slipway: .* ramdisk started, kernel .*-cloud-amd64`)
	v.expect(`slipway: .* module virtio_pci `)
	v.expect(`slipway: .* disks: nvme0n1 \(.*\), vda \(`)
	v.expect(`slipway: .* network: eth0 \(52:54:00:aa:00:01\)`)
	v.expect(`slipway: .* no /etc/slipway/boot.json`)
	v.expect(`slipway: .* agent started`)
	v.expect(`standin: /dev: .*\bnvme0n1\b.*\bvda\b`)
	v.expect(`standin: ready`)
	// Its crash is told, kept, and followed by a new start.
	v.expect(`panic: the first run ends like this`)
	v.expect(`slipway: .* agent ended \(exit status 2\) after .*; start 2 in 500ms`)
	v.expect(`standin: /run/slipway/last-crash: .*"exit status 2".*panic: the first run ends like this`)
	v.expect(`standin: ready`)
	v.forbid(`lines were dropped|BUG:|Call Trace|module verification failed`)
}

func TestAServerReachesItsDevices(t *testing.T) {
	v := boot(t, ramdisk(t, "metal"), machine{memory: 256, args: append(virtioAndNVMe(t),
		"-device", "ahci,id=sata", "-drive", disk(t, "sata0"), "-device", "ide-hd,drive=sata0,bus=sata.0",
		"-device", "megasas,id=raid", "-drive", disk(t, "raid0"), "-device", "scsi-hd,drive=raid0,bus=raid.0",
		"-device", "pvscsi,id=pv", "-drive", disk(t, "pv0"), "-device", "scsi-hd,drive=pv0,bus=pv.0",
		"-device", "qemu-xhci,id=usb", "-drive", disk(t, "usb0"), "-device", "usb-storage,drive=usb0,bus=usb.0",
		"-netdev", "user,id=net1,restrict=on", "-device", "e1000e,netdev=net1,mac=52:54:00:aa:00:02,romfile=",
		"-netdev", "user,id=net2,restrict=on", "-device", "vmxnet3,netdev=net2,mac=52:54:00:aa:00:03,romfile=",
		"-device", "ipmi-bmc-sim,id=bmc", "-device", "isa-ipmi-kcs,bmc=bmc",
	)})
	v.expect(`slipway: .* ramdisk started`)
	network := v.expect(`slipway: .* network: `)
	for _, mac := range []string{"52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:03"} {
		if !strings.Contains(network, mac) {
			t.Errorf("no driver for the NIC %s: %s", mac, network)
		}
	}
	for _, module := range []string{"ahci", "nvme", "megaraid_sas", "vmw_pvscsi", "e1000e", "vmxnet3", "xhci_pci", "virtio_blk", "virtio_net", "sd_mod", "ipmi_si", "ipmi_devintf"} {
		if !v.seen(`slipway: .* module ` + module + ` `) {
			t.Errorf("module %s was not loaded", module)
		}
	}
	v.expect(`slipway: .* agent ended`)
	v.expect(`standin: /dev: .*\bipmi0\b.*\bnvme0n1\b.*\bsda\b.*\bsdb\b.*\bsdc\b.*\bvda\b`)
	v.expect(`standin: ready`)
	// A disk on USB takes a second or two, and nobody waits for it.
	if attached := `\[sdd\] Attached SCSI disk`; !v.seen(attached) {
		v.expect(attached)
	}
	v.forbid(`lines were dropped|BUG:|Call Trace|module verification failed`)
}

func TestTheLeastMemory(t *testing.T) {
	for _, c := range []struct {
		flavor string
		memory int // MB
	}{{"cloud", 112}, {"metal", 192}} {
		t.Run(c.flavor, func(t *testing.T) {
			v := boot(t, ramdisk(t, c.flavor), machine{memory: c.memory, args: virtioAndNVMe(t)})
			v.expect(`slipway: .* disks: nvme0n1 \(.*\), vda \(`)
			t.Log(v.expect(`standin: memory: `))
			v.expect(`standin: ready`)
		})
	}
}

// The conductor appends the configuration to the ramdisk as it serves it.
func TestTheConfigurationArrivesAsAnAppendedArchive(t *testing.T) {
	dir := ramdisk(t, "cloud")
	main, err := os.ReadFile(filepath.Join(dir, pack.RamdiskFile))
	if err != nil {
		t.Fatal(err)
	}
	config, err := pack.Archive([]pack.File{{Path: "etc/slipway/boot.json", Mode: 0o600, Data: []byte(`{"conductor":"http://192.0.2.1:6385"}`)}})
	if err != nil {
		t.Fatal(err)
	}
	both := filepath.Join(t.TempDir(), "initrd")
	pad := bytes.Repeat([]byte{0}, (4-len(main)%4)%4) // the kernel looks for the next archive at a multiple of 4
	if err := os.WriteFile(both, bytes.Join([][]byte{main, pad, config}, nil), 0o644); err != nil {
		t.Fatal(err)
	}
	v := boot(t, dir, machine{memory: 256, initrd: both})
	v.expect(`standin: /etc/slipway/boot.json: {"conductor":"http://192.0.2.1:6385"}`)
	v.forbid(`no /etc/slipway/boot.json`)
}

func TestTheDebugShellOnRequest(t *testing.T) {
	v := boot(t, ramdisk(t, "cloud"), machine{memory: 256, cmdline: "slipway.shell", args: virtioAndNVMe(t)})
	v.expect(`slipway: .* debug shell on /dev/console; type help`)
	v.expect(`slipway: .* agent ended`)
	v.expect(`standin: ready`)
	v.enter("lsmod | grep virtio_net")
	v.expect(`virtio_net +\d+`)
	v.enter("ip")
	v.expect(`eth0 52:54:00:aa:00:01`)
	v.enter("modprobe vfat; lsmod | grep vfat")
	v.expect(`vfat +\d+`)
	v.enter("ps | grep slipway-agent")
	v.expect(`\d+ /bin/slipway-agent`)
	v.enter("reboot")
	v.expect(`slipway: .* reboot requested`)
	v.gone() // -no-reboot makes it an end
}

func TestASoftPowerOffEndsTheMachine(t *testing.T) {
	v := boot(t, ramdisk(t, "cloud"), machine{memory: 256})
	v.expect(`standin: ready`)
	v.monitor("system_powerdown")
	v.expect(`slipway: .* power off requested`)
	v.gone()
}

func TestUEFIVariablesAreThere(t *testing.T) {
	v := boot(t, ramdisk(t, "cloud"), machine{memory: 256, args: ovmf(t)})
	v.expect(`slipway: .* firmware: UEFI`)
	v.expect(`standin: /sys/firmware/efi/efivars: [1-9]\d* +variables`)
	v.expect(`standin: ready`)
}

func TestTheUnifiedKernelImageBoots(t *testing.T) {
	dir := ramdisk(t, "cloud")
	firmware := ovmf(t)
	c := &ukiCmd{mediaCmd: mediaCmd{Flavor: "cloud", Out: filepath.Dir(dir), Cmdline: "console=ttyS0"}, Stub: "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"}
	if _, err := os.Stat(c.Stub); err != nil {
		t.Skip("needs systemd's EFI stub (Debian: apt-get install systemd-boot-efi)")
	}
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	esp := t.TempDir()
	if err := os.MkdirAll(filepath.Join(esp, "EFI/BOOT"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "slipway.efi"), filepath.Join(esp, "EFI/BOOT/BOOTX64.EFI")); err != nil {
		t.Fatal(err)
	}
	v := boot(t, dir, machine{memory: 512, media: true, args: append(firmware, "-drive", "if=virtio,format=raw,readonly=on,file=fat:"+esp)})
	v.expect(`slipway: .* firmware: UEFI`)
	v.expect(`standin: ready`)
}

func TestTheISOBootsWithItsConfiguration(t *testing.T) {
	dir := ramdisk(t, "cloud")
	if _, err := exec.LookPath("grub-mkrescue"); err != nil {
		t.Skip("needs grub-mkrescue (Debian: grub-common grub-pc-bin grub-efi-amd64-bin mtools xorriso)")
	}
	file := filepath.Join(t.TempDir(), "slipway.iso")
	at, err := iso.Build(t.Context(), dir, "console=ttyS0", file)
	if err != nil {
		t.Fatal(err)
	}
	config, err := pack.Archive([]pack.File{{Path: "etc/slipway/boot.json", Mode: 0o600, Data: []byte(`{"conductor":"http://192.0.2.2:6385"}`)}})
	if err != nil {
		t.Fatal(err)
	}
	room, err := iso.Room(config)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(room, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		firmware string
		args     []string
	}{{"BIOS", nil}, {"UEFI", ovmf(t)}} {
		t.Run(c.firmware, func(t *testing.T) {
			v := boot(t, dir, machine{memory: 512, media: true, args: append(c.args, "-cdrom", file)})
			v.expect(`slipway: .* firmware: ` + c.firmware)
			v.expect(`standin: /etc/slipway/boot.json: {"conductor":"http://192.0.2.2:6385"}`)
		})
	}
}
