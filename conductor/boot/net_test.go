package boot

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/iana"
	pin "github.com/pin/tftp/v3"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"

	"github.com/slipway-metal/slipway/conductor/boot/dhcp"
	"github.com/slipway-metal/slipway/conductor/boot/udp"
)

// pxeClient makes a packet that of a UEFI machine's firmware.
func pxeClient(m *dhcpv4.DHCPv4) {
	m.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003000"))
	m.UpdateOption(dhcpv4.OptClientArch(iana.EFI_BC))
}

// acquire gets a lease at the station's NIC.
func acquire(t *testing.T, nic string, more ...dhcpv4.Modifier) *nclient4.Lease {
	t.Helper()
	c, err := nclient4.New(nic, nclient4.WithTimeout(2*time.Second))
	must(t, err)
	defer func() { must(t, c.Close()) }()
	lease, err := c.Request(t.Context(), more...)
	must(t, err)
	return lease
}

func TestClientGetsAndKeepsItsAddress(t *testing.T) {
	if t.Parallel(); !inNamespace(t) {
		return
	}
	wires, b := lan(t), newBook()
	start(t, testConfig(t, b, &fixed{plan: testPlan(t)}))
	station(t, wires, "cli", func() {
		plugIn(t, "cli", "")
		first := acquire(t, "cli")
		ip := first.ACK.YourIPAddr
		if first.ACK.BootFileNameOption() != "" {
			t.Error("an ordinary client was given a boot file:", first.ACK.Summary())
		}
		up(t, "cli", ip.String()+"/24")
		if firmware := acquire(t, "cli", pxeClient); !firmware.ACK.YourIPAddr.Equal(ip) || firmware.ACK.BootFileName != DefaultUEFIFile {
			t.Error(firmware.ACK.Summary())
		}
		c, err := nclient4.New("cli", nclient4.WithUnicast(&net.UDPAddr{IP: ip, Port: 68}))
		must(t, err)
		renewed, err := c.Renew(t.Context(), first)
		must(t, err)
		if !renewed.ACK.YourIPAddr.Equal(ip) {
			t.Error(renewed.ACK.Summary())
		}
		must(t, errors.Join(c.Release(renewed), c.Close()))
	})
	b.await(t, func(r row) bool { return r.Fact == "address released" })
}

func TestAddressThatSomethingUsesIsNotGiven(t *testing.T) {
	if t.Parallel(); !inNamespace(t) {
		return
	}
	wires, b := lan(t), newBook()
	cfg := testConfig(t, b, &fixed{plan: Plan{FixedIP: netip.MustParseAddr("10.77.0.50")}})
	start(t, cfg)
	ready, done := make(chan struct{}), make(chan struct{})
	squatter := make(chan struct{})
	go func() {
		defer close(squatter)
		station(t, wires, "squat", func() {
			plugIn(t, "squat", "10.77.0.50/24")
			close(ready)
			<-done
		})
	}()
	<-ready
	station(t, wires, "cli", func() {
		plugIn(t, "cli", "")
		if got := acquire(t, "cli").ACK.YourIPAddr; !cfg.Subnets[0].Prefix.Contains(netip.AddrFrom4([4]byte(got.To4()))) || got.To4()[3] < 100 {
			t.Error("got", got)
		}
	})
	close(done)
	<-squatter
	b.await(t, func(r row) bool { return r.Fact == "address conflict" && r.Detail["ip"] == "10.77.0.50" })
}

