package dhcp

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/slipway-metal/slipway/proto/event"
)

const (
	testMAC    = "52:54:00:aa:00:01"
	testScript = "http://10.77.0.1:6385/boot/0123456789abcdef/script.ipxe"
)

var server = netip.MustParseAddr("10.77.0.1")

// rig is a server without sockets.
type rig struct {
	*Server
	decision Decision
	err      error
	holder   map[netip.Addr]string // what ARP would find
	evidence []event.Evidence
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{holder: map[netip.Addr]string{}}
	cfg := Config{
		Interface: "br0", Address: server, Mode: Full,
		Subnets: []Subnet{
			{Prefix: netip.MustParsePrefix("10.77.0.0/24"), First: netip.MustParseAddr("10.77.0.100"), Last: netip.MustParseAddr("10.77.0.103"),
				Router: server, DNS: []netip.Addr{netip.MustParseAddr("10.77.0.2")}},
			{Prefix: netip.MustParsePrefix("10.78.0.0/24"), First: netip.MustParseAddr("10.78.0.100"), Last: netip.MustParseAddr("10.78.0.200"),
				Router: netip.MustParseAddr("10.78.0.1")},
		},
		Firmware: Firmware{
			Files: map[Arch]string{ArchBIOS: "undionly.kpxe", ArchEFIBC: "ipxe.efi", ArchEFI64: "ipxe.efi"},
			URLs:  map[Arch]string{ArchHTTP64: "http://10.77.0.1:6385/boot/fw/ipxe.efi"},
		},
		Decide: func(context.Context, Client) (Decision, error) { return r.decision, r.err },
		Record: func(_ context.Context, _, _ string, e event.Evidence) { r.evidence = append(r.evidence, e) },
		Log:    slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.holder = func(_ context.Context, ip netip.Addr) string { return r.holder[ip] }
	r.Server = s
	return r
}

func netboot() Decision { return Decision{Netboot: true, Script: testScript, Node: "n"} }

// sent is what a client sends; it goes over the wire format to catch what that loses.
func sent(t *testing.T, kind dhcpv4.MessageType, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	mac, err := net.ParseMAC(testMAC)
	if err != nil {
		t.Fatal(err)
	}
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(mac)}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	return reparse(t, m)
}

func reparse(t *testing.T, m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	t.Helper()
	back, err := dhcpv4.FromBytes(m.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return back
}

func class(arch iana.Arch, name string) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) {
		m.UpdateOption(dhcpv4.OptClassIdentifier(name))
		m.UpdateOption(dhcpv4.OptClientArch(arch))
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, append([]byte{0}, bytes.Repeat([]byte{7}, 16)...)))
	}
}

// The clients, as their packets look on the wire (QEMU 7.2, Debian's ipxe-qemu and OVMF).
var (
	biosPXE  = class(iana.INTEL_X86PC, "PXEClient:Arch:00000:UNDI:002001")
	ovmfPXE  = class(iana.EFI_BC, "PXEClient:Arch:00007:UNDI:003000")
	ovmfHTTP = class(iana.EFI_X86_64_HTTP, "HTTPClient:Arch:00016:UNDI:003001")
	ipxeROM  = func(m *dhcpv4.DHCPv4) {
		biosPXE(m)
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")))
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionEtherboot, []byte{177, 5, 1, 0x1a, 0xf4, 0x10, 0, 235, 3, 1, 0, 0, 19, 1, 1, 17, 1, 1}))
	}
)

func ask(t *testing.T, r *rig, m *dhcpv4.DHCPv4, port int) *dhcpv4.DHCPv4 {
	t.Helper()
	got := r.handle(t.Context(), m, port)
	if got == nil {
		return nil
	}
	r.evidence = append(r.evidence, got.evidence)
	return reparse(t, got.packet)
}

// acquire goes through DISCOVER, OFFER, REQUEST.
func acquire(t *testing.T, r *rig, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	offer := ask(t, r, sent(t, dhcpv4.MessageTypeDiscover, more...), serverPort)
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer {
		t.Fatalf("no offer: %v; evidence %v", offer, r.evidence)
	}
	return ask(t, r, sent(t, dhcpv4.MessageTypeRequest, append(more, selecting(server, offer.YourIPAddr))...), serverPort)
}

func selecting(s netip.Addr, ip net.IP) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) {
		m.UpdateOption(dhcpv4.OptServerIdentifier(s.AsSlice()))
		m.UpdateOption(dhcpv4.OptRequestedIPAddress(ip))
	}
}

