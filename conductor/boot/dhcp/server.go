// Package dhcp is the DHCPv4 server of the boot network. In Full mode it gives
// addresses to every machine, netbooting or not; in Proxy mode it stands beside
// an existing server and adds boot information for PXE clients alone. What a
// machine should boot is decided by the caller's Decide.
//
// RFC 2131 (DHCP), 2132 (options), 3046 (relays), 4578 (PXE), 6842 (client id),
// Intel's PXE 2.1, UEFI 2.10 §24 (PXE and HTTP boot).
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/slipway-metal/slipway/conductor/boot/udp"
	"github.com/slipway-metal/slipway/proto/event"
)

// Mode is how the server takes part in a network.
type Mode string

// Modes.
const (
	Full  Mode = "full"  // gives addresses; the only server of its network
	Proxy Mode = "proxy" // beside another server: boot information only
)

// Ports of RFC 2131 and, for PXE's second port, Intel's PXE 2.1 §2.2.
const (
	serverPort = 67
	clientPort = 68
	pxePort    = 4011
)

// Decision is what one client gets besides an address.
type Decision struct {
	// Netboot hands out boot files; without it the client gets an address at most.
	Netboot bool
	// Script is the URL that an iPXE client is given.
	Script string
	// FixedIP, when valid, is the address this client gets.
	FixedIP netip.Addr
	// Node is for evidence: the node's UUID or "".
	Node string
}

// Firmware is what a client that has no iPXE yet is given.
type Firmware struct {
	Files map[Arch]string // TFTP file names
	URLs  map[Arch]string // for UEFI HTTP boot
}

// Config of a server.
type Config struct {
	Interface string     // network interface, e.g. br0
	Address   netip.Addr // the server's own address on it
	Mode      Mode
	// Subnets to give addresses in; the one with Address serves the interface's
	// own link, others are for relays. Full mode only.
	Subnets   []Subnet
	Reserved  map[string]netip.Addr // MAC (lower case, colons) → address
	LeaseTime time.Duration         // whole seconds; 0 is an hour
	Leases    Leases                // nil is in memory
	Firmware  Firmware
	// Decide may be called several times at once. Its error leaves the client
	// with an address and without boot files.
	Decide func(context.Context, Client) (Decision, error)
	// Record takes evidence; node may be "".
	Record func(ctx context.Context, node, mac string, e event.Evidence)
	// ProbeTime is how long Listen looks for another server before it starts in
	// Full mode; 0 is DefaultProbeTime, negative does not look (a network that the
	// caller made itself).
	ProbeTime time.Duration
	Log       *slog.Logger
}

// Server answers DHCP. Listen, then Serve.
type Server struct {
	cfg     Config
	pool    *pool
	conns   map[int]*net.UDPConn                            // by port
	holder  func(ctx context.Context, ip netip.Addr) string // MAC of what answers at ip, "" for none
	slots   chan struct{}
	strange sync.Map // netip.Addr → struct{}: other servers already told about
}

// New checks the configuration.
func New(cfg Config) (*Server, error) {
	if !cfg.Address.Is4() {
		return nil, errors.New("DHCP: the server needs an IPv4 address of its own")
	}
	if cfg.LeaseTime == 0 {
		cfg.LeaseTime = time.Hour
	}
	if cfg.LeaseTime < time.Minute || cfg.LeaseTime > 365*24*time.Hour {
		return nil, fmt.Errorf("DHCP: lease time %s is not between a minute and a year", cfg.LeaseTime)
	}
	if cfg.Leases == nil {
		cfg.Leases = NewMemoryLeases()
	}
	s := &Server{cfg: cfg, conns: map[int]*net.UDPConn{}, slots: make(chan struct{}, 64)}
	s.holder = func(ctx context.Context, ip netip.Addr) string {
		mac, err := arpProbe(ctx, cfg.Interface, ip, arpWait)
		if err != nil {
			cfg.Log.WarnContext(ctx, "address conflict check failed", "ip", ip, "error", err)
		}
		return mac
	}
	switch cfg.Mode {
	case Proxy:
		return s, nil
	case Full:
	default:
		return nil, fmt.Errorf("DHCP: unknown mode %q: full or proxy", cfg.Mode)
	}
	own := []netip.Addr{cfg.Address}
	for _, n := range cfg.Subnets {
		if err := checkSubnet(n); err != nil {
			return nil, err
		}
		if n.Router.IsValid() && n.Router != cfg.Address {
			own = append(own, n.Router)
		}
	}
	if s.subnet(netip.Addr{}) == nil {
		return nil, fmt.Errorf("DHCP: no subnet holds the server's own address %s; configure one for %s", cfg.Address, cfg.Interface)
	}
	var err error
	s.pool, err = newPool(cfg.Leases, cfg.LeaseTime, cfg.Reserved, own)
	return s, err
}