func TestSecondDHCPServerIsRefused(t *testing.T) {
	if t.Parallel(); !inNamespace(t) {
		return
	}
	wires := lan(t)
	dnsmasq(t, wires)
	cfg := testConfig(t, newBook(), &fixed{plan: testPlan(t)})
	cfg.ProbeTime = 0
	s, err := New(cfg)
	must(t, err)
	begin := time.Now()
	err = s.Run(t.Context())
	if !errors.Is(err, dhcp.ErrSecondServer) || !strings.Contains(err.Error(), "10.77.0.2") || !strings.Contains(err.Error(), "proxy") {
		t.Errorf("error %v", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("found out after %s", took)
	}
	if holder := udp.Holder("/proc", 67); holder != "" {
		t.Error("port 67 is still held by", holder)
	}
}

func TestQuietNetworkIsServedAfterTheProbe(t *testing.T) {
	if t.Parallel(); !inNamespace(t) {
		return
	}
	lan(t)
	cfg := testConfig(t, newBook(), &fixed{plan: testPlan(t)})
	cfg.ProbeTime = 1200 * time.Millisecond
	start(t, cfg)
	second, err := New(cfg)
	must(t, err)
	if err := second.Run(t.Context()); !errors.Is(err, udp.ErrPortTaken) || !strings.Contains(err.Error(), "boot.test (pid ") {
		t.Errorf("a second one on the same host: %v", err)
	}
}

func TestProxyAddsBootInformationBesideDnsmasq(t *testing.T) {
	if t.Parallel(); !inNamespace(t) {
		return
	}
	wires, b := lan(t), newBook()
	dnsmasq(t, wires)
	cfg := testConfig(t, b, &fixed{plan: testPlan(t)})
	cfg.DHCP, cfg.Subnets = dhcp.Proxy, nil
	start(t, cfg)
	station(t, wires, "cli", func() {
		plugIn(t, "cli", "")
		offers := offersFor(t, "cli", pxeClient)
		if old := offers["10.77.0.2"]; old == nil || old.YourIPAddr.IsUnspecified() || old.BootFileName != "" {
			t.Errorf("dnsmasq's offer: %v", old)
		}
		if ours := offers["10.77.0.1"]; ours == nil || !ours.YourIPAddr.IsUnspecified() || ours.BootFileName != DefaultUEFIFile {
			t.Errorf("our offer: %v", ours)
		}
		if plain := offersFor(t, "cli"); plain["10.77.0.1"] != nil || plain["10.77.0.2"] == nil {
			t.Errorf("an ordinary client's offers: %v", plain)
		}
		lease := acquire(t, "cli")
		if !lease.ACK.ServerIPAddr.Equal([]byte{10, 77, 0, 2}) {
			t.Error(lease.ACK.Summary())
		}
		up(t, "cli", lease.ACK.YourIPAddr.String()+"/24")
		if ack := askPXEPort(t, lease.ACK.YourIPAddr); ack.MessageType() != dhcpv4.MessageTypeAck || ack.BootFileName != DefaultUEFIFile {
			t.Error("port 4011:", ack.Summary())
		}
	})
}

// offersFor collects the offers that come within four seconds (dnsmasq pings for three), by server.
func offersFor(t *testing.T, nic string, more ...dhcpv4.Modifier) map[string]*dhcpv4.DHCPv4 {
	t.Helper()
	ifc, err := net.InterfaceByName(nic)
	must(t, err)
	conn, err := nclient4.NewRawUDPConn(nic, 68)
	must(t, err)
	defer func() { must(t, conn.Close()) }()
	discover, err := dhcpv4.NewDiscovery(ifc.HardwareAddr, append(more, dhcpv4.WithBroadcast(true))...)
	must(t, err)
	_, err = conn.WriteTo(discover.ToBytes(), nclient4.DefaultServers)
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(4*time.Second)))
	offers, buf := map[string]*dhcpv4.DHCPv4{}, make([]byte, 4096)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return offers
		}
		if m, err := dhcpv4.FromBytes(buf[:n]); err == nil && m.TransactionID == discover.TransactionID {
			offers[m.ServerIdentifier().String()] = m
		}
	}
}

// askPXEPort sends what firmware sends to a boot server.
func askPXEPort(t *testing.T, ip net.IP) *dhcpv4.DHCPv4 {
	t.Helper()
	ifc, err := net.InterfaceByName("cli")
	must(t, err)
	m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithHwAddr(ifc.HardwareAddr), dhcpv4.WithClientIP(ip), pxeClient)
	must(t, err)
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: ip, Port: 68}, &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1), Port: 4011})
	must(t, err)
	defer func() { must(t, conn.Close()) }()
	_, err = conn.Write(m.ToBytes())
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(3*time.Second)))
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	must(t, err)
	back, err := dhcpv4.FromBytes(buf[:n])
	must(t, err)
	return back
}