func requested(ip string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(ip)))
}

func relayed(m *dhcpv4.DHCPv4) {
	m.GatewayIPAddr = net.ParseIP("10.78.0.1")
	m.UpdateOption(dhcpv4.OptRelayAgentInfo(dhcpv4.OptGeneric(dhcpv4.AgentCircuitIDSubOption, []byte("port 7"))))
}

func TestEachClientIsGivenItsBootFile(t *testing.T) {
	for name, c := range map[string]struct {
		client  dhcpv4.Modifier
		file    string
		class   string
		vendor  []byte // option 43
		noProxy bool
	}{
		"BIOS PXE":        {client: biosPXE, file: "undionly.kpxe", class: "PXEClient", vendor: []byte{6, 1, 8, 255}},
		"OVMF PXE":        {client: ovmfPXE, file: "ipxe.efi", class: "PXEClient", vendor: []byte{6, 1, 8, 255}},
		"OVMF HTTP":       {client: ovmfHTTP, file: "http://10.77.0.1:6385/boot/fw/ipxe.efi", class: "HTTPClient"},
		"iPXE":            {client: ipxeROM, file: testScript, noProxy: true},
		"an ordinary one": {client: func(*dhcpv4.DHCPv4) {}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.decision = netboot()
			ack := acquire(t, r, c.client)
			if ack.MessageType() != dhcpv4.MessageTypeAck || !ack.YourIPAddr.Equal(net.IPv4(10, 77, 0, ack.YourIPAddr.To4()[3])) {
				t.Fatalf("no address: %s", ack.Summary())
			}
			if ack.BootFileName != c.file || ack.BootFileNameOption() != c.file {
				t.Errorf("boot file %q, option 67 %q, want %q", ack.BootFileName, ack.BootFileNameOption(), c.file)
			}
			if got := ack.ClassIdentifier(); got != c.class {
				t.Errorf("option 60 %q, want %q", got, c.class)
			}
			if got := ack.Options.Get(dhcpv4.OptionVendorSpecificInformation); !bytes.Equal(got, c.vendor) {
				t.Errorf("option 43 % x, want % x", got, c.vendor)
			}
			if got := bytes.Equal(ack.Options.Get(dhcpv4.OptionEtherboot), []byte{176, 1, 1}); got != c.noProxy {
				t.Errorf("option 175.176 there: %v, want %v", got, c.noProxy)
			}
			if ack.ServerIPAddr.Equal(server.AsSlice()) != (c.file != "" && c.class != "HTTPClient") {
				t.Errorf("next server %s", ack.ServerIPAddr)
			}
			if ack.IPAddressLeaseTime(0) != time.Hour || !ack.Router()[0].Equal(server.AsSlice()) || len(ack.DNS()) != 1 {
				t.Errorf("network options: %s", ack.Summary())
			}
		})
	}
}

func TestMachineThatShouldNotNetbootGetsAnAddressOnly(t *testing.T) {
	for _, client := range []dhcpv4.Modifier{biosPXE, ovmfPXE, ovmfHTTP, ipxeROM} {
		r := newRig(t, nil)
		ack := acquire(t, r, client)
		if ack.BootFileName != "" || ack.BootFileNameOption() != "" || ack.ClassIdentifier() != "" {
			t.Errorf("boot information for a machine that should boot its disk: %s", ack.Summary())
		}
	}
}

func TestFailedDecisionStillGivesAnAddressAndSaysWhy(t *testing.T) {
	r := newRig(t, nil)
	r.err = errors.New("database is gone")
	ack := acquire(t, r, biosPXE)
	if ack.MessageType() != dhcpv4.MessageTypeAck || ack.BootFileName != "" {
		t.Fatal(ack.Summary())
	}
	if e := r.evidence[0]; e.OK || e.Detail["error"] != "database is gone" {
		t.Errorf("evidence %+v", e)
	}
}

func TestArchitectureWithoutAFileIsNamed(t *testing.T) {
	r := newRig(t, nil)
	r.decision = netboot()
	ack := acquire(t, r, class(iana.EFI_ARM64, "PXEClient:Arch:00011:UNDI:003000"))
	last := r.evidence[len(r.evidence)-1]
	if ack.BootFileName != "" || last.OK || last.Detail["error"] != "no boot file for UEFI ARM64 at stage firmware" {
		t.Errorf("%s; evidence %+v", ack.Summary(), last)
	}
}

