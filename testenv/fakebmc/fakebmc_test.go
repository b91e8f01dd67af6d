package fakebmc_test

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stmcginnis/gofish"
	"github.com/stmcginnis/gofish/redfish"

	"github.com/slipway-metal/slipway/testenv/fakebmc"
)

var config = fakebmc.Config{
	UUID: "8e7b1a52-0000-4000-8000-000000000001", Name: "vm-1", Username: "admin", Password: "hunter2",
	MACs: []string{"52:54:00:00:00:01"}, Serial: "SN1", CPUs: 2, MemoryMiB: 1536,
}

func serve(t *testing.T, cfg fakebmc.Config) (*fakebmc.BMC, *fakebmc.Memory, string) {
	t.Helper()
	m := &fakebmc.Memory{}
	b := fakebmc.New(cfg, m)
	s := httptest.NewServer(b)
	t.Cleanup(func() { b.Close(); s.Close() })
	return b, m, s.URL
}

// gofish, which nobody here wrote, must find everything by following links.
func TestGofishWalksTheTree(t *testing.T) {
	for name, basic := range map[string]bool{"session": false, "basic": true} {
		t.Run(name, func(t *testing.T) {
			b, m, url := serve(t, config)
			c, err := gofish.Connect(gofish.ClientConfig{Endpoint: url, Username: "admin", Password: "hunter2", BasicAuth: basic})
			if err != nil {
				t.Fatal(err)
			}
			systems, err := c.Service.Systems()
			if err != nil || len(systems) != 1 {
				t.Fatalf("%d systems, error %v", len(systems), err)
			}
			sys := systems[0]
			if sys.PowerState != redfish.OffPowerState || sys.UUID != config.UUID || sys.MemorySummary.TotalSystemMemoryGiB != 1.5 {
				t.Fatalf("system %+v", sys)
			}
			nics, err := sys.EthernetInterfaces()
			if err != nil || len(nics) != 1 || nics[0].MACAddress != config.MACs[0] {
				t.Fatalf("NICs %v, error %v", nics, err)
			}
			if err := sys.SetBoot(redfish.Boot{BootSourceOverrideTarget: redfish.PxeBootSourceOverrideTarget, BootSourceOverrideEnabled: redfish.OnceBootSourceOverrideEnabled}); err != nil {
				t.Fatal(err)
			}
			if sys, err = redfish.GetComputerSystem(c, sys.ODataID); err != nil || sys.Boot.BootSourceOverrideTarget != redfish.PxeBootSourceOverrideTarget {
				t.Fatalf("boot %+v, error %v", sys.Boot, err)
			}
			if err := sys.Reset(redfish.OnResetType); err != nil {
				t.Fatal(err)
			}
			if boots := m.Boots(); len(boots) != 1 || boots[0] != fakebmc.PXE {
				t.Fatalf("boots %v", boots)
			}
			if o := b.Override(); o.Device != fakebmc.None {
				t.Fatalf("a Once override outlived its boot: %+v", o)
			}
			managers, err := c.Service.Managers()
			if err != nil || len(managers) != 1 {
				t.Fatalf("%d managers, error %v", len(managers), err)
			}
			media, err := managers[0].VirtualMedia()
			if err != nil || len(media) != 1 {
				t.Fatalf("%d media, error %v", len(media), err)
			}
			if err := media[0].InsertMedia("http://10.0.0.1/boot.iso", true, true); err != nil || m.Media() == "" {
				t.Fatalf("medium %q, error %v", m.Media(), err)
			}
			if err := media[0].EjectMedia(); err != nil || m.Media() != "" {
				t.Fatalf("medium %q, error %v", m.Media(), err)
			}
			if chassis, err := c.Service.Chassis(); err != nil || len(chassis) != 1 {
				t.Fatalf("%d chassis, error %v", len(chassis), err)
			}
			c.Logout()
			if s := b.Stats(); s.Sessions != 0 || s.FailedLogins != 0 {
				t.Fatalf("after logout: %+v", s)
			}
		})
	}
}

// sushy is the client library of Ironic's redfish driver. SLIPWAY_SUSHY names a
// sushy-emulator; the Python beside it has the client too when pip installed both.
func TestSushyDrivesIt(t *testing.T) {
	emulator := os.Getenv("SLIPWAY_SUSHY")
	if emulator == "" {
		t.Skip("SLIPWAY_SUSHY does not name a sushy-emulator")
	}
	python := filepath.Join(filepath.Dir(emulator), "python")
	if out, err := exec.CommandContext(t.Context(), python, "-c", "import sushy").CombinedOutput(); err != nil {
		t.Skipf("no sushy beside the emulator: %s", out)
	}
	b, _, url := serve(t, config)
	out, err := exec.CommandContext(t.Context(), python, "testdata/client.py", url, "admin", "hunter2").CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "OK\n") {
		t.Fatalf("%v: %s", err, out)
	}
	if s := b.Stats(); s.Sessions != 0 || s.FailedLogins != 0 {
		t.Errorf("after it: %+v", s)
	}
}