func TestTFTPServesItsMapAndNothingElse(t *testing.T) {
	if t.Parallel(); !inNamespace(t) {
		return
	}
	wires, b := lan(t), newBook()
	start(t, testConfig(t, b, &fixed{plan: testPlan(t)}))
	station(t, wires, "cli", func() {
		plugIn(t, "cli", "")
		lease := acquire(t, "cli")
		up(t, "cli", lease.ACK.YourIPAddr.String()+"/24")
		c, err := pin.NewClient("10.77.0.1:69")
		must(t, err)
		c.SetTimeout(time.Second)
		c.RequestTSize(true)
		for _, blksize := range []int{512, 1428} {
			c.SetBlockSize(blksize)
			from, err := c.Receive("undionly.kpxe", "octet")
			must(t, err)
			if size, ok := from.(pin.IncomingTransfer).Size(); !ok || size != 7000*14 {
				t.Errorf("tsize %d %v", size, ok)
			}
			var got bytes.Buffer
			_, err = from.WriteTo(&got)
			must(t, err)
			if got.Len() != 7000*14 || !strings.HasPrefix(got.String(), "undionly.kpxe\nundionly") {
				t.Errorf("%d bytes", got.Len())
			}
		}
		for _, name := range []string{"../../etc/passwd", "/etc/passwd", "..%2fpasswd", "nothing", ""} {
			if _, err := c.Receive(name, "octet"); err == nil || !strings.Contains(err.Error(), "no such file here") {
				t.Errorf("%q: %v", name, err)
			}
		}
		if _, err := c.Send("undionly.kpxe", "octet"); err == nil {
			t.Error("something can be written")
		}
		mac, err := net.InterfaceByName("cli")
		must(t, err)
		b.await(t, func(r row) bool {
			return r.Fact == "file served" && r.OK && r.mac == mac.HardwareAddr.String() && r.Detail["bytes"] == int64(7000*14)
		})
		b.await(t, func(r row) bool { return r.Fact == "file refused" && !r.OK })
	})
}

func TestRouterSolicitationIsAnsweredWithNothing(t *testing.T) {
	if t.Parallel(); !inNamespace(t) {
		return
	}
	wires := lan(t)
	start(t, testConfig(t, newBook(), &fixed{plan: testPlan(t)}))
	station(t, wires, "cli", func() {
		plugIn(t, "cli", "") // the kernel solicits as well, and must take no route from the answer
		ifc, err := net.InterfaceByName("cli")
		must(t, err)
		conn, err := new(net.ListenConfig).ListenPacket(context.Background(), "ip6:ipv6-icmp", "::")
		must(t, err)
		defer func() { must(t, conn.Close()) }()
		p := ipv6.NewPacketConn(conn)
		must(t, errors.Join(p.SetMulticastInterface(ifc), p.SetMulticastHopLimit(255), p.SetControlMessage(ipv6.FlagHopLimit, true)))
		deadline := time.Now().Add(10 * time.Second)
		buf := make([]byte, 1500)
		for {
			if time.Now().After(deadline) {
				t.Error("no advertisement")
				return
			}
			// The address is tentative for up to two seconds; sending fails until then.
			_, err := p.WriteTo([]byte{133, 0, 0, 0, 0, 0, 0, 0}, nil, &net.IPAddr{IP: net.ParseIP("ff02::2"), Zone: "cli"})
			must(t, p.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
			n, cm, _, readErr := p.ReadFrom(buf)
			if err != nil || readErr != nil || buf[0] != 134 {
				continue
			}
			if n != 24 || cm.HopLimit != 255 || !bytes.Equal(buf[4:16], make([]byte, 12)) {
				t.Errorf("advertisement % x, hop limit %d", buf[:n], cm.HopLimit)
			}
			break
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
		must(t, err)
		for _, r := range routes {
			if r.Gw != nil {
				t.Errorf("a route came of it: %s", r)
			}
		}
	})
}