func TestIPXEWithoutHTTPIsGivenAFullIPXE(t *testing.T) {
	r := newRig(t, nil)
	r.decision = netboot()
	ack := acquire(t, r, ipxeROM, dhcpv4.WithGeneric(dhcpv4.OptionEtherboot, []byte{17, 1, 1}))
	if ack.BootFileName != "undionly.kpxe" {
		t.Error(ack.Summary())
	}
}

func TestSameAddressFromFirmwareToInstalledOS(t *testing.T) {
	r := newRig(t, nil)
	first := acquire(t, r, biosPXE).YourIPAddr
	for _, id := range [][]byte{{1, 1, 2, 3, 4, 5, 6}, {255, 9, 9}} { // client ids differ between stages
		if got := acquire(t, r, dhcpv4.WithGeneric(dhcpv4.OptionClientIdentifier, id)); !got.YourIPAddr.Equal(first) {
			t.Errorf("another address: %s after %s", got.YourIPAddr, first)
		} else if !bytes.Equal(got.Options.Get(dhcpv4.OptionClientIdentifier), id) {
			t.Error("client id not echoed (RFC 6842)")
		}
	}
}

func TestRenewRebindAndReboot(t *testing.T) {
	r := newRig(t, nil)
	ip := acquire(t, r).YourIPAddr
	renew := ask(t, r, sent(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(ip)), serverPort)
	if renew.MessageType() != dhcpv4.MessageTypeAck || !renew.YourIPAddr.Equal(ip) || !renew.ClientIPAddr.Equal(ip) {
		t.Error("renewing:", renew.Summary())
	}
	reboot := ask(t, r, sent(t, dhcpv4.MessageTypeRequest, requested(ip.String())), serverPort)
	if reboot.MessageType() != dhcpv4.MessageTypeAck {
		t.Error("init-reboot:", reboot.Summary())
	}
	wrongNet := ask(t, r, sent(t, dhcpv4.MessageTypeRequest, requested("192.168.1.7")), serverPort)
	if wrongNet.MessageType() != dhcpv4.MessageTypeNak {
		t.Error("init-reboot from another network must be refused:", wrongNet.Summary())
	}
	foreign := ask(t, r, sent(t, dhcpv4.MessageTypeRequest, requested("10.77.0.1")), serverPort)
	if foreign.MessageType() != dhcpv4.MessageTypeNak {
		t.Error("the server's own address must be refused:", foreign.Summary())
	}
}

func TestClientThatChoseAnotherServerFreesTheOfferAndIsTold(t *testing.T) {
	r := newRig(t, nil)
	offer := ask(t, r, sent(t, dhcpv4.MessageTypeDiscover), serverPort)
	other := netip.MustParseAddr("10.77.0.9")
	if got := ask(t, r, sent(t, dhcpv4.MessageTypeRequest, selecting(other, net.IPv4(10, 77, 0, 50))), serverPort); got != nil {
		t.Error("answered a request meant for another server:", got.Summary())
	}
	if last := r.evidence[len(r.evidence)-1]; last.Fact != "another DHCP server answered" || last.Detail["server"] != "10.77.0.9" {
		t.Errorf("evidence %+v", last)
	}
	if mac := r.MACOf(addr(offer.YourIPAddr)); mac != "" {
		t.Error("offer still held by", mac)
	}
}

func TestReservedAndFixedAddresses(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Reserved = map[string]netip.Addr{testMAC: netip.MustParseAddr("10.77.0.20"), "52:54:00:00:00:99": netip.MustParseAddr("10.77.0.101")}
	})
	if got := acquire(t, r).YourIPAddr; !got.Equal(net.IPv4(10, 77, 0, 20)) {
		t.Error("reserved address not given:", got)
	}
	if nak := ask(t, r, sent(t, dhcpv4.MessageTypeRequest, requested("10.77.0.101")), serverPort); nak.MessageType() != dhcpv4.MessageTypeNak {
		t.Error("gave away another machine's reserved address")
	}
	r.decision.FixedIP = netip.MustParseAddr("10.77.0.30")
	if got := acquire(t, r).YourIPAddr; !got.Equal(net.IPv4(10, 77, 0, 30)) {
		t.Error("fixed address of the plan not given:", got)
	}
}

