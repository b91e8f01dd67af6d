package linux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/slipway-metal/slipway/proto/agent"
)

// Times of bringing the network up.
const (
	linkPoll      = 250 * time.Millisecond // a hot-plugged NIC shows within a second
	slowLinkPoll  = 5 * time.Second        // once the network is there
	otherNICs     = 20 * time.Second       // after which NICs other than the boot NIC are tried too
	firstBackoff  = time.Second            // between DHCP tries, doubled up to maxBackoff
	maxBackoff    = 15 * time.Second
	noticeCarrier = 10 * time.Second // of a link without carrier, on the console
)

// Network keeps the machine's links up and their leases alive.
type Network struct {
	log     *slog.Logger
	bootMAC string
	lldp    *neighbours
	ready   chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

// StartNetwork sets all links up and asks for an address by DHCP: on the boot
// NIC first, and when it is unknown or stays silent on every NIC with carrier.
// It goes on until ctx ends. Ready is closed at the first lease.
func (h *Host) StartNetwork(ctx context.Context) *Network {
	n := &Network{log: h.log, bootMAC: h.bootMAC, lldp: h.lldp, ready: make(chan struct{})}
	n.wg.Go(func() { n.watch(ctx) })
	return n
}

// Ready is closed when the first lease is there.
func (n *Network) Ready() <-chan struct{} { return n.ready }

// Wait returns when everything that StartNetwork began has ended.
func (n *Network) Wait() { n.wg.Wait() }

// watch looks for NICs: they may appear after the agent has started.
func (n *Network) watch(ctx context.Context) {
	start, asking, up := time.Now(), map[string]bool{}, map[string]bool{}
	if err := linkUp("lo"); err != nil {
		n.log.Warn("loopback stays down", "error", err)
	}
	said := time.Time{}
	for ctx.Err() == nil {
		nics := root.Interfaces()
		for _, nic := range nics {
			if !up[nic.Name] {
				if err := linkUp(nic.Name); err != nil {
					n.log.Warn("link stays down", "nic", nic.Name, "error", err)
					continue
				}
				up[nic.Name] = true
				n.log.Info("link set up", "nic", nic.Name, "mac", nic.MACAddress)
				n.wg.Go(func() { n.lldp.listen(ctx, nic.Name) })
			}
			if !asking[nic.Name] && n.mayAsk(nic, time.Since(start)) {
				asking[nic.Name] = true
				n.wg.Go(func() { n.keepLease(ctx, nic) })
			}
		}
		if len(asking) == 0 && time.Since(start) > noticeCarrier && time.Since(said) > noticeCarrier {
			said = time.Now()
			n.log.Warn("no NIC to ask for an address", "boot_mac", n.bootMAC, "nics", nicList(nics),
				"next", "check cable and switch port, or that the ramdisk has this NIC's driver")
		}
		poll := linkPoll
		select {
		case <-n.ready:
			poll = slowLinkPoll
		default:
		}
		pause(ctx, poll)
	}
}

// mayAsk: the boot NIC at once, others with carrier when there is no boot NIC
// or when it has had its time.
func (n *Network) mayAsk(nic agent.Interface, since time.Duration) bool {
	if n.bootMAC != "" && nic.MACAddress == n.bootMAC {
		return true
	}
	if !nic.HasCarrier {
		return false
	}
	if n.bootMAC == "" {
		return true
	}
	select {
	case <-n.ready:
		return false
	default:
		return since > otherNICs
	}
}

func nicList(nics []agent.Interface) string {
	var b strings.Builder
	for _, nic := range nics {
		fmt.Fprintf(&b, "%s %s carrier=%t, ", nic.Name, nic.MACAddress, nic.HasCarrier)
	}
	return strings.TrimSuffix(b.String(), ", ")
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s: set up: %w", name, err)
	}
	return nil
}

func allLinksDown() error {
	nics, err := net.Interfaces()
	if err != nil {
		return err
	}
	var errs []error
	for _, nic := range nics {
		if nic.Flags&net.FlagLoopback != 0 {
			continue
		}
		link, err := netlink.LinkByIndex(nic.Index)
		if err == nil {
			err = netlink.LinkSetDown(link)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("link %s: set down: %w", nic.Name, err))
		}
	}
	return errors.Join(errs...)
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// jitter spreads d over 0.75 to 1.25 of itself: a thousand machines that were
// switched on together must not ask together.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}
