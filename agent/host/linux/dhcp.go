package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/proto/agent"
)

// exchangeTimeout is how long one DHCP message waits for its answer.
const exchangeTimeout = 2 * time.Second

// keepLease asks until there is a lease, and keeps it: renewed from half its
// time on (T1 of RFC 2131, 4.4.5), asked for anew when it is refused or over.
func (n *Network) keepLease(ctx context.Context, nic agent.Interface) {
	backoff := firstBackoff
	var lease *nclient4.Lease
	for try := 1; ctx.Err() == nil; try++ {
		next, err := exchange(ctx, nic, lease)
		if err == nil {
			err = n.apply(nic, next)
		}
		if err != nil {
			var nak *nclient4.ErrNak
			if lease != nil && (errors.As(err, &nak) || time.Since(lease.CreationTime) > leaseTime(lease)*7/8) {
				lease = nil // T2 is over, or the server took it back
			}
			if ctx.Err() == nil {
				n.log.Warn("no DHCP answer", "nic", nic.Name, "mac", nic.MACAddress, "attempt", try, "again_in", backoff.String(), "error", err)
			}
			pause(ctx, jitter(backoff))
			backoff = min(backoff*2, maxBackoff)
			continue
		}
		renewal := lease != nil
		lease, backoff, try = next, firstBackoff, 0
		level := n.log.Info
		if renewal {
			level = n.log.Debug
		}
		level("DHCP lease", "nic", nic.Name, "address", lease.ACK.YourIPAddr.String(), "server", lease.ACK.ServerIdentifier().String(), "lease", leaseTime(lease).String())
		n.once.Do(func() { close(n.ready) })
		pause(ctx, jitter(leaseTime(lease)*2/5)) // 0.3 to 0.5 of it
	}
}

// leaseTime is the lease's length; an hour when the server gave none.
func leaseTime(l *nclient4.Lease) time.Duration {
	return max(l.ACK.IPAddressLeaseTime(time.Hour), 30*time.Second)
}

// exchange makes its client anew each time: the client's raw socket would take a
// copy of every packet of the image while it is open.
func exchange(ctx context.Context, nic agent.Interface, lease *nclient4.Lease) (*nclient4.Lease, error) {
	hw, err := net.ParseMAC(nic.MACAddress)
	if err != nil {
		return nil, err
	}
	c, err := nclient4.New(nic.Name, nclient4.WithTimeout(exchangeTimeout), nclient4.WithRetry(3), nclient4.WithHWAddr(hw))
	if err != nil {
		return nil, fmt.Errorf("DHCP socket (is the kernel module af_packet loaded?): %w", err)
	}
	defer c.Close() //nolint:errcheck // nothing is lost with it
	mods := []dhcpv4.Modifier{
		// iPXE's identifier: the server gives the same address again.
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier(append([]byte{1}, hw...))),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("slipway-agent")),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
			dhcpv4.OptionInterfaceMTU, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionDNSDomainSearchList),
	}
	if lease != nil {
		return c.Renew(ctx, lease, mods...)
	}
	return c.Request(ctx, mods...)
}

// apply sets the lease's address, routes, MTU and name servers.
func (n *Network) apply(nic agent.Interface, lease *nclient4.Lease) error {
	link, err := netlink.LinkByName(nic.Name)
	if err != nil {
		return fmt.Errorf("link %s: %w", nic.Name, err)
	}
	ack := lease.ACK
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask()
	}
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil && mtu >= 576 && int(mtu) != link.Attrs().MTU {
		if err := netlink.LinkSetMTU(link, int(mtu)); err != nil {
			n.log.Warn("MTU of the lease not set", "nic", nic.Name, "mtu", mtu, "error", err)
		}
	}
	addr := &net.IPNet{IP: ack.YourIPAddr, Mask: mask}
	// The earlier lease's address goes first: the kernel drops the younger addresses
	// of a network together with its first.
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("link %s: addresses: %w", nic.Name, err)
	}
	for _, a := range old {
		if !a.IP.Equal(addr.IP) && a.ValidLft > 0 && a.ValidLft < int(^uint32(0)) { // none that was set by hand
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("link %s: drop address %s: %w", nic.Name, a.IPNet, err)
			}
		}
	}
	secs := int(leaseTime(lease).Seconds())
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: addr, ValidLft: secs, PreferedLft: secs}); err != nil {
		return fmt.Errorf("link %s: address %s: %w", nic.Name, addr, err)
	}
	if err := n.setRoutes(link, nic, ack, addr); err != nil {
		return err
	}
	return writeResolvConf("/etc/resolv.conf", ack)
}

// setRoutes: option 121 counts alone where it is given (RFC 3442).
func (n *Network) setRoutes(link netlink.Link, nic agent.Interface, ack *dhcpv4.DHCPv4, addr *net.IPNet) error {
	metric := 1000 + link.Attrs().Index
	if nic.MACAddress == n.bootMAC {
		metric = 100
	}
	add := func(dst *net.IPNet, gw net.IP) error {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: gw, Priority: metric}
		if gw.IsUnspecified() {
			r.Gw, r.Scope = nil, netlink.SCOPE_LINK
		} else if !addr.Contains(gw) {
			r.Flags = int(unix.RTNH_F_ONLINK)
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("link %s: route %s by %s: %w", nic.Name, dst, gw, err)
		}
		return nil
	}
	if routes := ack.ClasslessStaticRoute(); len(routes) > 0 {
		for _, r := range routes {
			if err := add(r.Dest, r.Router); err != nil {
				return err
			}
		}
		return nil
	}
	for _, gw := range ack.Router() {
		return add(&net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, gw)
	}
	return nil
}

func writeResolvConf(path string, ack *dhcpv4.DHCPv4) error {
	servers := ack.DNS()
	if len(servers) == 0 {
		return nil
	}
	var b strings.Builder
	if list := ack.DomainSearch(); list != nil && len(list.Labels) > 0 {
		fmt.Fprintln(&b, "search", strings.Join(list.Labels, " "))
	}
	for _, s := range servers[:min(3, len(servers))] { // resolvers read three
		fmt.Fprintln(&b, "nameserver", s)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("name servers of the lease: %w", err)
	}
	return nil
}