func TestAddressInUseByAStrangerIsNotOffered(t *testing.T) {
	r := newRig(t, nil)
	for _, last := range []byte{100, 101, 102} {
		r.holder[netip.AddrFrom4([4]byte{10, 77, 0, last})] = "02:00:00:00:00:66"
	}
	if got := acquire(t, r).YourIPAddr; !got.Equal(net.IPv4(10, 77, 0, 103)) {
		t.Error("offered", got)
	}
	r.holder[netip.MustParseAddr("10.77.0.103")] = testMAC // the client itself answers: fine
	if got := acquire(t, r).YourIPAddr; !got.Equal(net.IPv4(10, 77, 0, 103)) {
		t.Error("then", got)
	}
}

func TestDeclinedAddressIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		ip := acquire(t, r).YourIPAddr
		if got := ask(t, r, sent(t, dhcpv4.MessageTypeDecline, selecting(server, ip)), serverPort); got != nil {
			t.Error("a decline is answered:", got.Summary())
		}
		if again := acquire(t, r).YourIPAddr; again.Equal(ip) {
			t.Error("the declined address was given again")
		}
		time.Sleep(conflictTTL + time.Second)
		if back := ask(t, r, sent(t, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.ClientHWAddr[5] = 9; requested(ip.String())(m) }), serverPort); !back.YourIPAddr.Equal(ip) {
			t.Error("still not given after", conflictTTL, back.Summary())
		}
	})
}

func TestReleasedAddressComesBackToItsMachine(t *testing.T) {
	r := newRig(t, nil)
	ip := acquire(t, r).YourIPAddr
	if got := ask(t, r, sent(t, dhcpv4.MessageTypeRelease, dhcpv4.WithClientIP(ip)), serverPort); got != nil {
		t.Error("a release is answered:", got.Summary())
	}
	if mac := r.MACOf(addr(ip)); mac != "" {
		t.Error("still leased to", mac)
	}
	if again := acquire(t, r).YourIPAddr; !again.Equal(ip) {
		t.Errorf("came back to %s instead of %s", again, ip)
	}
}

func TestExhaustedRangeIsSaidAndExpiredLeasesAreReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		for last := range byte(4) {
			acquire(t, r, func(m *dhcpv4.DHCPv4) { m.ClientHWAddr[4] = 1 + last })
		}
		if got := ask(t, r, sent(t, dhcpv4.MessageTypeDiscover), serverPort); got != nil {
			t.Fatal("a fifth address out of four:", got.Summary())
		}
		if last := r.evidence[len(r.evidence)-1]; last.OK || last.Fact != "no address to offer" {
			t.Errorf("evidence %+v", last)
		}
		time.Sleep(time.Hour + time.Second)
		acquire(t, r)
	})
}

func TestInformGetsOptionsAndNoAddress(t *testing.T) {
	r := newRig(t, nil)
	got := ask(t, r, sent(t, dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(net.IPv4(10, 77, 0, 50))), serverPort)
	if got.MessageType() != dhcpv4.MessageTypeAck || !got.YourIPAddr.IsUnspecified() || got.IPAddressLeaseTime(0) != 0 || len(got.DNS()) != 1 {
		t.Error(got.Summary())
	}
}

func TestRelayedClientGetsAnAddressOfItsOwnNetwork(t *testing.T) {
	r := newRig(t, nil)
	m := sent(t, dhcpv4.MessageTypeDiscover, relayed)
	offer := ask(t, r, m, serverPort)
	if !netip.MustParsePrefix("10.78.0.0/24").Contains(addr(offer.YourIPAddr)) || !offer.Router()[0].Equal(net.IPv4(10, 78, 0, 1)) {
		t.Error(offer.Summary())
	}
	if offer.RelayAgentInfo() == nil || !offer.GatewayIPAddr.Equal(net.IPv4(10, 78, 0, 1)) {
		t.Error("option 82 or giaddr not echoed:", offer.Summary())
	}
	if to := destination(m, offer, netip.MustParseAddrPort("10.78.0.1:67"), serverPort); to.String() != "10.78.0.1:67" {
		t.Error("sent to", to)
	}
	unknown := sent(t, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.IPv4(172, 16, 0, 1) })
	if got := ask(t, r, unknown, serverPort); got != nil {
		t.Error("answered a relay of an unknown network:", got.Summary())
	}
}

