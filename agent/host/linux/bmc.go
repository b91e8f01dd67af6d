package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bmcAddresses are the BMC's own, nil when unknown.
type bmcAddresses struct{ v4, v6 *string }

// The message interface of linux/ipmi.h, as laid out on 64-bit machines.
type (
	ipmiSystemAddr struct {
		kind    int32
		channel int16
		lun     uint8
		_       uint8
	}
	ipmiMsg struct {
		netFn, cmd uint8
		size       uint16
		data       unsafe.Pointer
	}
	ipmiReq struct {
		addr     unsafe.Pointer
		addrSize uint32
		id       int64
		msg      ipmiMsg
	}
	ipmiRecv struct {
		kind     int32
		addr     unsafe.Pointer
		addrSize uint32
		id       int64
		msg      ipmiMsg
	}
)

const (
	ipmiSystemInterface = 0x0c // IPMI_SYSTEM_INTERFACE_ADDR_TYPE
	ipmiBMCChannel      = 0x0f
	ipmiSend            = 2<<30 | unsafe.Sizeof(ipmiReq{})<<16 | 'i'<<8 | 13  // IPMICTL_SEND_COMMAND
	ipmiReceiveTrunc    = 3<<30 | unsafe.Sizeof(ipmiRecv{})<<16 | 'i'<<8 | 11 // IPMICTL_RECEIVE_MSG_TRUNC
	ipmiTransport       = 0x0c                                                // network function of LAN commands (IPMI 2.0, 23)
	ipmiGetLAN          = 0x02
	lanIPv4             = 3  // parameter: address
	lanIPv6Static       = 56 // parameter: IPv6 static addresses
	lanIPv6Dynamic      = 59 // parameter: IPv6 dynamic addresses
	lastLANChannel      = 11
	ipmiTimeout         = 3 * time.Second
)

// readBMC asks the BMC for its addresses through the kernel's IPMI device.
func readBMC(log *slog.Logger) bmcAddresses {
	var f *os.File
	var err error
	for _, name := range []string{"/dev/ipmi0", "/dev/ipmi/0", "/dev/ipmidev/0"} {
		if f, err = os.OpenFile(name, os.O_RDWR|unix.O_CLOEXEC, 0); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("BMC address unknown", "error", err)
		}
		return bmcAddresses{}
	}
	defer f.Close() //nolint:errcheck // asked only
	var out bmcAddresses
	for ch := byte(1); ch <= lastLANChannel && out.v4 == nil && out.v6 == nil; ch++ {
		reply, err := lanParameter(f, ch, lanIPv4, 0)
		if err != nil {
			log.Debug("BMC channel has no LAN", "channel", ch, "error", err)
			continue
		}
		out.v4 = lanAddress(reply, 2, 4)
		for _, p := range []byte{lanIPv6Static, lanIPv6Dynamic} {
			// The reply has set selector and source before the address (IPMI 2.0, table 23-4).
			if reply, err := lanParameter(f, ch, p, 0); err == nil && out.v6 == nil {
				out.v6 = lanAddress(reply, 4, 16)
			}
		}
	}
	return out
}

// lanAddress cuts an address out of a reply; nil for one that is not set.
func lanAddress(reply []byte, off, size int) *string {
	if len(reply) < off+size {
		return nil
	}
	ip := net.IP(reply[off : off+size])
	if ip.IsUnspecified() || !ip.IsGlobalUnicast() {
		return nil
	}
	s := ip.String()
	return &s
}

func lanParameter(f *os.File, channel, parameter, set byte) ([]byte, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	data := []byte{channel, parameter, set, 0}
	addr := &ipmiSystemAddr{kind: ipmiSystemInterface, channel: ipmiBMCChannel}
	pin.Pin(&data[0])
	pin.Pin(addr)
	req := &ipmiReq{addr: unsafe.Pointer(addr), addrSize: uint32(unsafe.Sizeof(*addr)), id: int64(parameter),
		msg: ipmiMsg{netFn: ipmiTransport, cmd: ipmiGetLAN, size: uint16(len(data)), data: unsafe.Pointer(&data[0])}}
	fd := f.Fd()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, ipmiSend, uintptr(unsafe.Pointer(req))); errno != 0 {
		return nil, fmt.Errorf("IPMI send: %w", errno)
	}
	for deadline := time.Now().Add(ipmiTimeout); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(deadline).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("IPMI poll: %w", err)
		}
		if n == 0 {
			return nil, fmt.Errorf("IPMI: no answer within %s", ipmiTimeout)
		}
		buf := make([]byte, 128)
		pin.Pin(&buf[0])
		recv := &ipmiRecv{addr: unsafe.Pointer(addr), addrSize: uint32(unsafe.Sizeof(*addr)),
			msg: ipmiMsg{size: uint16(len(buf)), data: unsafe.Pointer(&buf[0])}}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, ipmiReceiveTrunc, uintptr(unsafe.Pointer(recv))); errno != 0 {
			return nil, fmt.Errorf("IPMI receive: %w", errno)
		}
		if recv.id != int64(parameter) {
			continue // the answer to a question given up before
		}
		reply := buf[:min(int(recv.msg.size), len(buf))]
		if len(reply) == 0 || reply[0] != 0 {
			return nil, fmt.Errorf("IPMI: completion code %#x", reply)
		}
		return reply, nil
	}
}
