package linux

import (
	"context"
	"encoding/hex"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/proto/agent"
)

// lldpFrame is a switch's: chassis id, port id "Eth1", TTL 120, system name "sw1", end.
const lldpFrame = "0180c200000e" + "020000000001" + "88cc" +
	"0207" + "04020000000001" + "0405" + "0545746831" + "0602" + "0078" + "0a03" + "737731" + "0000"

var lldpTLVs = [][2]any{{1, "04020000000001"}, {2, "0545746831"}, {3, "0078"}, {5, "737731"}}

func frame(t *testing.T) []byte {
	t.Helper()
	b, err := hex.DecodeString(lldpFrame)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseLLDP(t *testing.T) {
	f := frame(t)
	if d := cmp.Diff(lldpTLVs, parseLLDP(f)); d != "" {
		t.Fatal(d)
	}
	if got := parseLLDP(append(f, 0, 0, 0)); len(got) != 4 {
		t.Fatalf("padded to Ethernet's least length: %v", got)
	}
	for n := range len(f) {
		if got := parseLLDP(f[:n]); got != nil {
			t.Fatalf("cut after %d bytes: %v", n, got)
		}
	}
}

func FuzzParseLLDP(f *testing.F) {
	b, err := hex.DecodeString(lldpFrame)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, tlv := range parseLLDP(raw) {
			if s, ok := tlv[1].(string); !ok || len(s) > 2*511 {
				t.Fatalf("TLV %v", tlv)
			}
		}
	})
}

// The layout of linux/ipmi.h on 64-bit machines; the sizes are part of the calls' numbers.
func TestIPMILayout(t *testing.T) {
	if a, b, c := unsafe.Sizeof(ipmiReq{}), unsafe.Sizeof(ipmiRecv{}), unsafe.Sizeof(ipmiMsg{}); a != 40 || b != 48 || c != 16 {
		t.Fatalf("sizes %d %d %d", a, b, c)
	}
	if ipmiSend != 0x8028690d || ipmiReceiveTrunc != 0xc030690b {
		t.Fatalf("calls %#x %#x", uint(ipmiSend), uint(ipmiReceiveTrunc))
	}
}

func TestLANAddress(t *testing.T) {
	if a := lanAddress([]byte{0, 0x11, 10, 1, 2, 3}, 2, 4); a == nil || *a != "10.1.2.3" {
		t.Fatalf("got %v", a)
	}
	for _, reply := range [][]byte{{0, 0x11, 0, 0, 0, 0}, {0, 0x11, 255, 255, 255, 255}, {0, 0x11, 10}, nil} {
		if a := lanAddress(reply, 2, 4); a != nil {
			t.Errorf("%v gave %s", reply, *a)
		}
	}
}

const inside = "SLIPWAY_TEST_NETNS"

// namespaced runs the test of that name once more in a network and mount
// namespace of its own; it says whether it is the one inside.
func namespaced(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && cmd.ProcessState == nil:
		t.Skip("no namespaces here: ", err)
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("%s", out)
	}
	return false
}

// cable makes two NICs that are joined; the far one has an address.
func cable(t *testing.T) (near, far netlink.Link) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "near"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far"}); err != nil {
		t.Skip("no veth here: ", err)
	}
	var links []netlink.Link
	for _, name := range []string{"near", "far"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
		links = append(links, l)
	}
	return links[0], links[1]
}

