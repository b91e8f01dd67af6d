package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// arpWait is how long an address may take to answer before it counts as free.
// Hosts of a LAN answer within a millisecond or two; the wait is paid once for
// each machine, before its first offer, and is well below any client's patience.
const arpWait = 150 * time.Millisecond

// arpProbe asks by ARP who has target and returns its MAC, "" when nobody
// answers. The sender's protocol address is 0 (RFC 5227 §2.1.1), which leaves
// everybody's ARP cache alone.
func arpProbe(ctx context.Context, device string, target netip.Addr, wait time.Duration) (string, error) {
	ifc, err := net.InterfaceByName(device)
	if err != nil {
		return "", err
	}
	conn, err := packet.Listen(ifc, packet.Datagram, unix.ETH_P_ARP, nil)
	if err != nil {
		return "", fmt.Errorf("ARP on %s: %w", device, err)
	}
	defer func() { _ = conn.Close() }()
	until := time.Now().Add(wait)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	if err := conn.SetReadDeadline(until); err != nil {
		return "", err
	}
	everybody := &packet.Addr{HardwareAddr: net.HardwareAddr{255, 255, 255, 255, 255, 255}}
	if _, err := conn.WriteTo(arpRequest(ifc.HardwareAddr, target), everybody); err != nil {
		return "", fmt.Errorf("ARP on %s: %w", device, err)
	}
	buf := make([]byte, 128)
	for {
		n, _, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("ARP on %s: %w", device, err)
		}
		if mac := arpAnswer(buf[:n], target); mac != "" {
			return mac, nil
		}
	}
}

// arpRequest is RFC 826's 28 bytes for Ethernet and IPv4.
func arpRequest(from net.HardwareAddr, target netip.Addr) []byte {
	b := make([]byte, 28)
	binary.BigEndian.PutUint16(b[0:], 1)      // Ethernet
	binary.BigEndian.PutUint16(b[2:], 0x0800) // IPv4
	b[4], b[5] = 6, 4                         // address lengths, bytes
	binary.BigEndian.PutUint16(b[6:], 1)      // request
	copy(b[8:14], from)
	copy(b[24:28], target.AsSlice())
	return b
}

// arpAnswer returns the MAC of an ARP reply's sender when it has target, else "".
func arpAnswer(b []byte, target netip.Addr) string {
	if len(b) >= 28 && binary.BigEndian.Uint16(b[2:]) == 0x0800 && b[4] == 6 && b[5] == 4 &&
		binary.BigEndian.Uint16(b[6:]) == 2 && netip.AddrFrom4([4]byte(b[14:18])) == target {
		return net.HardwareAddr(b[8:14]).String()
	}
	return ""
}
