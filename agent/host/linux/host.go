// Package linux is the machine the agent runs on: the only place of the agent
// that makes system calls.
package linux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/agent/efi"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/recorded"
	"github.com/slipway-metal/slipway/agent/host/scan"
	"github.com/slipway-metal/slipway/agent/probe"
	"github.com/slipway-metal/slipway/proto/agent"
)

const root = scan.Root("/")

// Host implements host.Host for the running machine.
type Host struct {
	log     *slog.Logger
	bootMAC string
	lldp    *neighbours
	settled chan struct{}

	bmcOnce sync.Once
	bmc     bmcAddresses
}

// New makes the running machine's Host. bootMAC is the NIC the firmware booted
// from, "" when unknown.
func New(log *slog.Logger, bootMAC string) *Host {
	h := &Host{log: log, bootMAC: bootMAC, lldp: newNeighbours(log), settled: make(chan struct{})}
	go h.settle()
	return h
}

// Times of waiting for disks that are still being found.
const (
	settleQuiet = 300 * time.Millisecond // without a new disk
	settleMost  = 5 * time.Second
	settlePoll  = 50 * time.Millisecond
)

// settle closes h.settled when no more disks seem to come. It runs beside DHCP,
// so that it costs nothing on most machines.
func (h *Host) settle() {
	defer close(h.settled)
	start, changed, last := time.Now(), time.Now(), 0
	for time.Since(start) < settleMost {
		if n := len(root.BlockDevices()); n != last {
			last, changed = n, time.Now()
		}
		if time.Since(changed) >= settleQuiet && root.Settled() {
			return
		}
		time.Sleep(settlePoll)
	}
	h.log.Warn("not all disks may have been found yet", "waited", settleMost.String())
}

// awaitDisks waits for settle.
func (h *Host) awaitDisks(ctx context.Context) {
	select {
	case <-h.settled:
	case <-ctx.Done():
	}
}

// BootID implements host.Host.
func (h *Host) BootID() string { return root.BootID() }

// Inventory implements host.Host.
func (h *Host) Inventory(ctx context.Context) (agent.Inventory, error) {
	h.awaitDisks(ctx)
	inv := root.Inventory(h.bootMAC)
	for i := range inv.Interfaces {
		nic := &inv.Interfaces[i]
		nic.IPv4Address, nic.IPv6Address = addresses(nic.Name)
		nic.LLDP = h.lldp.of(nic.Name)
	}
	h.bmcOnce.Do(func() { h.bmc = readBMC(h.log) })
	inv.BMCAddress, inv.BMCV6Address = h.bmc.v4, h.bmc.v6
	for i := range inv.Disks {
		h.addContent(ctx, &inv.Disks[i])
	}
	return inv, ctx.Err()
}

// Disks implements host.Host.
func (h *Host) Disks(ctx context.Context) ([]agent.Disk, error) {
	h.awaitDisks(ctx)
	disks := root.Disks()
	for i := range disks {
		h.addContent(ctx, &disks[i])
	}
	return disks, ctx.Err()
}

// addContent looks at what is on the disk; one that can't be read is no reason
// to give no inventory, it shows on the console.
func (h *Host) addContent(ctx context.Context, d *agent.Disk) {
	dev, err := h.OpenRead(ctx, *d)
	if err != nil {
		h.log.Warn("can't look at disk", "disk", d.Name, "error", err)
		return
	}
	defer dev.Close() //nolint:errcheck // only read from
	d.Content, err = probe.Content(dev, d.Size, d.LogicalSectors)
	if err != nil {
		h.log.Warn("can't look at disk", "disk", d.Name, "error", err)
	}
}

// addresses are an interface's first global addresses.
func addresses(name string) (v4, v6 *string) {
	nic, err := net.InterfaceByName(name)
	if err != nil {
		return nil, nil
	}
	addrs, err := nic.Addrs()
	if err != nil {
		return nil, nil
	}
	for _, a := range addrs {
		ip, _, err := net.ParseCIDR(a.String())
		if err != nil || !ip.IsGlobalUnicast() {
			continue
		}
		s := ip.String()
		if ip.To4() != nil && v4 == nil {
			v4 = &s
		} else if ip.To4() == nil && v6 == nil {
			v6 = &s
		}
	}
	return v4, v6
}

// EFI implements host.Host.
func (h *Host) EFI() (efi.Vars, error) {
	if !root.UEFI() {
		return nil, host.ErrNoEFI
	}
	return openVars()
}

// KernelLog implements host.Host.
func (h *Host) KernelLog() ([]byte, error) {
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return nil, fmt.Errorf("kernel log: size: %w", err)
	}
	buf := make([]byte, n)
	if n, err = unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf); err != nil {
		return nil, fmt.Errorf("kernel log: %w", err)
	}
	return buf[:n], nil
}

// Record implements host.Host.
func (h *Host) Record() ([]byte, error) { return recorded.Capture("/") }

// SetClock implements host.Host.
func (h *Host) SetClock(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// Halt implements host.Host.
func (h *Host) Halt(a host.Action) error {
	unix.Sync()
	var err error
	switch a {
	case host.PowerOff:
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case host.Reboot:
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case host.Lockdown:
		err = allLinksDown()
	default:
		err = errors.New("unknown action")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", a, err)
	}
	return nil
}

// LastCrash is what /init kept of an agent that died before this one, and
// removes it; "" when none did.
func LastCrash() string {
	const path = "/run/slipway/last-crash"
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if err := os.Remove(path); err != nil {
		return strings.TrimSpace(string(raw)) + " (and " + err.Error() + ")"
	}
	return strings.TrimSpace(string(raw))
}

// kernelName is a disk's name in sysfs.
func kernelName(d agent.Disk) string {
	return strings.ReplaceAll(strings.TrimPrefix(filepath.Clean(d.Name), "/dev/"), "/", "!")
}

// MemoryTotal is what the kernel has, bytes.
func MemoryTotal() int64 { return root.Memory().Total }
