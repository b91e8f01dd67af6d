package bmc_test

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/bmc/bmctest"
	"github.com/slipway-metal/slipway/testenv/fakebmc"
)

// quick are limits for a BMC in this process.
var quick = bmc.Timeouts{
	Request: 2 * time.Second, Power: time.Second, SoftPower: time.Second,
	Settle: 500 * time.Millisecond, Poll: 5 * time.Millisecond,
}

const password = "correct horse battery"

// rig is a redfish BMC over a machine in memory.
type rig struct {
	bmc     *fakebmc.BMC
	machine *fakebmc.Memory
	url     string
	info    map[string]any
}

func newRig(t *testing.T, change ...func(*fakebmc.Config)) *rig {
	t.Helper()
	cfg := fakebmc.Config{
		UUID: "5CB1A8F0-0000-4000-8000-0000000000AB", Name: "vm-1", Username: "admin", Password: password,
		MACs: []string{"52:54:00:00:00:02", "52:54:00:00:00:01"}, Serial: "SN-1", CPUs: 4, MemoryMiB: 2048,
	}
	for _, c := range change {
		c(&cfg)
	}
	r := &rig{machine: &fakebmc.Memory{}}
	r.bmc = fakebmc.New(cfg, r.machine)
	server := httptest.NewServer(r.bmc)
	t.Cleanup(func() { r.bmc.Close(); server.Close() })
	r.url = server.URL
	r.info = map[string]any{"redfish_address": r.url, "redfish_username": "admin", "redfish_password": password}
	return r
}

// open opens the rig's BMC; it is closed with the test.
func (r *rig) open(t *testing.T, opt bmc.Options) *full {
	t.Helper()
	if opt.Timeouts == (bmc.Timeouts{}) {
		opt.Timeouts = quick
	}
	return openFull(t, "redfish", r.info, opt)
}

// full has every capability.
type full struct {
	bmc.BMC
	bmc.Power
	bmc.BootDevice
	bmc.Identity
	bmc.VirtualMedia
}

func openFull(t *testing.T, driver string, info map[string]any, opt bmc.Options) *full {
	t.Helper()
	b := open(t, driver, info, opt)
	return &full{b, b.(bmc.Power), b.(bmc.BootDevice), b.(bmc.Identity), b.(bmc.VirtualMedia)}
}

func open(t *testing.T, driver string, info map[string]any, opt bmc.Options) bmc.BMC {
	t.Helper()
	b, err := bmc.Builtin().Open(driver, info, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = b.Close(ctx) // the test may have broken the BMC on purpose
	})
	return b
}

func TestRedfishBehaves(t *testing.T) {
	for name, f := range map[string]struct {
		faults fakebmc.Faults
		auth   string
		maker  string
	}{
		"with a session":                     {},
		"with basic authentication":          {auth: "basic"},
		"without a session service":          {faults: fakebmc.Faults{NoSessions: true}},
		"with credentials for the root too":  {faults: fakebmc.Faults{AuthEverywhere: true}},
		"that refuses its own ETag":          {faults: fakebmc.Faults{StaleETag: true}},
		"with power changes that take time":  {faults: fakebmc.Faults{PowerDelay: 30 * time.Millisecond}},
		"that reports transitions":           {faults: fakebmc.Faults{PowerDelay: 30 * time.Millisecond, TransitionState: "PoweringOff"}},
		"that refuses needless changes":      {faults: fakebmc.Faults{ConflictWhenThere: true, RefuseUnchanged: true}},
		"that lists no reset types":          {faults: fakebmc.Faults{HideResetTypes: true}},
		"with a power button only":           {faults: fakebmc.Faults{ResetTypes: []string{"ForceOff", "PushPowerButton"}}},
		"without ForceOff":                   {faults: fakebmc.Faults{ResetTypes: []string{"On", "GracefulShutdown"}}},
		"quirk boot-mode-required":           {faults: fakebmc.Faults{WantBootMode: true}, maker: "American Megatrends International, LLC."},
		"quirk boot-enabled-always":          {faults: fakebmc.Faults{WantEnabled: true}, maker: "Supermicro"},
		"quirk once-reads-continuous":        {faults: fakebmc.Faults{OnceReadsContinuous: true}, maker: "Sushy Emulator"},
		"that shows no boot mode, and needs": {faults: fakebmc.Faults{WantBootMode: true, HideBootMode: true}, maker: "ASRockRack"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *fakebmc.Config) { c.Manufacturer = f.maker })
			r.bmc.SetFaults(f.faults)
			if f.auth != "" {
				r.info["redfish_auth_type"] = f.auth
			}
			bmctest.Run(t, bmctest.Subject{
				Open:                func(t *testing.T) bmc.BMC { return open(t, "redfish", r.info, bmc.Options{Timeouts: quick}) },
				OnceReadsContinuous: f.faults.OnceReadsContinuous,
			})
			stats := r.bmc.Stats()
			if stats.MaxConcurrent != 1 {
				t.Errorf("%d requests at once, want one at a time", stats.MaxConcurrent)
			}
			if stats.Sessions != 0 {
				t.Errorf("%d sessions left open", stats.Sessions)
			}
			if stats.Logins > 3 {
				t.Errorf("%d logins for one BMC: sessions must be reused", stats.Logins)
			}
			if stats.FailedLogins != 0 {
				t.Errorf("%d failed logins", stats.FailedLogins)
			}
		})
	}
}

func TestFakeHardwareBehaves(t *testing.T) {
	bmctest.Run(t, bmctest.Subject{Open: func(t *testing.T) bmc.BMC { return open(t, "fake-hardware", nil, bmc.Options{}) }})
}

func TestManualManagementBehaves(t *testing.T) {
	bmctest.Run(t, bmctest.Subject{Open: func(t *testing.T) bmc.BMC { return open(t, "manual-management", nil, bmc.Options{}) }})
}