// checkSubnet refuses ranges that are empty, reversed or outside.
func checkSubnet(n Subnet) error {
	if !n.Prefix.Addr().Is4() || n.Prefix.Bits() < 8 || n.Prefix.Bits() > 30 {
		return fmt.Errorf("DHCP: subnet %s is not an IPv4 network between /8 and /30", n.Prefix)
	}
	if n.First.IsValid() != n.Last.IsValid() {
		return fmt.Errorf("DHCP %s: a range needs a first and a last address", n.Prefix)
	}
	if n.First.IsValid() {
		base := number(n.Prefix.Masked().Addr())
		broadcast := address(base | ^uint32(0)>>n.Prefix.Bits())
		switch {
		case !n.contains(n.First) || !n.contains(n.Last):
			return fmt.Errorf("DHCP %s: the range %s to %s lies outside", n.Prefix, n.First, n.Last)
		case n.Last.Less(n.First):
			return fmt.Errorf("DHCP %s: the range's last address %s comes before its first, %s", n.Prefix, n.Last, n.First)
		case number(n.First) == base || n.Last == broadcast:
			return fmt.Errorf("DHCP %s: the range holds the network's own or its broadcast address", n.Prefix)
		}
	}
	if n.Router.IsValid() && !n.contains(n.Router) {
		return fmt.Errorf("DHCP %s: the router %s lies outside", n.Prefix, n.Router)
	}
	return nil
}

// subnet finds the network of a relay, or with an invalid address our own.
func (s *Server) subnet(relay netip.Addr) *Subnet {
	if !relay.IsValid() {
		relay = s.cfg.Address
	}
	for i := range s.cfg.Subnets {
		if s.cfg.Subnets[i].contains(relay) {
			return &s.cfg.Subnets[i]
		}
	}
	return nil
}

// MACOf says which client has ip now; "" when unknown.
func (s *Server) MACOf(ip netip.Addr) string {
	if s.pool == nil {
		return ""
	}
	return s.pool.macOf(ip)
}

// Listen looks for other servers (Full mode) and opens the sockets. Its errors
// say what is in the way.
func (s *Server) Listen(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	ports := []int{serverPort}
	if s.cfg.Mode == Proxy {
		ports = append(ports, pxePort)
	}
	for _, port := range ports {
		// Bound to no address: broadcasts would not reach a bound one.
		if s.conns[port], err = udp.Listen(ctx, s.cfg.Interface, netip.IPv4Unspecified(), port); err != nil {
			delete(s.conns, port)
			return fmt.Errorf("DHCP: %w", err)
		}
	}
	if s.cfg.Mode == Full && s.cfg.ProbeTime >= 0 {
		if err := refuseSecond(ctx, s.cfg); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) close() {
	for _, c := range s.conns {
		_ = c.Close() // only reads and answers on the way are lost
	}
}

// Serve answers until ctx ends, then closes the sockets.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	defer s.close()
	failed := make(chan error, len(s.conns))
	var readers, handlers sync.WaitGroup
	for port, conn := range s.conns {
		readers.Go(func() {
			if err := s.read(ctx, conn, port, &handlers); err != nil {
				failed <- err
			}
			cancel()
		})
	}
	readers.Wait()
	handlers.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// read takes packets off one socket. At most cap(slots) are worked on at once;
// more are dropped, which clients cure by repeating.
func (s *Server) read(ctx context.Context, conn *net.UDPConn, port int, handlers *sync.WaitGroup) error {
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("DHCP on %s port %d: %w", s.cfg.Interface, port, err)
		}
		m, err := dhcpv4.FromBytes(buf[:n])
		if err != nil {
			s.cfg.Log.DebugContext(ctx, "DHCP packet dropped", "from", from, "error", err)
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			s.cfg.Log.WarnContext(ctx, "DHCP packet dropped: too many at once", "from", from)
			continue
		}
		handlers.Go(func() {
			defer func() { <-s.slots }()
			s.answer(ctx, conn, m, from, port)
		})
	}
}

// answer sends the reply to one packet.
func (s *Server) answer(ctx context.Context, conn *net.UDPConn, m *dhcpv4.DHCPv4, from netip.AddrPort, port int) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r := s.handle(ctx, m, port)
	if r == nil {
		return
	}
	to := destination(m, r.packet, from, port)
	if _, err := conn.WriteToUDPAddrPort(r.packet.ToBytes(), to); err != nil {
		r.evidence.OK = false
		r.evidence.Detail["error"] = fmt.Sprintf("send to %s: %v", to, err)
	}
	s.record(ctx, r.node, r.mac, r.evidence)
}

func (s *Server) record(ctx context.Context, node, mac string, e event.Evidence) {
	level := slog.LevelInfo
	if !e.OK {
		level = slog.LevelWarn
	}
	s.cfg.Log.LogAttrs(ctx, level, "dhcp: "+e.Fact, slog.String("node", node), slog.String("mac", mac), slog.Any("detail", e.Detail))
	if s.cfg.Record != nil {
		s.cfg.Record(context.WithoutCancel(ctx), node, mac, e)
	}
}

// destination is where RFC 2131 §4.1 sends a reply. A client without an address
// that asks for unicast would need an entry in the neighbour table before it can
// answer ARP; a broadcast reaches it as well and is what the RFC falls back to.
func destination(req, reply *dhcpv4.DHCPv4, from netip.AddrPort, port int) netip.AddrPort {
	broadcast := netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), clientPort)
	relay, client := addr(req.GatewayIPAddr), addr(req.ClientIPAddr)
	switch {
	case port == pxePort: // PXE 2.1: back to where it came from
		if !from.Addr().IsUnspecified() {
			return from
		}
		return netip.AddrPortFrom(broadcast.Addr(), from.Port())
	case relay.IsValid():
		return netip.AddrPortFrom(relay, serverPort)
	case reply.MessageType() == dhcpv4.MessageTypeNak:
		return broadcast
	case client.IsValid():
		return netip.AddrPortFrom(client, clientPort)
	}
	return broadcast
}
