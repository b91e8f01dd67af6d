package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// DefaultProbeTime is how long to look for another DHCP server. dnsmasq pings
// an address for 3 s before it offers it (its PING_WAIT), so less would miss it.
const DefaultProbeTime = 4 * time.Second

// ErrSecondServer is in the chain of Listen's error when the network has an
// authoritative server already.
var ErrSecondServer = errors.New("another DHCP server serves this network")

// refuseSecond fails when an authoritative server answers on the interface.
func refuseSecond(ctx context.Context, cfg Config) error {
	wait := cfg.ProbeTime
	if wait == 0 {
		wait = DefaultProbeTime
	}
	other, err := FindServer(ctx, cfg.Interface, cfg.Address, wait)
	if err != nil {
		return fmt.Errorf("DHCP: look for another server on %s: %w", cfg.Interface, err)
	}
	if other.IsValid() {
		return fmt.Errorf("DHCP: refusing to start on %s: %w: %s answers; stop it, or run Slipway's DHCP as proxy beside it", cfg.Interface, ErrSecondServer, other)
	}
	return nil
}

// FindServer returns the address of the first authoritative DHCP server that
// answers on the interface within wait; invalid when none does. Every second it
// asks in two ways: by an INFORM for self (when the host has an address there),
// which servers answer at once, and by a DISCOVER, for which they look for a free
// address first. Nothing is leased.
func FindServer(ctx context.Context, device string, self netip.Addr, wait time.Duration) (netip.Addr, error) {
	ifc, err := net.InterfaceByName(device)
	if err != nil {
		return netip.Addr{}, err
	}
	conn, err := nclient4.NewRawUDPConn(device, clientPort)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return netip.Addr{}, fmt.Errorf("not allowed; run as root, or grant cap_net_raw: %w", err)
		}
		return netip.Addr{}, err
	}
	defer func() { _ = conn.Close() }()
	asked := map[dhcpv4.TransactionID]bool{}
	ask := func() error {
		var packets []*dhcpv4.DHCPv4
		if self.IsValid() {
			inform, err := dhcpv4.NewInform(ifc.HardwareAddr, self.AsSlice())
			if err != nil {
				return err
			}
			packets = append(packets, inform)
		}
		discover, err := dhcpv4.NewDiscovery(ifc.HardwareAddr, dhcpv4.WithBroadcast(true))
		if err != nil {
			return err
		}
		packets = append(packets, discover)
		for _, p := range packets {
			asked[p.TransactionID] = true
			if _, err := conn.WriteTo(p.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: serverPort}); err != nil {
				return err
			}
		}
		return nil
	}
	end := time.Now().Add(wait)
	for time.Now().Before(end) {
		if err := ctx.Err(); err != nil {
			return netip.Addr{}, err
		}
		if err := ask(); err != nil {
			return netip.Addr{}, err
		}
		until := time.Now().Add(time.Second)
		if until.After(end) {
			until = end
		}
		if other, err := firstAnswer(conn, asked, until); err != nil || other.IsValid() {
			return other, err
		}
	}
	return netip.Addr{}, nil
}

// firstAnswer reads until an authoritative answer to one of ours, or the time.
// A proxy's offer has no address and does not count.
func firstAnswer(conn net.PacketConn, asked map[dhcpv4.TransactionID]bool, until time.Time) (netip.Addr, error) {
	if err := conn.SetReadDeadline(until); err != nil {
		return netip.Addr{}, err
	}
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return netip.Addr{}, nil
		}
		if err != nil {
			return netip.Addr{}, err
		}
		m, err := dhcpv4.FromBytes(buf[:n])
		if err != nil || m.OpCode != dhcpv4.OpcodeBootReply || !asked[m.TransactionID] {
			continue
		}
		offered := m.MessageType() == dhcpv4.MessageTypeOffer && addr(m.YourIPAddr).IsValid()
		informed := m.MessageType() == dhcpv4.MessageTypeAck && m.ClassIdentifier() != "PXEClient"
		if !offered && !informed {
			continue
		}
		if other := addr(m.ServerIdentifier()); other.IsValid() {
			return other, nil
		}
		if u, ok := from.(*net.UDPAddr); ok && addr(u.IP).IsValid() {
			return addr(u.IP), nil
		}
	}
}
