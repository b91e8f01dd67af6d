package shell

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/core"
	"github.com/u-root/u-root/pkg/core/cat"
	"github.com/u-root/u-root/pkg/core/chmod"
	"github.com/u-root/u-root/pkg/core/cp"
	"github.com/u-root/u-root/pkg/core/find"
	"github.com/u-root/u-root/pkg/core/ls"
	"github.com/u-root/u-root/pkg/core/mkdir"
	"github.com/u-root/u-root/pkg/core/mv"
	"github.com/u-root/u-root/pkg/core/rm"
	"github.com/u-root/u-root/pkg/core/shasum"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stream is what a command reads and writes, and where it is.
type stream struct {
	in       io.Reader
	out, err io.Writer
	dir      string
}

// open opens the file called by a command's argument, or its input without one.
func (s stream) open(args []string) (io.ReadCloser, error) {
	if len(args) == 0 {
		return io.NopCloser(s.in), nil
	}
	name := args[0]
	if !filepath.IsAbs(name) {
		name = filepath.Join(s.dir, name)
	}
	return os.Open(name)
}

type command func(ctx context.Context, s stream, args []string) error

// commands are the shell's own. It is a function since help lists them.
func commands() map[string]command {
	all := map[string]command{
		"cat": uroot(cat.New), "chmod": uroot(chmod.New), "cp": uroot(cp.New), "find": uroot(find.New), "ls": uroot(ls.New),
		"mkdir": uroot(mkdir.New), "mv": uroot(mv.New), "rm": uroot(rm.New), "shasum": uroot(shasum.New),
		"dmesg": dmesg, "grep": grep, "head": head, "ip": ip, "lsmod": lsmod, "mount": mount, "ps": ps, "tail": tail, "umount": umount,
		"poweroff": signalInit(unix.SIGUSR2), "reboot": signalInit(unix.SIGTERM),
	}
	all["help"] = func(_ context.Context, s stream, _ []string) error {
		_, err := fmt.Fprintln(s.out, strings.Join(slices.Sorted(maps.Keys(all)), " ")+"\nprograms: slipway-agent modprobe; the agent's last end: /run/slipway/last-crash")
		return err
	}
	return all
}

// uroot makes a command of one of u-root's.
func uroot(build func() core.Command) command {
	return func(ctx context.Context, s stream, args []string) error {
		c := build()
		c.SetIO(s.in, s.out, s.err)
		c.SetWorkingDir(s.dir)
		return c.RunContext(ctx, args...)
	}
}

func dmesg(_ context.Context, s stream, _ []string) error {
	const readAll, size = 3, 10 // SYSLOG_ACTION_READ_ALL, _SIZE_BUFFER of syslog(2)
	n, err := unix.Klogctl(size, nil)
	if err != nil {
		return fmt.Errorf("ask for the size of the kernel's log: %w", err)
	}
	buf := make([]byte, n)
	if n, err = unix.Klogctl(readAll, buf); err != nil {
		return fmt.Errorf("read the kernel's log: %w", err)
	}
	_, err = s.out.Write(buf[:n])
	return err
}

func lsmod(_ context.Context, s stream, _ []string) error {
	text, err := os.ReadFile("/proc/modules")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line) // name size uses users …
		if len(f) < 4 {
			continue
		}
		if _, err := fmt.Fprintf(s.out, "%-24s %8s %3s %s\n", f[0], f[1], f[2], strings.Trim(f[3], "-,")); err != nil {
			return err
		}
	}
	return nil
}

func ps(_ context.Context, s stream, _ []string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		if err != nil {
			continue // it has ended meanwhile
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		text := strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		if text == "" {
			text = "[" + strings.TrimSpace(string(name)) + "]"
		}
		if _, err := fmt.Fprintf(s.out, "%6s %s\n", e.Name(), text); err != nil {
			return err
		}
	}
	return nil
}

// ip shows links with their addresses, then routes; it changes nothing.
func ip(_ context.Context, s stream, _ []string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", a.Name, err)
		}
		var list []string
		for _, addr := range addresses {
			list = append(list, addr.IPNet.String())
		}
		if _, err := fmt.Fprintf(s.out, "%s %s %s mtu %d %s\n", a.Name, a.HardwareAddr, a.OperState, a.MTU, strings.Join(list, " ")); err != nil {
			return err
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if _, err := fmt.Fprintln(s.out, r); err != nil {
			return err
		}
	}
	return nil
}

// mount shows the mounts, or mounts: mount -t TYPE SOURCE TARGET, read-only
// unless -w comes first.
func mount(_ context.Context, s stream, args []string) error {
	if len(args) == 0 {
		text, err := os.ReadFile("/proc/mounts")
		if err != nil {
			return err
		}
		_, err = s.out.Write(text)
		return err
	}
	flags := uintptr(unix.MS_RDONLY)
	if args[0] == "-w" {
		flags, args = 0, args[1:]
	}
	if len(args) != 4 || args[0] != "-t" {
		return fmt.Errorf("usage: mount [-w] -t TYPE SOURCE TARGET")
	}
	return unix.Mount(args[2], args[3], args[1], flags, "")
}

func umount(_ context.Context, _ stream, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: umount TARGET")
	}
	return unix.Unmount(args[0], 0)
}

// signalInit asks PID 1, which ends the agent first.
func signalInit(sig unix.Signal) command {
	return func(context.Context, stream, []string) error { return unix.Kill(1, sig) }
}

func grep(_ context.Context, s stream, args []string) error {
	flags := ""
	if len(args) > 0 && args[0] == "-i" {
		flags, args = "(?i)", args[1:]
	}
	if len(args) == 0 {
		return fmt.Errorf("usage: grep [-i] PATTERN [FILE]")
	}
	pattern, err := regexp.Compile(flags + args[0])
	if err != nil {
		return err
	}
	return eachLine(s, args[1:], func(line []byte) error {
		if !pattern.Match(line) {
			return nil
		}
		_, err := s.out.Write(line)
		return err
	})
}

func head(_ context.Context, s stream, args []string) error {
	n, args, err := count(args)
	if err != nil {
		return err
	}
	return eachLine(s, args, func(line []byte) error {
		if n--; n < 0 {
			return nil
		}
		_, err := s.out.Write(line)
		return err
	})
}

func tail(_ context.Context, s stream, args []string) error {
	n, args, err := count(args)
	if err != nil {
		return err
	}
	var last [][]byte
	err = eachLine(s, args, func(line []byte) error {
		last = append(last, bytes.Clone(line))
		last = last[max(0, len(last)-n):]
		return nil
	})
	if err != nil {
		return err
	}
	_, err = s.out.Write(bytes.Join(last, nil))
	return err
}

// count reads "-n N" before the other arguments; 10 without it.
func count(args []string) (int, []string, error) {
	if len(args) < 2 || args[0] != "-n" {
		return 10, args, nil
	}
	n, err := strconv.Atoi(args[1])
	if err != nil || n < 0 {
		return 0, nil, fmt.Errorf("-n %s: not a number of lines", args[1])
	}
	return n, args[2:], nil
}

// eachLine calls f with every line, its newline included.
func eachLine(s stream, args []string, f func([]byte) error) error {
	r, err := s.open(args)
	if err != nil {
		return err
	}
	defer r.Close()
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if err := f(line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
