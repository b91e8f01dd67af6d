package sushy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/bmc/bmctest"
	"github.com/slipway-metal/slipway/testenv/netns"
	"github.com/slipway-metal/slipway/testenv/sushy"
)

// inside marks the process that runs in a network of its own, with the emulator.
const inside = "SLIPWAY_SUSHY_INSIDE"

// emulator is SLIPWAY_SUSHY; `make lab` installs one where that is empty.
func emulator() (string, error) {
	if bin := os.Getenv("SLIPWAY_SUSHY"); bin != "" || os.Getenv("SLIPWAY_LAB") == "" {
		return bin, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return sushy.Install(context.Background(), filepath.Join(cache, "slipway", "sushy"))
}

// TestMain runs the tests again in a network namespace, where bridges harm nobody.
func TestMain(m *testing.M) {
	if os.Getenv("SLIPWAY_QEMU") == "" || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	bin, err := emulator() // before the namespace: it may need the Internet
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if bin == "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+bin)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = netns.Attributes()
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, netns.Explain(err))
		os.Exit(1)
	}
	os.Exit(0)
}

func TestLibvirtMachinesBehindSushyTools(t *testing.T) {
	emulator := os.Getenv(inside)
	if emulator == "" {
		// Read here too: what TestMain reads does not count for go test's cache.
		t.Skipf("needs SLIPWAY_QEMU=1 (now %q), and SLIPWAY_SUSHY, a sushy-emulator (now %q), or SLIPWAY_LAB=1 (now %q)",
			os.Getenv("SLIPWAY_QEMU"), os.Getenv("SLIPWAY_SUSHY"), os.Getenv("SLIPWAY_LAB"))
	}
	if err := sushy.Missing(emulator); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netns.Loopback(), netns.Bridge("br0", netip.MustParsePrefix("10.78.0.1/24"))); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := sushy.Config{Dir: filepath.Join(dir, "sushy"), Emulator: emulator, Listen: netip.MustParseAddrPort("127.0.0.1:8000")}
	for i, uefi := range []bool{true, false} {
		disk := filepath.Join(dir, fmt.Sprint("disk", i))
		if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 64<<20)); err != nil {
			t.Fatal(err)
		}
		cfg.Machines = append(cfg.Machines, sushy.Machine{
			Name: fmt.Sprint("vm", i), UUID: fmt.Sprintf("5cb1a8f0-0000-4000-8000-%012d", i), UEFI: uefi, MemoryMiB: 256, CPUs: 1,
			Disk: disk, Bridge: "br0", MAC: fmt.Sprintf("52:54:00:78:00:%02d", i),
		})
	}
	began := time.Now()
	service, err := sushy.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %s", time.Since(began).Round(100*time.Millisecond))
	t.Cleanup(func() {
		if err := service.Close(); err != nil {
			t.Error(err)
		}
	})
	images := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Disposition", `attachment; filename="boot.iso"`)
		_, _ = w.Write(make([]byte, 64<<10))
	}))
	t.Cleanup(images.Close)
	for _, m := range cfg.Machines {
		t.Run(m.Name, func(t *testing.T) {
			bmctest.Run(t, bmctest.Subject{
				Open: func(t *testing.T) bmc.BMC {
					b, err := bmc.Open("redfish", map[string]any{"redfish_address": service.URL(), "redfish_system_id": sushy.SystemID(m)})
					if err != nil {
						t.Fatal(err)
					}
					return b
				},
				OnceReadsContinuous: true, SoftIsSilent: true, ImageURL: images.URL + "/boot.iso",
			})
			t.Run("network boot asks for an address", func(t *testing.T) { asksForAddress(t, service, m) })
		})
	}
}

// asksForAddress sets the boot device and switches on as a deploy does, and waits
// for the firmware's DHCP.
func asksForAddress(t *testing.T, service *sushy.Service, m sushy.Machine) {
	b, err := bmc.Open("redfish", map[string]any{"redfish_address": service.URL(), "redfish_system_id": sushy.SystemID(m)})
	if err != nil {
		t.Fatal(err)
	}
	dhcp, err := net.ListenPacket("udp4", ":67")
	if err != nil {
		t.Fatal(err)
	}
	defer dhcp.Close()
	want, err := net.ParseMAC(m.MAC)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	power := b.(bmc.Power)
	if err := errors.Join(b.(bmc.BootDevice).SetBootDevice(t.Context(), bmc.DevicePXE, false), power.SetPower(t.Context(), bmc.ActionOn)); err != nil {
		t.Fatal(err)
	}
	if err := dhcp.SetReadDeadline(began.Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, 1500)
	for {
		n, _, err := dhcp.ReadFrom(packet)
		if err != nil {
			t.Fatalf("no DHCP from %s: %v", m.MAC, err)
		}
		if n > 34 && bytes.Equal(packet[28:34], want) { // chaddr, RFC 2131
			break
		}
	}
	t.Logf("DHCP %s after power on", time.Since(began).Round(100*time.Millisecond))
	if err := power.SetPower(t.Context(), bmc.ActionOff); err != nil {
		t.Error(err)
	}
}
