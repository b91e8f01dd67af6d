// Package ra answers IPv6 router solicitations of booting firmware with an
// advertisement of nothing: lifetime 0, no prefix (RFC 4861 §4.2). iPXE waits
// about 14 s for an IPv6 router on every boot unless something answers (measured,
// iPXE 2019). Such an advertisement says only that this host is no router, so it
// changes nothing for any other host.
package ra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
)

var allNodes, allRouters = net.ParseIP("ff02::1"), net.ParseIP("ff02::2")

// Responder answers on one interface. Listen, then Serve.
type Responder struct {
	Interface string
	Log       *slog.Logger

	ifc  *net.Interface
	conn net.PacketConn
	p    *ipv6.PacketConn
}

// Listen opens the socket.
func (r *Responder) Listen(ctx context.Context) (err error) {
	if r.ifc, err = net.InterfaceByName(r.Interface); err != nil {
		return fmt.Errorf("router advertisements: %w", err)
	}
	if r.conn, err = new(net.ListenConfig).ListenPacket(ctx, "ip6:ipv6-icmp", "::"); err != nil {
		return fmt.Errorf("router advertisements on %s (need root or cap_net_raw, and IPv6 in the kernel): %w", r.Interface, err)
	}
	r.p = ipv6.NewPacketConn(r.conn)
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	err = errors.Join(
		r.p.SetICMPFilter(&filter),
		r.p.JoinGroup(r.ifc, &net.IPAddr{IP: allRouters}),
		r.p.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true),
		r.p.SetMulticastInterface(r.ifc),
		r.p.SetMulticastHopLimit(255), // RFC 4861 §6.1.2: others are dropped
		r.p.SetMulticastLoopback(false),
	)
	if err != nil {
		_ = r.conn.Close()
		return fmt.Errorf("router advertisements on %s (is IPv6 disabled there? see net.ipv6.conf.%s.disable_ipv6): %w", r.Interface, r.Interface, err)
	}
	return nil
}

// Serve answers until ctx ends.
func (r *Responder) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = r.conn.Close() })
	defer stop()
	defer func() { _ = r.conn.Close() }()
	answer := Advertisement(r.ifc.HardwareAddr)
	buf := make([]byte, 1500)
	for {
		n, cm, from, err := r.p.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("router advertisements on %s: %w", r.Interface, err)
		}
		if cm == nil || cm.IfIndex != r.ifc.Index || cm.HopLimit != 255 || !isSolicitation(buf[:n]) {
			continue
		}
		// To all nodes: an answer to the asker alone would first need its address resolved.
		if _, err := r.p.WriteTo(answer, &ipv6.ControlMessage{IfIndex: r.ifc.Index}, &net.IPAddr{IP: allNodes}); err != nil {
			r.Log.WarnContext(ctx, "router advertisement not sent", "to", from, "error", err)
			continue
		}
		r.Log.DebugContext(ctx, "empty router advertisement sent", "to", from)
	}
}

func isSolicitation(b []byte) bool {
	m, err := icmp.ParseMessage(58 /* ICMPv6 */, b)
	return err == nil && m.Type == ipv6.ICMPTypeRouterSolicitation && m.Code == 0 && len(b) >= 8
}

// Advertisement is the ICMPv6 message; the kernel fills in the checksum.
func Advertisement(mac net.HardwareAddr) []byte {
	b := make([]byte, 16, 24) // hop limit, flags, lifetimes and timers all 0: "unspecified"
	b[0] = byte(ipv6.ICMPTypeRouterAdvertisement)
	if len(mac) == 6 {
		b = append(b, 1, 1) // source link-layer address, 8 bytes
		b = append(b, mac...)
	}
	return b
}
