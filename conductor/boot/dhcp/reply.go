package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/slipway-metal/slipway/proto/event"
)

var (
	// discoveryControl is option 43 with PXE 2.1's sub-option 6, bit 3: "download
	// the boot file of this very answer". Without it OVMF looks for a boot server
	// and gives up with PXE-E16 after 13 s (measured, OVMF 2022.11).
	discoveryControl = []byte{6, 1, 8, 255}
	// noProxy is option 175 with iPXE's sub-option 176, no-pxedhcp = 1: don't wait
	// for a proxy's offer, which costs 3 s otherwise (measured, iPXE 2019).
	noProxy = []byte{176, 1, 1}
)

// base is an answer without content: server id, and of the request what RFC
// 2131, 3046 (option 82), 6842 (61) and 4578 (97) want echoed.
func (s *Server) base(r *request, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: r.HWType, TransactionID: r.TransactionID, Flags: r.Flags,
		ClientHWAddr: r.ClientHWAddr, GatewayIPAddr: r.GatewayIPAddr,
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero,
		Options: dhcpv4.Options{},
	}
	p.UpdateOption(dhcpv4.OptMessageType(kind))
	p.UpdateOption(dhcpv4.OptServerIdentifier(s.cfg.Address.AsSlice()))
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionRelayAgentInformation, dhcpv4.OptionClientIdentifier, dhcpv4.OptionClientMachineIdentifier} {
		if v := r.Options.Get(code); len(v) > 0 {
			p.UpdateOption(dhcpv4.OptGeneric(code, v))
		}
	}
	return p
}

// lease is an OFFER or ACK with an address.
func (s *Server) lease(r *request, kind dhcpv4.MessageType, ip netip.Addr, what string) *reply {
	p := s.base(r, kind)
	p.YourIPAddr = ip.AsSlice()
	if kind == dhcpv4.MessageTypeAck {
		p.ClientIPAddr = r.ClientIPAddr
	}
	t := s.cfg.LeaseTime
	p.UpdateOption(dhcpv4.OptIPAddressLeaseTime(t))
	p.UpdateOption(seconds(dhcpv4.OptionRenewTimeValue, t/2))       // T1, RFC 2131 §4.4.5
	p.UpdateOption(seconds(dhcpv4.OptionRebindingTimeValue, t*7/8)) // T2
	s.addNetwork(p, r.net)
	e := fact(what, true, r, "ip", ip.String())
	s.addBoot(p, r, &e)
	return &reply{p, r.decision.Node, r.client.MAC, e}
}

func seconds(code dhcpv4.OptionCode, d time.Duration) dhcpv4.Option {
	return dhcpv4.Option{Code: code, Value: dhcpv4.Duration(d.Truncate(time.Second))}
}

func (s *Server) addNetwork(p *dhcpv4.DHCPv4, n *Subnet) {
	p.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(n.Prefix.Bits(), 32)))
	if n.Router.IsValid() {
		p.UpdateOption(dhcpv4.OptRouter(n.Router.AsSlice()))
	}
	if len(n.DNS) > 0 {
		var servers []net.IP
		for _, a := range n.DNS {
			servers = append(servers, a.AsSlice())
		}
		p.UpdateOption(dhcpv4.OptDNS(servers...))
	}
	if n.Domain != "" {
		p.UpdateOption(dhcpv4.OptDomainName(n.Domain))
	}
}

// addBoot adds what the client should load, by its stage and architecture, and
// says so in the evidence. It reports whether there is something to load.
func (s *Server) addBoot(p *dhcpv4.DHCPv4, r *request, e *event.Evidence) bool {
	c := r.client
	if c.Stage == StageIPXE {
		p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionEtherboot, noProxy))
	}
	if c.Stage == StageOS {
		return false
	}
	if !r.decision.Netboot {
		e.Detail["boot"] = "nothing: this machine should not boot from the network now"
		return false
	}
	file, class := "", ""
	switch c.Stage {
	case StageIPXE:
		file = r.decision.Script
		if s.cfg.Mode == Proxy {
			class = "PXEClient" // iPXE takes a proxy's offer by this
		}
	case StageHTTPBoot:
		file, class = s.cfg.Firmware.URLs[c.Arch], "HTTPClient" // UEFI 2.10 §24.7.3
	case StageFirmware:
		file, class = s.cfg.Firmware.Files[c.Arch], "PXEClient"
	}
	if file == "" {
		e.OK = false
		e.Detail["error"] = fmt.Sprintf("no boot file for %s at stage %s", c.Arch, c.Stage)
		return false
	}
	e.Detail["boot"] = file
	if c.Stage == StageIPXE {
		e.Detail["boot"] = "script" // its URL holds the boot's secret
	}
	p.BootFileName = ""
	if len(file) < 128 {
		p.BootFileName = file
	}
	p.UpdateOption(dhcpv4.OptBootFileName(file))
	if class != "" {
		p.UpdateOption(dhcpv4.OptClassIdentifier(class))
	}
	if class != "HTTPClient" {
		p.ServerIPAddr = s.cfg.Address.AsSlice()
		p.UpdateOption(dhcpv4.OptTFTPServerName(s.cfg.Address.String()))
	}
	if class == "PXEClient" {
		p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, discoveryControl))
	}
	return true
}
