// Package serve puts the conductor together: store, work, flows, BMCs, boot
// services and the API, in one process.
package serve

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Config is what `slipway serve` takes; see its --help for each meaning.
type Config struct {
	Data            string
	Listen          string
	Auth            string // none or http_basic
	Htpasswd        string
	TLSCert, TLSKey string

	BootInterface   string
	ProvisionListen string // "" is the boot interface's address, port 8080
	DHCP            string // full, proxy, off
	DHCPRange       string // first-last; "" is the upper half of the interface's network
	IPXE            string
	Ramdisk         string // directory with vmlinuz and initramfs.cpio.zst
	KernelArgs      []string
	Images          string

	CallbackTimeout time.Duration
	AgentSilence    time.Duration // how long a working agent may not be heard of
	PowerSync       time.Duration // between two looks at every BMC's power state; 0 is never
	BMCTimeout      time.Duration // of one exchange with a BMC; 0 is bmc's default
	PowerTimeout    time.Duration // from an accepted power change to its effect; 0 is bmc's default
	Workers         int
}

// defaultKernelArgs let the ramdisk be seen on a screen and on the first serial
// port, where most BMCs' serial-over-LAN listens.
var defaultKernelArgs = []string{"console=tty0", "console=ttyS0,115200n8", "loglevel=4"}

// RefusedError is a configuration that would be unsafe or can't work.
type RefusedError struct{ What, Next string }

// Error says what and what to do.
func (e *RefusedError) Error() string { return e.What + "; " + e.Next }

// check refuses what DESIGN's trust rules forbid.
func (c *Config) check() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return &RefusedError{fmt.Sprintf("--listen %q: %v", c.Listen, err), "write address:port"}
	}
	if !loopback(host) {
		if c.Auth == "none" {
			return &RefusedError{"--listen " + c.Listen + " is reachable from other machines, and there is no authentication", "set --auth http_basic --htpasswd FILE, or listen on 127.0.0.1"}
		}
		if c.TLSCert == "" {
			return &RefusedError{"--listen " + c.Listen + " is reachable from other machines, and there is no TLS", "set --tls-cert and --tls-key, or listen on 127.0.0.1"}
		}
	}
	if c.Auth == "http_basic" && c.Htpasswd == "" {
		return &RefusedError{"--auth http_basic has no user file", "set --htpasswd FILE (made by htpasswd -B)"}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return &RefusedError{"--tls-cert and --tls-key go together", "give both or none"}
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// keyBytes is the length of the data directory's key.
const keyBytes = 32

// loadKey reads the key that seals secrets at rest, or makes it on the first
// start. A key that is missing beside an existing database is an error: a new
// one would make every sealed secret unreadable.
func loadKey(dir string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	path := filepath.Join(dir, "secret.key")
	key, err := os.ReadFile(path)
	switch {
	case err == nil && len(key) == keyBytes:
		return key, nil
	case err == nil:
		return nil, fmt.Errorf("%s has %d bytes, want %d: restore it from a backup; BMC passwords in the database can't be read without it", path, len(key), keyBytes)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read key: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, database)); err == nil {
		return nil, fmt.Errorf("%s is missing beside an existing database: restore it from a backup; BMC passwords in the database can't be read without it", path)
	}
	key = make([]byte, keyBytes)
	rand.Read(key) //nolint:errcheck // documented never to fail
	return key, writeNew(path, key)
}

// writeNew writes a file that did not exist, so that a crash leaves all or nothing.
func writeNew(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // gone after the link
	if _, err := tmp.Write(data); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Link(tmp.Name(), path)
}

// database is the file name in the data directory.
const database = "slipway.db"

// interfaceAddr is the first IPv4 address of a network interface.
func interfaceAddr(name string) (netip.Prefix, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("--boot-interface %s: %w", name, err)
	}
	addrs, err := ifc.Addrs()
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("--boot-interface %s: %w", name, err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("--boot-interface %s has no IPv4 address: give it one (ip addr add)", name)
}

// upperHalf is the default DHCP range: the upper half of a network, less its
// broadcast address.
func upperHalf(p netip.Prefix) (first, last netip.Addr) {
	b := p.Masked().Addr().As4()
	base := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	size := uint32(1) << (32 - p.Bits())
	at := func(v uint32) netip.Addr {
		return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	}
	return at(base + size/2), at(base + size - 2)
}
