package boot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/slipway-metal/slipway/conductor/boot/dhcp"
	"github.com/slipway-metal/slipway/conductor/boot/ra"
	"github.com/slipway-metal/slipway/conductor/boot/tftp"
	"github.com/slipway-metal/slipway/proto/event"
)

// DefaultFirmwareDir is where Debian's package ipxe puts its files.
const DefaultFirmwareDir = "/usr/lib/ipxe"

// Config of the boot services. With DHCP "" only Handler works: for virtual media
// and for iPXE that is started by other means.
type Config struct {
	// Resolver is required.
	Resolver Resolver
	Record   Recorder     // nil drops evidence
	Log      *slog.Logger // nil is slog.Default
	// BaseURL is the conductor's plain-HTTP address as machines reach it, e.g.
	// "http://10.77.0.1:6385". Debian's iPXE trusts no private CA, so what it fetches
	// is not https; the ramdisk pins the conductor's CA by its boot configuration.
	BaseURL string

	// DHCP is "", "full" or "proxy".
	DHCP      dhcp.Mode
	Interface string     // of DHCP, TFTP and router advertisements
	Address   netip.Addr // on Interface; invalid takes its first IPv4 address
	Subnets   []dhcp.Subnet
	Reserved  map[string]netip.Addr // MAC → address
	LeaseTime time.Duration         // 0 is an hour
	Leases    dhcp.Leases           // nil is in memory; see dhcp.OpenFileLeases
	// ProbeTime: see dhcp.Config. Negative for a network that has no other server for sure.
	ProbeTime time.Duration

	// FirmwareDir holds undionly.kpxe, ipxe.efi and snponly.efi; "" is DefaultFirmwareDir.
	FirmwareDir string
	// UEFIFile is the iPXE for UEFI machines; "" is DefaultUEFIFile.
	UEFIFile string
}

// Names of iPXE's builds. undionly and snponly use the firmware's own NIC driver,
// so they work wherever PXE does, and on the NIC that it booted from; ipxe.efi
// brings its own drivers.
// Under OVMF neither is faster (12 to 13.5 s from power-on to Linux).
const (
	BIOSFile        = "undionly.kpxe"
	DefaultUEFIFile = "snponly.efi"
)

// Server is the boot services of a conductor.
type Server struct {
	cfg      Config
	firmware map[string][]byte
	dhcp     *dhcp.Server // nil without DHCP
	tftp     *tftp.Server
	ra       *ra.Responder
	ready    chan struct{}
}

// New checks the configuration and reads iPXE's binaries.
func New(cfg Config) (*Server, error) {
	if cfg.Resolver == nil {
		return nil, errors.New("boot: no resolver")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.FirmwareDir == "" {
		cfg.FirmwareDir = DefaultFirmwareDir
	}
	if cfg.UEFIFile == "" {
		cfg.UEFIFile = DefaultUEFIFile
	}
	u, err := url.Parse(cfg.BaseURL)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("boot: base URL %q: want http://address:port as the machines reach the conductor", cfg.BaseURL)
	}
	cfg.BaseURL = strings.TrimSuffix(cfg.BaseURL, "/")
	s := &Server{cfg: cfg, ready: make(chan struct{}), firmware: map[string][]byte{}}
	if cfg.DHCP == "" {
		return s, nil
	}
	if cfg.Interface == "" {
		return nil, errors.New("boot: DHCP needs the network interface to serve on")
	}
	if !cfg.Address.IsValid() {
		if cfg.Address, err = firstIPv4(cfg.Interface); err != nil {
			return nil, err
		}
		s.cfg.Address = cfg.Address
	}
	if err := s.readFirmware(); err != nil {
		return nil, err
	}
	s.dhcp, err = dhcp.New(dhcp.Config{
		Interface: cfg.Interface, Address: cfg.Address, Mode: cfg.DHCP, Subnets: cfg.Subnets, Reserved: cfg.Reserved,
		LeaseTime: cfg.LeaseTime, Leases: cfg.Leases, ProbeTime: cfg.ProbeTime, Log: cfg.Log,
		Firmware: s.offers(), Decide: s.decide, Record: s.deliver,
	})
	if err != nil {
		return nil, err
	}
	s.tftp = &tftp.Server{Interface: cfg.Interface, Address: cfg.Address, Files: s.firmware, Log: cfg.Log,
		Record: func(ctx context.Context, ip netip.Addr, e event.Evidence) { s.deliver(ctx, "", s.macOf(ip), e) }}
	s.ra = &ra.Responder{Interface: cfg.Interface, Log: cfg.Log}
	return s, nil
}

