package dhcp

import (
	"context"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// proxy answers beside another server: an OFFER without an address to a PXE
// client's DISCOVER, and an ACK to a REQUEST or INFORM on port 4011 (PXE 2.1
// §2.2.3). Ordinary clients, and machines that should not boot, get silence.
func (s *Server) proxy(ctx context.Context, r *request, port int) *reply {
	if r.client.Stage == StageOS {
		return nil
	}
	kind, what := dhcpv4.MessageTypeOffer, "proxy offer sent"
	switch r.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if port != serverPort {
			return nil
		}
	case dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform:
		if port != pxePort {
			return nil // on port 67 it is meant for the other server
		}
		kind, what = dhcpv4.MessageTypeAck, "proxy answer sent"
	default:
		return nil
	}
	s.decide(ctx, r)
	p := s.base(r, kind)
	p.ClientIPAddr = r.ClientIPAddr
	e := fact(what, true, r)
	if !s.addBoot(p, r, &e) {
		if r.decision.Netboot { // it should boot, and we have nothing for it
			s.record(ctx, r.decision.Node, r.client.MAC, e)
		}
		return nil
	}
	return &reply{p, r.decision.Node, r.client.MAC, e}
}
