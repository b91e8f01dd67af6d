package dhcp

import (
	"context"
	"errors"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/slipway-metal/slipway/proto/event"
)

// reply is an answer with its evidence.
type reply struct {
	packet    *dhcpv4.DHCPv4
	node, mac string
	evidence  event.Evidence
}

// request is one packet with what was found out about it.
type request struct {
	*dhcpv4.DHCPv4
	client   Client
	decision Decision
	net      *Subnet // nil in proxy mode
}

// handle decides on the answer to one packet; nil for silence.
func (s *Server) handle(ctx context.Context, m *dhcpv4.DHCPv4, port int) *reply {
	client, ok := identify(m)
	if !ok {
		return nil
	}
	r := &request{DHCPv4: m, client: client}
	if s.cfg.Mode == Proxy {
		return s.proxy(ctx, r, port)
	}
	if r.net = s.subnet(client.Relay); r.net == nil {
		s.record(ctx, "", client.MAC, fact("relayed request refused", false, r,
			"error", "no subnet is configured for the relay "+client.Relay.String()))
		return nil
	}
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		s.decide(ctx, r)
		return s.discover(ctx, r)
	case dhcpv4.MessageTypeRequest:
		s.decide(ctx, r)
		return s.request(ctx, r)
	case dhcpv4.MessageTypeInform:
		s.decide(ctx, r)
		return s.inform(r)
	case dhcpv4.MessageTypeDecline:
		s.decline(ctx, r)
	case dhcpv4.MessageTypeRelease:
		s.release(ctx, r)
	}
	return nil
}

// decide asks what the client should boot.
func (s *Server) decide(ctx context.Context, r *request) {
	if s.cfg.Decide == nil {
		return
	}
	d, err := s.cfg.Decide(ctx, r.client)
	if err != nil {
		s.record(ctx, d.Node, r.client.MAC, fact("boot decision failed", false, r, "error", err.Error()))
		d = Decision{FixedIP: d.FixedIP, Node: d.Node}
	}
	r.decision = d
}

// discover answers with an offer.
func (s *Server) discover(ctx context.Context, r *request) *reply {
	ip, err := s.allocate(ctx, r)
	if err != nil {
		s.record(ctx, r.decision.Node, r.client.MAC, fact("no address to offer", false, r, "error", err.Error()))
		return nil
	}
	return s.lease(r, dhcpv4.MessageTypeOffer, ip, "offer sent")
}

// allocate chooses an address that nothing else answers at.
func (s *Server) allocate(ctx context.Context, r *request) (netip.Addr, error) {
	for {
		ip, fresh, err := s.pool.choose(r.client.MAC, r.net, r.decision.FixedIP, addr(r.RequestedIPAddress()))
		if err != nil || !fresh || r.client.Relay.IsValid() { // ARP does not pass a relay
			return ip, err
		}
		holder := s.holder(ctx, ip)
		if holder == "" || holder == r.client.MAC { // it may run with an address we have forgotten
			return ip, nil
		}
		s.record(ctx, r.decision.Node, r.client.MAC, fact("address conflict", false, r, "ip", ip.String(), "holder", holder,
			"error", "something that has no lease answers at this address; another one is offered"))
		if err := s.pool.inUse(ip); err != nil {
			return netip.Addr{}, err
		}
	}
}

// request answers a REQUEST in each of the client's states (RFC 2131 §4.3.2).
func (s *Server) request(ctx context.Context, r *request) *reply {
	mac, chosen, want := r.client.MAC, addr(r.ServerIdentifier()), addr(r.RequestedIPAddress())
	if chosen.IsValid() && chosen != s.cfg.Address { // SELECTING another server
		s.pool.forgetOffer(mac)
		if _, told := s.strange.LoadOrStore(chosen, struct{}{}); !told {
			s.record(ctx, r.decision.Node, mac, fact("another DHCP server answered", false, r, "server", chosen.String(),
				"error", "this network has a second DHCP server, at "+chosen.String()+": stop one of the two, or run Slipway as proxy"))
		}
		return nil
	}
	if !want.IsValid() {
		want = r.client.IP // RENEWING, REBINDING
	}
	lease, err := s.pool.commit(mac, r.net, want, r.decision.FixedIP, r.client.Hostname)
	switch {
	case errors.Is(err, errNotYours):
		return s.nak(r, want, err)
	case err != nil:
		s.record(ctx, r.decision.Node, mac, fact("lease not stored", false, r, "ip", want.String(), "error", err.Error()))
		return nil
	}
	return s.lease(r, dhcpv4.MessageTypeAck, lease.IP, "address leased")
}

func (s *Server) nak(r *request, want netip.Addr, cause error) *reply {
	p := s.base(r, dhcpv4.MessageTypeNak)
	p.UpdateOption(dhcpv4.OptMessage("address not available"))
	if r.client.Relay.IsValid() {
		p.SetBroadcast() // RFC 2131 §4.3.2: the relay must broadcast it
	}
	return &reply{p, r.decision.Node, r.client.MAC, fact("request refused", false, r, "ip", want.String(), "error", cause.Error())}
}

// inform gives a client that has an address the rest (RFC 2131 §4.3.5).
func (s *Server) inform(r *request) *reply {
	if !r.client.IP.IsValid() {
		return nil
	}
	p := s.base(r, dhcpv4.MessageTypeAck)
	s.addNetwork(p, r.net)
	e := fact("information sent", true, r)
	s.addBoot(p, r, &e)
	return &reply{p, r.decision.Node, r.client.MAC, e}
}

// decline: the client found its new address in use.
func (s *Server) decline(ctx context.Context, r *request) {
	ip := addr(r.RequestedIPAddress())
	if !ip.IsValid() || s.pool.macOf(ip) != r.client.MAC {
		return
	}
	e := fact("address declined", false, r, "ip", ip.String(), "error", "the client found the address in use by another machine")
	if err := s.pool.inUse(ip); err != nil {
		e.Detail["error"] = err.Error()
	}
	s.record(ctx, "", r.client.MAC, e)
}

func (s *Server) release(ctx context.Context, r *request) {
	if !r.client.IP.IsValid() || s.pool.macOf(r.client.IP) != r.client.MAC {
		return
	}
	e := fact("address released", true, r, "ip", r.client.IP.String())
	if err := s.pool.release(r.client.MAC, r.client.IP); err != nil {
		e.OK, e.Detail["error"] = false, err.Error()
	}
	s.record(ctx, "", r.client.MAC, e)
}

// fact is evidence of this hop with pairs of detail.
func fact(what string, ok bool, r *request, pairs ...string) event.Evidence {
	detail := map[string]any{"mac": r.client.MAC, "stage": string(r.client.Stage)}
	if r.client.Arch != ArchNone {
		detail["arch"] = r.client.Arch.String()
	}
	if r.client.Relay.IsValid() {
		detail["relay"] = r.client.Relay.String()
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		detail[pairs[i]] = pairs[i+1]
	}
	return event.Evidence{Hop: event.HopDHCP, Fact: what, OK: ok, Detail: detail}
}