// offers says which architecture is given what.
func (s *Server) offers() dhcp.Firmware {
	return dhcp.Firmware{
		Files: map[Arch]string{dhcp.ArchBIOS: BIOSFile, dhcp.ArchEFIBC: s.cfg.UEFIFile, dhcp.ArchEFI64: s.cfg.UEFIFile},
		URLs:  map[Arch]string{dhcp.ArchHTTP64: s.url("fw", s.cfg.UEFIFile)},
	}
}

func (s *Server) readFirmware() error {
	for _, name := range []string{BIOSFile, "ipxe.efi", "snponly.efi", s.cfg.UEFIFile} {
		raw, err := os.ReadFile(filepath.Join(s.cfg.FirmwareDir, name))
		if errors.Is(err, os.ErrNotExist) && name != BIOSFile && name != s.cfg.UEFIFile {
			continue
		}
		if err != nil {
			return fmt.Errorf("boot: iPXE for %s machines: install Debian's package ipxe, or name the directory that has %s: %w",
				map[bool]string{true: "BIOS", false: "UEFI"}[name == BIOSFile], name, err)
		}
		s.firmware[name] = raw
	}
	return nil
}

// decide is DHCP's question to the resolver.
func (s *Server) decide(ctx context.Context, c dhcp.Client) (dhcp.Decision, error) {
	p, err := s.cfg.Resolver.Resolve(ctx, Request{MAC: c.MAC, IP: c.IP, Arch: c.Arch, Stage: c.Stage})
	d := dhcp.Decision{Netboot: p.Netboot, FixedIP: p.FixedIP, Node: p.Node}
	if err != nil || !p.Netboot {
		return d, err
	}
	if err := checkPath(p.Path); err != nil {
		return d, fmt.Errorf("plan of node %s: %w", p.Node, err)
	}
	d.Script = s.url(p.Path, "script.ipxe")
	return d, nil
}

// Ready is closed when all sockets are open.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run opens the sockets, answers until ctx ends, and returns with all of them
// closed. An error says which service could not start, why, and what to do.
func (s *Server) Run(ctx context.Context) error {
	if s.dhcp == nil {
		close(s.ready)
		<-ctx.Done()
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	if err := s.tftp.Listen(ctx); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	g.Go(func() error { return s.tftp.Serve(ctx) })
	if err := s.ra.Listen(ctx); err != nil {
		// Machines boot without it, 14 s later.
		s.cfg.Log.WarnContext(ctx, "no router advertisements: iPXE will wait for an IPv6 router at every boot", "error", err)
	} else {
		g.Go(func() error { return s.ra.Serve(ctx) })
	}
	g.Go(func() error {
		if err := s.dhcp.Listen(ctx); err != nil {
			return fmt.Errorf("boot: %w", err)
		}
		s.cfg.Log.InfoContext(ctx, "boot services ready", "interface", s.cfg.Interface, "address", s.cfg.Address.String(), "dhcp", string(s.cfg.DHCP))
		close(s.ready)
		return s.dhcp.Serve(ctx)
	})
	return g.Wait()
}

// record logs and delivers evidence.
func (s *Server) record(ctx context.Context, node, mac string, e event.Evidence) {
	level := slog.LevelInfo
	if !e.OK {
		level = slog.LevelWarn
	}
	s.cfg.Log.LogAttrs(ctx, level, e.Hop+": "+e.Fact, slog.String("node", node), slog.String("mac", mac), slog.Any("detail", e.Detail))
	s.deliver(ctx, node, mac, e)
}

func (s *Server) deliver(ctx context.Context, node, mac string, e event.Evidence) {
	if s.cfg.Record != nil {
		s.cfg.Record(ctx, node, mac, e)
	}
}

// macOf finds a client by its address: our lease, else the kernel's neighbours.
func (s *Server) macOf(ip netip.Addr) string {
	if s.dhcp != nil {
		if mac := s.dhcp.MACOf(ip); mac != "" {
			return mac
		}
	}
	f, err := os.Open("/proc/thread-self/net/arp")
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// IP address, HW type, Flags, HW address, Mask, Device
		if col := strings.Fields(lines.Text()); len(col) >= 4 && col[0] == ip.String() {
			mac, _ := cleanMAC(col[3])
			return mac
		}
	}
	return ""
}

// cleanMAC normalises an Ethernet address to lower case with colons.
func cleanMAC(raw string) (string, bool) {
	mac, err := net.ParseMAC(raw)
	if err != nil || len(mac) != 6 || mac.String() == "00:00:00:00:00:00" {
		return "", false
	}
	return mac.String(), true
}

func firstIPv4(device string) (netip.Addr, error) {
	ifc, err := net.InterfaceByName(device)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("boot: interface %s: %w; see `ip link`", device, err)
	}
	addrs, err := ifc.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("boot: interface %s: %w", device, err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("boot: interface %s has no IPv4 address; add one (ip address add …) before DHCP can serve there", device)
}
