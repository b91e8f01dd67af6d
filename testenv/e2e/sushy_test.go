package e2e

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/testenv/sushy"
)

// TestSushyTools takes the same way with a BMC that nobody here wrote: Redfish
// by OpenStack's sushy-tools, over a libvirt machine.
func TestSushyTools(t *testing.T) {
	needLab(t)
	needQEMU(t)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	emulator, err := sushy.Install(t.Context(), filepath.Join(cache, "slipway", "sushy"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sushy.Missing(emulator); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, quick)
	disk := filepath.Join(r.dir, "disk.raw")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 5<<30); err != nil {
		t.Fatal(err)
	}
	m := sushy.Machine{
		Name: "foreign", UUID: "5cb1a8f0-0000-4000-8000-000000000001", UEFI: true, MemoryMiB: 512, CPUs: 1,
		Disk: disk, Bridge: "provision", MAC: "52:54:00:77:00:99",
	}
	service, err := sushy.Start(t.Context(), sushy.Config{
		Dir: filepath.Join(r.dir, "sushy"), Emulator: emulator, Listen: netip.MustParseAddrPort("127.0.0.1:8000"),
		Machines: []sushy.Machine{m}, Command: r.lab.Command,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := service.Close(); err != nil {
			t.Error(err)
		}
	})
	r.slipway("node", "create", "e2e-1", "--driver", "redfish", "--mac", m.MAC,
		"--driver-info", "redfish_address="+service.URL(), "--driver-info", "redfish_system_id="+sushy.SystemID(m))
	for _, verb := range []string{"manage", "inspect", "provide"} {
		r.slipway("node", verb, "e2e-1", "--wait", "--timeout", "5m")
	}
	address := r.leased()
	url, digest := r.image("quick", "raw.zst")
	r.deployTo(url, digest)
	if got := r.sshTo(address, "hostname"); got != "e2e-1" {
		t.Errorf("logged in to %q", got)
	}
}

// leased is the address that DHCP gave the node's machine.
func (r *rig) leased() string {
	r.t.Helper()
	var e struct {
		Hops []struct {
			Hop    string         `json:"hop"`
			Detail map[string]any `json:"detail"`
		} `json:"hops"`
	}
	if err := json.Unmarshal([]byte(r.slipway("explain", "e2e-1", "-o", "json")), &e); err != nil {
		r.t.Fatal(err)
	}
	for _, h := range e.Hops {
		if ip, ok := h.Detail["ip"].(string); ok && h.Hop == "dhcp" {
			return ip
		}
	}
	r.t.Fatal("no address was leased")
	return ""
}

// sshTo is ssh for a machine that the lab did not start.
func (r *rig) sshTo(address, command string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Minute)
	defer cancel()
	for {
		out, err := r.lab.Exec(ctx, "ssh", "-F", "/dev/null", "-i", filepath.Join(r.lab.Dir(), "ssh", "id_ed25519"), "-o", "StrictHostKeyChecking=no",
			"-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", "debian@"+address, command)
		if err == nil {
			return strings.TrimSpace(string(out))
		}
		if ctx.Err() != nil {
			r.t.Fatalf("no SSH: %v", err)
		}
		r.pause(500 * time.Millisecond)
	}
}
