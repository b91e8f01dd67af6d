package scan

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/slipway-metal/slipway/proto/agent"
)

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// maxNICs bounds the inventory (threat T12: 10,000 NICs).
const maxNICs = 512

// Interfaces are the NICs that have hardware behind them, in the kernel's order
// of names.
func (r Root) Interfaces() []agent.Interface {
	const dir = "sys/class/net"
	out := []agent.Interface{}
	for _, name := range r.names(dir) {
		if !r.exists(dir, name, "device") || len(out) == maxNICs {
			continue // loopback, bridges, tunnels
		}
		mac := strings.ToLower(r.text(dir, name, "address"))
		if mac == "" || mac == "00:00:00:00:00:00" {
			continue
		}
		nic := agent.Interface{
			Name: clean(name), MACAddress: mac,
			HasCarrier: r.text(dir, name, "carrier") == "1",
			Vendor:     opt(r.text(dir, name, "device/vendor")),
			Product:    opt(r.text(dir, name, "device/device")),
			PCIAddress: opt(r.busAddress(dir, name)),
		}
		if link, err := os.Readlink(r.path(dir, name, "device/driver")); err == nil {
			nic.Driver = opt(filepath.Base(link))
		}
		// The kernel says -1 for unknown; a link that is down answers EINVAL.
		if n := int(r.number(dir, name, "speed")); n > 0 {
			nic.SpeedMbps = &n
		}
		out = append(out, nic)
	}
	return out
}

// busAddress is the PCI address of a NIC; for a virtio NIC, which the kernel
// shows as virtio0, that of the PCI function it belongs to, where there is one.
func (r Root) busAddress(dir, name string) string {
	dev, err := filepath.EvalSymlinks(r.path(dir, name, "device"))
	if err != nil {
		return ""
	}
	if !pciAddress.MatchString(filepath.Base(dev)) {
		if up := filepath.Base(filepath.Dir(dev)); pciAddress.MatchString(up) {
			return up
		}
	}
	return filepath.Base(dev)
}
