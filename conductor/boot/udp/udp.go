// Package udp opens the boot services' UDP sockets and says, when a port is
// taken or forbidden, by whom and what to do.
package udp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrPortTaken is in the chain of Listen's error when another socket holds the port.
var ErrPortTaken = errors.New("port taken")

// Listen opens addr:port for IPv4. With a device the socket sees and sends
// packets of that network interface alone (SO_BINDTODEVICE), so that a boot
// network's services never leak onto another one. The socket may broadcast. It
// never shares its port (no SO_REUSEPORT): a second server must be noticed.
func Listen(ctx context.Context, device string, addr netip.Addr, port int) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var inner error
		err := raw.Control(func(fd uintptr) {
			inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			if inner == nil && device != "" {
				inner = unix.BindToDevice(int(fd), device)
			}
		})
		return errors.Join(err, inner)
	}}
	where := netip.AddrPortFrom(addr, uint16(port)).String()
	pc, err := lc.ListenPacket(ctx, "udp4", where)
	if err != nil {
		return nil, explain(err, device, where, port)
	}
	return pc.(*net.UDPConn), nil
}

// explain adds the holder of the port and the way out.
func explain(err error, device, where string, port int) error {
	on := where
	if device != "" {
		on += " on " + device
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		holder := Holder("/proc", port)
		if holder == "" {
			holder = "another process (not visible from here)"
		}
		return fmt.Errorf("udp %s: %w by %s; stop it, or configure Slipway for another interface or as proxy: %w", on, ErrPortTaken, holder, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("udp %s: not allowed; run as root, or grant cap_net_bind_service and cap_net_raw (setcap or AmbientCapabilities): %w", on, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("udp %s: no such network interface; see `ip link`: %w", on, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("udp %s: this host does not have the address; see `ip address`: %w", on, err)
	}
	return fmt.Errorf("udp %s: %w", on, err)
}

// Holder names the processes that have a UDP socket on port, from the proc file
// system mounted at proc ("dnsmasq (pid 812)"); "" when none can be seen.
func Holder(proc string, port int) string {
	inodes := map[string]bool{}
	for _, table := range []string{"udp", "udp6"} {
		addInodes(inodes, filepath.Join(proc, "thread-self", "net", table), port)
	}
	if len(inodes) == 0 {
		return ""
	}
	var holders []string
	processes, err := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	if err != nil {
		return ""
	}
	for _, p := range processes {
		if holdsInode(p, inodes) {
			name, err := os.ReadFile(filepath.Join(p, "comm"))
			if err != nil {
				continue // it ended meanwhile
			}
			holders = append(holders, fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), filepath.Base(p)))
		}
	}
	return strings.Join(holders, ", ")
}

// addInodes collects the socket inodes bound to port in one of proc's udp
// tables. Columns: proc(5), local_address is the second, inode the tenth.
func addInodes(into map[string]bool, table string, port int) {
	f, err := os.Open(table)
	if err != nil {
		return // no IPv6, or no proc: fewer names in an error message
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		col := strings.Fields(s.Text())
		if len(col) < 10 {
			continue
		}
		_, hexPort, ok := strings.Cut(col[1], ":")
		if n, err := strconv.ParseUint(hexPort, 16, 16); ok && err == nil && int(n) == port {
			into["socket:["+col[9]+"]"] = true
		}
	}
}

func holdsInode(process string, inodes map[string]bool) bool {
	fds, err := os.ReadDir(filepath.Join(process, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(process, "fd", fd.Name())); err == nil && inodes[to] {
			return true
		}
	}
	return false
}