func TestProxyAnswersOnlyPXEClientsAndGivesNoAddress(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Mode, c.Subnets = Proxy, nil })
	r.decision = netboot()
	offer := ask(t, r, sent(t, dhcpv4.MessageTypeDiscover, ovmfPXE), serverPort)
	if !offer.YourIPAddr.IsUnspecified() || offer.BootFileName != "ipxe.efi" || offer.ClassIdentifier() != "PXEClient" ||
		len(offer.SubnetMask()) != 0 || offer.IPAddressLeaseTime(0) != 0 {
		t.Error(offer.Summary())
	}
	if ack := ask(t, r, sent(t, dhcpv4.MessageTypeRequest, biosPXE), pxePort); ack.MessageType() != dhcpv4.MessageTypeAck || ack.BootFileName != "undionly.kpxe" {
		t.Error(ack.Summary())
	}
	if script := ask(t, r, sent(t, dhcpv4.MessageTypeDiscover, ipxeROM), serverPort); script.BootFileName != testScript {
		t.Error(script.Summary())
	}
	for what, got := range map[string]*dhcpv4.DHCPv4{
		"an ordinary client":                 ask(t, r, sent(t, dhcpv4.MessageTypeDiscover), serverPort),
		"a request meant for the other one":  ask(t, r, sent(t, dhcpv4.MessageTypeRequest, biosPXE), serverPort),
		"a discover on the boot server port": ask(t, r, sent(t, dhcpv4.MessageTypeDiscover, biosPXE), pxePort),
	} {
		if got != nil {
			t.Errorf("%s was answered: %s", what, got.Summary())
		}
	}
	r.decision = Decision{}
	if got := ask(t, r, sent(t, dhcpv4.MessageTypeDiscover, biosPXE), serverPort); got != nil {
		t.Error("a machine that should not boot was answered:", got.Summary())
	}
}

func TestScriptURLIsNoEvidence(t *testing.T) {
	r := newRig(t, nil)
	r.decision = netboot()
	acquire(t, r, ipxeROM)
	for _, e := range r.evidence {
		if e.Detail["boot"] != "script" {
			t.Errorf("evidence shows the secret path: %+v", e)
		}
	}
}

func TestConfigurationMistakesAreNamed(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"no subnet holds": func(c *Config) { c.Subnets = c.Subnets[1:] },
		"lies outside":    func(c *Config) { c.Subnets[0].Last = netip.MustParseAddr("10.79.0.1") },
		"comes before":    func(c *Config) { c.Subnets[0].Last = netip.MustParseAddr("10.77.0.99") },
		"broadcast":       func(c *Config) { c.Subnets[0].Last = netip.MustParseAddr("10.77.0.255") },
		"lease time":      func(c *Config) { c.LeaseTime = time.Second },
		"reserved for":    func(c *Config) { c.Reserved = map[string]netip.Addr{testMAC: server} },
		"unknown mode":    func(c *Config) { c.Mode = "both" },
	} {
		t.Run(want, func(t *testing.T) {
			cfg := newRig(t, nil).cfg
			cfg.Subnets = append([]Subnet(nil), cfg.Subnets...)
			change(&cfg)
			if _, err := New(cfg); err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
				t.Errorf("error %v, want one with %q", err, want)
			}
		})
	}
}

func FuzzHandle(f *testing.F) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0xaa, 0, 1}
	for _, more := range []dhcpv4.Modifier{biosPXE, ovmfPXE, ovmfHTTP, ipxeROM, relayed, requested("10.77.0.100")} {
		for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeDecline} {
			m, err := dhcpv4.New(dhcpv4.WithHwAddr(mac), dhcpv4.WithMessageType(kind), more)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(m.ToBytes(), true)
			f.Add(m.ToBytes(), false)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, proxy bool) {
		m, err := dhcpv4.FromBytes(raw)
		if err != nil {
			return
		}
		r := newRig(t, func(c *Config) {
			if proxy {
				c.Mode, c.Subnets = Proxy, nil
			}
		})
		r.decision = netboot()
		for _, port := range []int{serverPort, pxePort} {
			got := r.handle(t.Context(), m, port)
			if got == nil {
				continue
			}
			back := reparse(t, got.packet)
			if back.OpCode != dhcpv4.OpcodeBootReply || back.TransactionID != m.TransactionID {
				t.Errorf("not a reply to the request: %s", back.Summary())
			}
			ip := addr(back.YourIPAddr)
			if proxy && ip.IsValid() || ip.IsValid() && r.subnet(addr(m.GatewayIPAddr)) == nil {
				t.Errorf("gave address %s", ip)
			}
		}
	})
}
