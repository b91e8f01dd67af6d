package main

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// addressLimit is how long the network may take after sshd is up.
const addressLimit = 90 * time.Second

// ready waits for an address and tells it. The unit is ordered after sshd,
// which says by itself when it listens.
func ready() error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(addressLimit)
	for {
		addr, ok, err := address()
		if err != nil {
			return err
		}
		if ok {
			// Tells where the time went, for the lab's benchmarks.
			uptime, _ := os.ReadFile("/proc/uptime")
			seconds, _, _ := strings.Cut(string(uptime), " ")
			say("address %s", addr)
			say("ready after %s s of kernel time", seconds)
			return nil
		}
		select {
		case <-limit:
			return errors.New("no network interface has an address")
		case <-tick.C:
		}
	}
}

// address returns the first address that others can reach.
func address() (netip.Addr, bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, false, err
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			return p.Addr(), true, nil
		}
	}
	return netip.Addr{}, false, nil
}
