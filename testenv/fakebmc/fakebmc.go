// Package fakebmc is a Redfish service for a machine that is not metal: a QEMU
// process, or a few fields in a test. It speaks enough of DSP0266 (Redfish 1.18)
// and DSP0268's ComputerSystem, Manager, Chassis, EthernetInterface, VirtualMedia
// and Session schemas for gofish, for OpenStack's sushy and for Ironic's redfish
// driver, and it can be told at run time to misbehave as real BMCs do (Faults).
package fakebmc

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// PowerState is a machine's power as Redfish spells it.
type PowerState string

// The power states that a Machine reports.
const (
	On  PowerState = "On"
	Off PowerState = "Off"
)

// Device is a Redfish boot source (ComputerSystem.Boot.BootSourceOverrideTarget).
type Device string

// The boot sources that the service offers.
const (
	None      Device = "None"
	PXE       Device = "Pxe"
	Disk      Device = "Hdd"
	CD        Device = "Cd"
	BIOSSetup Device = "BiosSetup"
	UEFIHTTP  Device = "UefiHttp"
)

// Override is what the next boot (Once) or every boot from now on uses instead
// of the firmware's own order. None is the firmware's own order.
type Override struct {
	Device  Device
	Once    bool
	HTTPURI string // with UEFIHTTP: what the firmware fetches
}

// Machine is what the service manages. Calls come one at a time.
type Machine interface {
	PowerState(ctx context.Context) (PowerState, error)
	PowerOn(ctx context.Context) error
	// ForceOff cuts the power.
	ForceOff(ctx context.Context) error
	// GracefulShutdown presses the ACPI power button and returns at once; the
	// operating system may take its time or not react.
	GracefulShutdown(ctx context.Context) error
	// Reset restarts without passing through power off.
	Reset(ctx context.Context) error
	// SetNextBoot is called with each change of the override, the machine on or
	// off. A machine that restarts by itself (its OS rebooted) honours the
	// override, forgets one with Once, and tells the service by BMC.Booted.
	SetNextBoot(ctx context.Context, o Override) error
}

// MediaMachine is a Machine with a virtual CD drive.
type MediaMachine interface {
	Machine
	// InsertMedia attaches the ISO image at an http or https URL.
	InsertMedia(ctx context.Context, image string) error
	EjectMedia(ctx context.Context) error
}

// Config describes the machine to those who ask the service.
type Config struct {
	UUID, Name          string // UUID is also the member id in /redfish/v1/Systems
	Username, Password  string // both empty: no authentication
	MACs                []string
	Serial              string
	Manufacturer, Model string // "Slipway" and "Virtual machine" when empty
	BIOSVersion         string
	BootMode            string // "UEFI" (the default) or "Legacy"
	CPUs, MemoryMiB     int
	// BootTargets are the boot sources that the machine can take; nil is all that
	// this package names (UefiHttp with UEFI only).
	BootTargets []Device
	// OtherSystems are ids of further members of /redfish/v1/Systems, to see
	// that a client finds its own. They answer 404.
	OtherSystems []string
	// Logger gets one debug line a request; nil is silence.
	Logger *slog.Logger
}

// BMC is the service. It is an http.Handler; TLS is the server's affair.
type BMC struct {
	cfg     Config
	machine Machine
	mux     *http.ServeMux

	calls sync.Mutex // one call at a time into machine

	mu        sync.Mutex
	faults    Faults
	changed   chan struct{} // closed and replaced when faults change
	override  Override
	sessions  map[string]session // by id
	image     string             // inserted medium, "" when none
	lastReset time.Time
	stats     Stats
	inFlight  int
	nextID    int

	background sync.WaitGroup
	stop       context.CancelFunc
	life       context.Context
}

// Stats counts what clients did; tests judge clients by it.
type Stats struct {
	Requests      int
	FailedLogins  int      // requests or session attempts with wrong credentials
	Logins        int      // sessions opened
	Sessions      int      // open now
	MaxConcurrent int      // most requests in flight at once
	Resets        []string // reset types accepted, in order
	pending       int      // power changes under way
}

