// Package bmctest is the behaviour that every BMC driver has, over every BMC and
// every fake of one.
package bmctest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/slipway-metal/slipway/conductor/bmc"
)

// Subject is a driver over some machine.
type Subject struct {
	// Open opens the BMC; several calls in one test open the same machine.
	Open func(t *testing.T) bmc.BMC
	// OnceReadsContinuous says that this BMC cannot show a Once.
	OnceReadsContinuous bool
	// SoftIsSilent says that nothing reacts to the power button.
	SoftIsSilent bool
	// ImageURL is an image that the BMC can fetch; a made-up one when empty.
	ImageURL string
}

// Run tests every capability that the BMC has.
func Run(t *testing.T, s Subject) {
	t.Helper()
	b := s.Open(t)
	if b.Driver() == "" || b.Address() == "" {
		t.Errorf("driver %q, address %q: both must be named", b.Driver(), b.Address())
	}
	if p, ok := b.(bmc.Power); ok {
		t.Run("power", func(t *testing.T) { power(t, s, p) })
	}
	if d, ok := b.(bmc.BootDevice); ok {
		t.Run("boot device", func(t *testing.T) { boot(t, s, d) })
	}
	if i, ok := b.(bmc.Identity); ok {
		t.Run("identity", func(t *testing.T) { identity(t, i) })
	}
	if m, ok := b.(bmc.VirtualMedia); ok {
		t.Run("virtual media", func(t *testing.T) { media(t, s, m) })
	}
	t.Run("a caller that gives up gets its reason", func(t *testing.T) { cancelled(t, b) })
	t.Run("concurrent callers", func(t *testing.T) { concurrent(t, b) })
	t.Run("close", func(t *testing.T) { closing(t, b) })
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func wantState(t *testing.T, p bmc.Power, want bmc.PowerState) {
	t.Helper()
	have, err := p.PowerState(t.Context())
	must(t, "read power state", err)
	if have != want {
		t.Fatalf("power state %q, want %q", have, want)
	}
}

func power(t *testing.T, s Subject, p bmc.Power) {
	steps := []struct {
		why  string
		do   bmc.Action
		soft bool
	}{
		{why: "off, from whatever it was", do: bmc.ActionOff},
		{why: "off is off already", do: bmc.ActionOff},
		{why: "a machine that is off has nothing to shut down", do: bmc.ActionSoftOff},
		{why: "on", do: bmc.ActionOn},
		{why: "on is on already", do: bmc.ActionOn},
		{why: "reboot a machine that is on", do: bmc.ActionReboot},
		{why: "soft reboot", do: bmc.ActionSoftReboot, soft: true},
		{why: "soft off", do: bmc.ActionSoftOff, soft: true},
		{why: "reboot of a machine that is off switches it on", do: bmc.ActionReboot},
		{why: "off, after all", do: bmc.ActionOff},
	}
	for _, step := range steps {
		if step.soft && s.SoftIsSilent {
			continue
		}
		must(t, step.why, p.SetPower(t.Context(), step.do))
		wantState(t, p, step.do.Target())
	}
	if err := p.SetPower(t.Context(), "explode"); !errors.Is(err, bmc.ErrInvalid) {
		t.Errorf("unknown action: %v, want ErrInvalid", err)
	}
	wantState(t, p, bmc.PowerOff)
}

func boot(t *testing.T, s Subject, d bmc.BootDevice) {
	offered, err := d.BootDevices(t.Context())
	must(t, "list boot devices", err)
	if !slices.Contains(offered, bmc.DevicePXE) || !slices.Contains(offered, bmc.DeviceDisk) || !slices.IsSorted(offered) {
		t.Fatalf("boot devices %q: pxe and disk must be among them, sorted", offered)
	}
	for _, want := range []bmc.Boot{ // the CD drive is tried with a medium in it: see media
		{Device: bmc.DevicePXE}, {Device: bmc.DevicePXE}, // again: some BMCs refuse what is unchanged
		{Device: bmc.DevicePXE, Persistent: true}, {Device: bmc.DeviceDisk, Persistent: true},
		{Device: bmc.DeviceDisk},
	} {
		must(t, "set "+want.String(), d.SetBootDevice(t.Context(), want.Device, want.Persistent))
		have, err := d.BootDevice(t.Context())
		must(t, "read boot device", err)
		if s.OnceReadsContinuous {
			want.Persistent = have.Persistent
		}
		if have != want {
			t.Fatalf("boot device %v, want %v", have, want)
		}
	}
	if err := d.SetBootDevice(t.Context(), "toaster", false); !errors.Is(err, bmc.ErrInvalid) {
		t.Errorf("unknown device: %v, want ErrInvalid", err)
	}
}

func identity(t *testing.T, i bmc.Identity) {
	f, err := i.Identity(t.Context())
	must(t, "read identity", err)
	if f.UUID == "" && f.Serial == "" {
		t.Errorf("neither UUID nor serial: %+v", f)
	}
	if f.UUID != strings.ToLower(f.UUID) || !slices.IsSorted(f.MACs) {
		t.Errorf("UUID must be lower case and MACs sorted: %+v", f)
	}
	for _, mac := range f.MACs {
		if len(mac) != 17 || mac != strings.ToLower(mac) {
			t.Errorf("MAC %q is not in lower case with colons", mac)
		}
	}
}

func media(t *testing.T, s Subject, m bmc.VirtualMedia) {
	image := s.ImageURL
	if image == "" {
		image = "http://192.0.2.1/boot.iso"
	}
	must(t, "eject from an empty drive", m.EjectMedia(t.Context()))
	must(t, "insert", m.InsertMedia(t.Context(), image))
	must(t, "insert the same again", m.InsertMedia(t.Context(), image))
	have, err := m.Media(t.Context())
	must(t, "read medium", err)
	if have == "" {
		t.Fatal("inserted, and the drive reads empty")
	}
	if d, ok := m.(bmc.BootDevice); ok {
		must(t, "boot from CD once", d.SetBootDevice(t.Context(), bmc.DeviceCDROM, false))
		b, err := d.BootDevice(t.Context())
		must(t, "read boot device", err)
		if b.Device != bmc.DeviceCDROM || b.Persistent && !s.OnceReadsContinuous {
			t.Fatalf("boot device %v, want the CD once", b)
		}
		must(t, "boot from disk", d.SetBootDevice(t.Context(), bmc.DeviceDisk, true))
	}
	must(t, "eject", m.EjectMedia(t.Context()))
	if have, err = m.Media(t.Context()); err != nil || have != "" {
		t.Fatalf("ejected, and the drive reads %q, error %v", have, err)
	}
	if err := m.InsertMedia(t.Context(), "file:///etc/passwd"); !errors.Is(err, bmc.ErrInvalid) {
		t.Errorf("file URL: %v, want ErrInvalid", err)
	}
}

// calls are all calls that the BMC can be asked to make.
func calls(b bmc.BMC) map[string]func(context.Context) error {
	c := map[string]func(context.Context) error{}
	if p, ok := b.(bmc.Power); ok {
		c["power state"] = func(ctx context.Context) error { _, err := p.PowerState(ctx); return err }
		c["power off"] = func(ctx context.Context) error { return p.SetPower(ctx, bmc.ActionOff) }
	}
	if d, ok := b.(bmc.BootDevice); ok {
		c["boot device"] = func(ctx context.Context) error { _, err := d.BootDevice(ctx); return err }
		c["set boot device"] = func(ctx context.Context) error { return d.SetBootDevice(ctx, bmc.DevicePXE, false) }
	}
	if i, ok := b.(bmc.Identity); ok {
		c["identity"] = func(ctx context.Context) error { _, err := i.Identity(ctx); return err }
	}
	if m, ok := b.(bmc.VirtualMedia); ok {
		c["eject"] = m.EjectMedia
	}
	return c
}

func cancelled(t *testing.T, b bmc.BMC) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range calls(b) {
		err := call(ctx)
		if !errors.Is(err, bmc.ErrTimeout) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want ErrTimeout because of context.Canceled", name, err)
		}
		var e *bmc.Error
		if errors.As(err, &e) && (e.Address != b.Address() || e.Op == "" || e.Next == "") {
			t.Errorf("%s: the error names no address, operation or next step: %+v", name, e)
		}
	}
}

func concurrent(t *testing.T, b bmc.BMC) {
	var wg sync.WaitGroup
	for range 4 {
		for name, call := range calls(b) {
			wg.Go(func() {
				if err := call(t.Context()); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	wg.Wait()
}

func closing(t *testing.T, b bmc.BMC) {
	must(t, "close", b.Close(t.Context()))
	must(t, "close twice", b.Close(t.Context()))
	for name, call := range calls(b) {
		must(t, name+" after close opens a new session", call(t.Context()))
	}
	must(t, "close", b.Close(t.Context()))
}
