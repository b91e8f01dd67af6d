// Package netns builds the network a lab lives in: a network namespace of its
// own with one bridge a network and one tap device a network card.
//
// Nothing here touches the host's network. [Attributes] says how to start a
// process in a new namespace; the other functions are called by that process
// and change only the namespace it is in.
package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes returns how to start a process in a network namespace of its own.
// Root needs nothing else; any other user gets a user namespace too, in which
// it is root over that network and nothing more (the same as `unshare -Urn`).
func Attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() == 0 {
		return attr
	}
	attr.Cloneflags |= syscall.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	return attr
}

// A Refusal is a host that does not allow what a lab needs. It says which rule
// stands in the way and what would lift it.
type Refusal struct {
	What string // what was tried
	Why  string // what the host said, in words
	Next string // what to do about it
	Err  error
}

func (r *Refusal) Error() string { return r.What + ": " + r.Why }

// Unwrap returns the system's own error.
func (r *Refusal) Unwrap() error { return r.Err }

// Explain turns the error of starting a process with [Attributes] into a
// [Refusal] when the host's settings are the cause; other errors come back as
// they are.
func Explain(err error) error {
	if err == nil {
		return nil
	}
	r := &Refusal{What: "make a network namespace", Err: err}
	switch {
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES):
		r.Why = "this host does not let an ordinary user make user namespaces"
		r.Next = "run it as root, or allow them: " + allowUserNamespaces()
	case errors.Is(err, syscall.ENOSPC):
		r.Why = "this host allows no more user or network namespaces"
		r.Next = "raise user.max_user_namespaces and user.max_net_namespaces with sysctl (now " +
			sysctl("user/max_user_namespaces") + " and " + sysctl("user/max_net_namespaces") + ")"
	case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS):
		r.Why = "this host's kernel has no user or network namespaces"
		r.Next = "use a kernel with CONFIG_USER_NS and CONFIG_NET_NS, as Debian's has"
	default:
		return err
	}
	return r
}

// allowUserNamespaces names the setting that forbids them here, as far as it
// can be told: Debian's own switch, Ubuntu's AppArmor rule, or the count.
func allowUserNamespaces() string {
	switch {
	case sysctl("kernel/unprivileged_userns_clone") == "0":
		return "sysctl kernel.unprivileged_userns_clone=1"
	case sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
	default:
		return "see user_namespaces(7); containers often forbid them by seccomp"
	}
}

func sysctl(name string) string {
	data, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(data))
}

// Loopback sets the namespace's own loopback interface up.
func Loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set the loopback interface up: %w", err)
	}
	return nil
}

// Bridge makes a bridge that forwards from the first packet on (a new port of
// a bridge with the kernel's forward delay of 15 s loses every DHCP request of
// a firmware that boots faster than that) and gives it the host's address.
func Bridge(name string, host netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", name, err)
	}
	if err := noForwardDelay(link.Attrs().Index); err != nil {
		return fmt.Errorf("set the forward delay of bridge %s to 0: %w", name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP:   host.Addr().AsSlice(),
		Mask: net.CIDRMask(host.Bits(), host.Addr().BitLen()),
	}}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("give bridge %s the address %s: %w", name, host, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set bridge %s up: %w", name, err)
	}
	return nil
}

// noForwardDelay sends the attribute that the netlink library has no field for.
func noForwardDelay(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Tap makes a tap device that outlives the process that opens it, and plugs it
// into the bridge. rate, in bits a second, shapes what goes to the machine; 0
// leaves the link as fast as the host is.
func Tap(name, bridge string, rate uint64) error {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	tap := &netlink.Tuntap{
		LinkAttrs: attrs,
		Mode:      netlink.TUNTAP_MODE_TAP,
		Flags:     netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
		Queues:    0,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		if _, open := os.Stat("/dev/net/tun"); open != nil {
			return &Refusal{What: "add tap device " + name, Why: "this host has no /dev/net/tun",
				Next: "load the kernel module tun, or give the container the device /dev/net/tun", Err: err}
		}
		if errors.Is(err, os.ErrPermission) {
			return &Refusal{What: "add tap device " + name, Why: "this host lets only some users open /dev/net/tun",
				Next: "as root: chmod 0666 /dev/net/tun (Debian's default; the kernel still asks for rights over the network), or run the lab as root", Err: err}
		}
		return fmt.Errorf("add tap device %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find tap device %s: %w", name, err)
	}
	if err := netlink.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("plug %s into bridge %s: %w", name, bridge, err)
	}
	if rate > 0 {
		if err := shape(link, rate); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set tap device %s up: %w", name, err)
	}
	return nil
}

// shape puts a token bucket on the link. The bucket holds 10 ms of traffic and
// at least 64 KiB (one segment of a NIC with segmentation offload), the queue
// 50 ms.
func shape(link netlink.Link, rate uint64) error {
	bytes := rate / 8
	bucket := max(bytes/100, 64<<10)
	qdisc := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: link.Attrs().Index,
			Handle:    netlink.MakeHandle(1, 0),
			Parent:    netlink.HANDLE_ROOT,
		},
		Rate:   bytes,
		Limit:  uint32(min(bucket+bytes/20, 1<<30)),
		Buffer: uint32(float64(bucket) * netlink.TickInUsec() * 1e6 / float64(bytes)),
	}
	if err := netlink.QdiscReplace(qdisc); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return &Refusal{What: fmt.Sprintf("shape %s to %d bit/s", link.Attrs().Name, rate),
				Why:  "this host's kernel has no token bucket filter (sch_tbf)",
				Next: "load the kernel module sch_tbf, or take `rate` out of the lab file", Err: err}
		}
		return fmt.Errorf("shape %s to %d bit/s: %w", link.Attrs().Name, rate, err)
	}
	return nil
}

// Neighbour returns the address that the namespace has last seen the network
// card with this MAC address use.
func Neighbour(mac net.HardwareAddr) (netip.Addr, bool) {
	seen, err := netlink.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, n := range seen {
		if n.HardwareAddr.String() != mac.String() {
			continue
		}
		if addr, ok := netip.AddrFromSlice(n.IP.To4()); ok {
			return addr, true
		}
	}
	return netip.Addr{}, false
}
