package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// dnsmasq is the DHCP server that a network has already, on a host of its own
// (10.77.0.2), giving 10.77.0.150 to .160.
func dnsmasq(t *testing.T, lan *netlink.Bridge) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--bind-interfaces", "--interface=old",
		"--log-facility="+log, "--pid-file="+log+".pid", "--dhcp-leasefile="+log+".leases",
		"--dhcp-range=10.77.0.150,10.77.0.160,1h", "--dhcp-authoritative", "--log-dhcp")
	var err error
	station(t, lan, "old", func() {
		up(t, "lo", "")
		plugIn(t, "old", "10.77.0.2/24")
		err = cmd.Start()
	})
	if err != nil {
		t.Skipf("dnsmasq (Debian: dnsmasq-base) plays the existing DHCP server: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if raw, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("dnsmasq:\n%s", raw)
		}
	})
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if raw, err := os.ReadFile(log); err == nil && strings.Contains(string(raw), "DHCP, sockets bound") {
			return
		}
		if time.Now().After(end) {
			raw, _ := os.ReadFile(log)
			t.Fatalf("dnsmasq does not listen: %s", raw)
		}
	}
}