// A real exchange with a real server over a real link: address, route, name
// servers and MTU are set, and the lease is renewed before it ends.
func TestDHCP(t *testing.T) {
	if !namespaced(t) {
		return
	}
	near, far := cable(t)
	// Not /etc of the machine that runs the test.
	if err := unix.Mount("tmpfs", "/etc", "tmpfs", 0, ""); err != nil {
		t.Skip("no mounts here: ", err)
	}
	server := net.IPv4(10, 99, 0, 1)
	if err := netlink.AddrAdd(far, &netlink.Addr{IPNet: &net.IPNet{IP: server, Mask: net.CIDRMask(24, 32)}}); err != nil {
		t.Fatal(err)
	}
	asked := make(chan dhcpv4.MessageType, 16)
	s, err := server4.NewServer("far", &net.UDPAddr{Port: 67}, func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		kind := map[dhcpv4.MessageType]dhcpv4.MessageType{dhcpv4.MessageTypeDiscover: dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeRequest: dhcpv4.MessageTypeAck}[m.MessageType()]
		reply, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(server), dhcpv4.WithYourIP(net.IPv4(10, 99, 0, 7)),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IPv4(10, 99, 0, 254)),
			dhcpv4.WithDNS(net.IPv4(10, 99, 0, 53)), dhcpv4.WithLeaseTime(600), dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{0x05, 0x78})))
		if err == nil {
			_, err = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
		}
		if err != nil {
			t.Error(err)
		}
		asked <- m.MessageType()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()               //nolint:errcheck // the namespace ends with the test
	go func() { _ = s.Serve() }() // ends with Close
	nic := agent.Interface{Name: "near", MACAddress: near.Attrs().HardwareAddr.String()}
	n := &Network{log: slog.New(slog.DiscardHandler), bootMAC: nic.MACAddress, ready: make(chan struct{})}
	var lease *nclient4.Lease
	for _, want := range [][]dhcpv4.MessageType{{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest}, {dhcpv4.MessageTypeRequest}} {
		if lease, err = exchange(t.Context(), nic, lease); err != nil {
			t.Fatal(err)
		}
		if err := n.apply(nic, lease); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if got := <-asked; got != w {
				t.Fatalf("asked %s, want %s", got, w)
			}
		}
	}
	addrs, err := netlink.AddrList(near, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != "10.99.0.7/24" || addrs[0].ValidLft < 500 {
		t.Fatalf("addresses %v %v", addrs, err)
	}
	routes, err := netlink.RouteGet(net.IPv4(203, 0, 113, 1))
	if err != nil || len(routes) != 1 || !routes[0].Gw.Equal(net.IPv4(10, 99, 0, 254)) {
		t.Fatalf("routes %v %v", routes, err)
	}
	again, err := netlink.LinkByName("near")
	if err != nil || again.Attrs().MTU != 1400 {
		t.Fatalf("MTU %d %v", again.Attrs().MTU, err)
	}
	if resolv, err := os.ReadFile("/etc/resolv.conf"); err != nil || string(resolv) != "nameserver 10.99.0.53\n" {
		t.Fatalf("resolv.conf %q %v", resolv, err)
	}
	// The lease moves: the old address goes.
	lease.ACK.YourIPAddr = net.IPv4(10, 99, 0, 8)
	if err := n.apply(nic, lease); err != nil {
		t.Fatal(err)
	}
	if addrs, err := netlink.AddrList(near, netlink.FAMILY_V4); err != nil || len(addrs) != 1 || addrs[0].IP.String() != "10.99.0.8" {
		t.Fatalf("addresses %v %v", addrs, err)
	}
}

// A switch that tells of itself is heard, and what is not LLDP is not.
func TestLLDPIsHeard(t *testing.T) {
	if !namespaced(t) {
		return
	}
	_, far := cable(t)
	n := newNeighbours(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { n.listen(ctx, "near"); close(done) }()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		t.Skip("no af_packet here: ", err)
	}
	defer unix.Close(fd) //nolint:errcheck // the test ends
	to := &unix.SockaddrLinklayer{Ifindex: far.Attrs().Index}
	for deadline := time.Now().Add(10 * time.Second); n.of("near") == nil && time.Now().Before(deadline); {
		if err := unix.Sendto(fd, frame(t), 0, to); err != nil && err != unix.ENETDOWN {
			t.Fatal(err)
		}
		pause(ctx, 20*time.Millisecond)
	}
	if d := cmp.Diff(lldpTLVs, n.of("near")); d != "" {
		t.Fatal(d)
	}
	cancel()
	<-done
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	ack, err := dhcpv4.New(dhcpv4.WithDNS(net.IPv4(1, 1, 1, 1), net.IPv4(2, 2, 2, 2), net.IPv4(3, 3, 3, 3), net.IPv4(4, 4, 4, 4)), dhcpv4.WithDomainSearchList("rack.example"))
	if err != nil {
		t.Fatal(err)
	}
	if err := writeResolvConf(path, ack); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != "search rack.example\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n" {
		t.Fatalf("%q %v", got, err)
	}
}

// The boot NIC is asked first and at once; others only when it has had its time.
func TestMayAsk(t *testing.T) {
	boot, up, down := agent.Interface{MACAddress: "aa"}, agent.Interface{MACAddress: "bb", HasCarrier: true}, agent.Interface{MACAddress: "cc"}
	n := &Network{bootMAC: "aa", ready: make(chan struct{})}
	if !n.mayAsk(boot, 0) || n.mayAsk(up, time.Second) || !n.mayAsk(up, otherNICs+1) || n.mayAsk(down, time.Hour) {
		t.Error("with a boot NIC")
	}
	close(n.ready)
	if n.mayAsk(up, time.Hour) {
		t.Error("others are asked though the boot NIC has its lease")
	}
	n = &Network{ready: make(chan struct{})}
	if !n.mayAsk(up, 0) || n.mayAsk(down, 0) {
		t.Error("without a boot NIC")
	}
}
