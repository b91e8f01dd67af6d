package linux

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// etherTypeLLDP is 802.1AB's.
const etherTypeLLDP = 0x88cc

// lldpGroups are the destinations 802.1AB-2016, table 7-1, names.
var lldpGroups = [][6]byte{
	{0x01, 0x80, 0xc2, 0, 0, 0x0e}, {0x01, 0x80, 0xc2, 0, 0, 0x03}, {0x01, 0x80, 0xc2, 0, 0, 0x00},
}

// neighbours holds what each NIC's switch said of itself last.
type neighbours struct {
	log *slog.Logger
	mu  sync.Mutex
	by  map[string][][2]any
}

func newNeighbours(log *slog.Logger) *neighbours {
	return &neighbours{log: log, by: map[string][][2]any{}}
}

// of is the neighbour's TLVs as IPA gives them, nil while none was heard.
func (n *neighbours) of(nic string) [][2]any {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.by[nic]
}

// listen keeps the last frame of one NIC. It is passive and costs nothing
// between frames: the kernel hands this socket LLDP alone.
func (n *neighbours) listen(ctx context.Context, nic string) {
	if err := n.receive(ctx, nic); err != nil && ctx.Err() == nil {
		n.log.Info("no LLDP on this NIC", "nic", nic, "error", err)
	}
}

func (n *neighbours) receive(ctx context.Context, nic string) (err error) {
	ifi, err := net.InterfaceByName(nic)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("LLDP socket: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	for _, g := range lldpGroups {
		req := unix.PacketMreq{Ifindex: int32(ifi.Index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
		copy(req.Address[:], g[:])
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &req); err != nil {
			return fmt.Errorf("LLDP group: %w", err)
		}
	}
	// Network byte order, as packet(7) asks.
	proto := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, etherTypeLLDP))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: ifi.Index}); err != nil {
		return fmt.Errorf("LLDP bind: %w", err)
	}
	// A receive that ends once a second lets the listener end with ctx.
	tv := unix.NsecToTimeval(time.Second.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("LLDP timeout: %w", err)
	}
	buf := make([]byte, 1600)
	for ctx.Err() == nil {
		size, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			return fmt.Errorf("LLDP receive: %w", err)
		}
		if tlvs := parseLLDP(buf[:size]); tlvs != nil {
			n.mu.Lock()
			n.by[nic] = tlvs
			n.mu.Unlock()
		}
	}
	return nil
}

// parseLLDP takes an Ethernet frame apart into [type, hex value] pairs, the end
// TLV left out; nil when it is no whole LLDP frame. A value is at most 511
// bytes by its format.
func parseLLDP(frame []byte) [][2]any {
	const header = 14
	if len(frame) < header+2 || binary.BigEndian.Uint16(frame[12:]) != etherTypeLLDP {
		return nil
	}
	var out [][2]any
	for rest := frame[header:]; len(rest) >= 2; {
		word := binary.BigEndian.Uint16(rest)
		kind, size := int(word>>9), int(word&511)
		if len(rest) < 2+size {
			return nil
		}
		if kind == 0 {
			return out
		}
		out = append(out, [2]any{kind, hex.EncodeToString(rest[2 : 2+size])})
		rest = rest[2+size:]
	}
	return nil
}
