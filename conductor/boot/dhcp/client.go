package dhcp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Arch is the client's architecture by option 93 (RFC 4578; IANA "Processor
// Architecture Types").
type Arch uint16

// Architectures that matter here. UEFI machines send 7 or 9 for x86-64: the
// RFC says 9, its errata and most firmware 7.
const (
	ArchBIOS     Arch = 0
	ArchEFI32    Arch = 6
	ArchEFIBC    Arch = 7
	ArchEFI64    Arch = 9
	ArchEFIARM32 Arch = 10
	ArchEFIARM64 Arch = 11
	ArchHTTP32   Arch = 15
	ArchHTTP64   Arch = 16
	ArchHTTPARM  Arch = 19
	ArchNone     Arch = 0xffff // the client did not say: no PXE firmware
)

// UEFI says whether the client's firmware is UEFI.
func (a Arch) UEFI() bool { return a != ArchBIOS && a != ArchNone }

// String is the name people know.
func (a Arch) String() string {
	switch a {
	case ArchBIOS:
		return "BIOS"
	case ArchEFI32:
		return "UEFI IA32"
	case ArchEFIBC, ArchEFI64:
		return "UEFI x86-64"
	case ArchEFIARM32:
		return "UEFI ARM32"
	case ArchEFIARM64:
		return "UEFI ARM64"
	case ArchHTTP32:
		return "UEFI IA32 HTTP"
	case ArchHTTP64:
		return "UEFI x86-64 HTTP"
	case ArchHTTPARM:
		return "UEFI ARM64 HTTP"
	case ArchNone:
		return "none"
	}
	return fmt.Sprintf("architecture %d", uint16(a))
}

// Stage says how far the client has come.
type Stage string

// Stages.
const (
	StageFirmware Stage = "firmware" // PXE of the machine's own firmware: gets iPXE by TFTP
	StageHTTPBoot Stage = "http"     // UEFI HTTP boot: gets iPXE by HTTP
	StageIPXE     Stage = "ipxe"     // iPXE: gets the script's URL
	StageOS       Stage = "os"       // an ordinary client: gets an address
)

// Client is what a DHCP packet says about its sender.
type Client struct {
	MAC      string     // lower case, colons
	IP       netip.Addr // its address now (ciaddr), invalid when it has none
	Arch     Arch
	Stage    Stage
	Hostname string // as the client claims, printable ASCII only
	Relay    netip.Addr
}

// identify reads a packet's sender; false for one we don't serve.
func identify(m *dhcpv4.DHCPv4) (Client, bool) {
	if m.OpCode != dhcpv4.OpcodeBootRequest || len(m.ClientHWAddr) != 6 || m.ClientHWAddr[0]&1 != 0 ||
		bytes.Equal(m.ClientHWAddr, make([]byte, 6)) {
		return Client{}, false
	}
	c := Client{
		MAC: strings.ToLower(m.ClientHWAddr.String()), IP: addr(m.ClientIPAddr), Relay: addr(m.GatewayIPAddr),
		Arch: ArchNone, Stage: StageOS, Hostname: printable(m.HostName(), 63),
	}
	if raw := m.Options.Get(dhcpv4.OptionClientSystemArchitectureType); len(raw) >= 2 {
		c.Arch = Arch(uint16(raw[0])<<8 | uint16(raw[1]))
	}
	class := m.ClassIdentifier()
	switch {
	case isIPXE(m):
		c.Stage = StageIPXE
	case strings.HasPrefix(class, "HTTPClient"):
		c.Stage = StageHTTPBoot
	case strings.HasPrefix(class, "PXEClient"):
		c.Stage = StageFirmware
		if c.Arch == ArchNone {
			c.Arch = ArchBIOS // RFC 4578 wants option 93; old ROMs leave it out
		}
	}
	return c, true
}

// isIPXE looks for iPXE's user class (option 77), sent bare or, by RFC 3004,
// with a length byte. An iPXE that lists its features (option 175) without HTTP
// (sub-option 19) can't fetch our script, so it counts as firmware and is given
// a full iPXE.
func isIPXE(m *dhcpv4.DHCPv4) bool {
	class := m.Options.Get(dhcpv4.OptionUserClassInformation)
	if !bytes.Equal(class, []byte("iPXE")) && !bytes.Equal(class, []byte("\x04iPXE")) {
		return false
	}
	features := m.Options.Get(dhcpv4.OptionEtherboot)
	if len(features) == 0 {
		return true
	}
	_, hasHTTP := suboption(features, 19)
	return hasHTTP
}

// suboption finds one sub-option of an encapsulated option.
func suboption(raw []byte, code byte) ([]byte, bool) {
	for len(raw) >= 2 && raw[0] != byte(255) {
		if raw[0] == 0 { // pad
			raw = raw[1:]
			continue
		}
		n := int(raw[1])
		if len(raw) < 2+n {
			return nil, false
		}
		if raw[0] == code {
			return raw[2 : 2+n], true
		}
		raw = raw[2+n:]
	}
	return nil, false
}

// addr converts, with 0.0.0.0 and junk as the invalid address.
func addr(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip.To4())
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// printable keeps what may go to a log or a file: printable ASCII without
// quotes and backslash, at most n bytes.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), n)]
}