// New returns the service for machine. Close ends what it does in the background.
func New(cfg Config, machine Machine) *BMC {
	if cfg.Manufacturer == "" {
		cfg.Manufacturer = "Slipway"
	}
	if cfg.Model == "" {
		cfg.Model = "Virtual machine"
	}
	if cfg.BootMode == "" {
		cfg.BootMode = "UEFI"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b := &BMC{
		cfg: cfg, machine: machine,
		changed:  make(chan struct{}),
		override: Override{Device: None},
		sessions: map[string]session{},
	}
	b.life, b.stop = context.WithCancel(context.Background())
	b.mux = b.routes()
	return b
}

// Close ends hung requests and delayed power changes, and waits for the latter.
// The machine is left as it is.
func (b *BMC) Close() {
	b.stop()
	b.background.Wait()
}

// Stats returns the counters.
func (b *BMC) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Sessions = len(b.sessions)
	s.Resets = append([]string(nil), b.stats.Resets...)
	return s
}

// Booted tells the service that the machine started by itself: an override with
// Once is spent.
func (b *BMC) Booted() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastReset = time.Now()
	if b.override.Once && !b.faults.KeepOverride {
		b.override = Override{Device: None}
	}
}

// Override returns the boot override as a client would read it.
func (b *BMC) Override() Override {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.override
}

// ServeHTTP implements http.Handler.
func (b *BMC) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.stats.Requests++
	b.inFlight++
	b.stats.MaxConcurrent = max(b.stats.MaxConcurrent, b.inFlight)
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.inFlight--
		b.mu.Unlock()
	}()
	b.cfg.Logger.Debug("redfish request", "machine", b.cfg.Name, "method", r.Method, "path", r.URL.Path)
	w.Header().Set("OData-Version", "4.0")
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	if b.misbehave(w, r) {
		return
	}
	if !b.authorised(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="redfish"`)
		fail(w, http.StatusUnauthorized, "Base.1.18.NoValidSession", "There is no valid session established with the implementation.")
		return
	}
	b.mux.ServeHTTP(w, r)
}

// reset carries out one ResetType.
func (b *BMC) reset(ctx context.Context, kind string) error {
	b.calls.Lock()
	defer b.calls.Unlock()
	state, err := b.machine.PowerState(ctx)
	if err != nil {
		return err
	}
	switch kind {
	case "On", "ForceOn":
		if state == On {
			return nil
		}
		return b.start(ctx)
	case "ForceOff":
		if state == Off {
			return nil
		}
		return b.machine.ForceOff(ctx)
	case "GracefulShutdown":
		if state == Off {
			return nil
		}
		return b.machine.GracefulShutdown(ctx)
	case "PushPowerButton":
		if state == Off {
			return b.start(ctx)
		}
		return b.machine.GracefulShutdown(ctx)
	case "ForceRestart":
		if state == Off {
			return b.start(ctx)
		}
		if err := b.machine.Reset(ctx); err != nil {
			return err
		}
		b.Booted()
		return nil
	case "PowerCycle":
		if state == On {
			if err := b.machine.ForceOff(ctx); err != nil {
				return err
			}
		}
		return b.start(ctx)
	case "GracefulRestart":
		if state == Off {
			return b.start(ctx)
		}
		if err := b.machine.GracefulShutdown(ctx); err != nil {
			return err
		}
		b.background.Go(b.startWhenOff)
		return nil
	}
	return errors.New("unknown reset type " + kind)
}

func (b *BMC) start(ctx context.Context) error {
	if err := b.machine.PowerOn(ctx); err != nil {
		return err
	}
	b.Booted()
	return nil
}

// startWhenOff is the second half of GracefulRestart. The operating system has
// two minutes to go down, as servers' firmware commonly grants.
func (b *BMC) startWhenOff() {
	ctx, cancel := context.WithTimeout(b.life, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		b.calls.Lock()
		state, err := b.machine.PowerState(ctx)
		if err == nil && state == Off {
			err = b.start(ctx)
			b.calls.Unlock()
			if err != nil {
				b.cfg.Logger.Error("restart failed", "machine", b.cfg.Name, "error", err)
			}
			return
		}
		b.calls.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
