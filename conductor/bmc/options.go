package bmc

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Timeouts bound what a driver waits for. Zero fields take the default.
type Timeouts struct {
	// Request is one HTTP exchange, connecting included. 30 s; BMCs need seconds
	// for one (Ironic's redfish driver waits 60 s).
	Request time.Duration
	// Power is from an accepted power change to its effect. 60 s, Ironic's
	// [conductor]power_state_change_timeout.
	Power time.Duration
	// SoftPower is the same for what the operating system has to do itself.
	// 600 s, Ironic's [conductor]soft_power_off_timeout.
	SoftPower time.Duration
	// Settle is how long a boot override may take to read back, and how long
	// "busy, try again" answers are retried. 30 s.
	Settle time.Duration
	// Poll is the first wait between two reads; it grows to ten times as much. 300 ms.
	Poll time.Duration
	// LoginRetry is how long refused credentials are not tried again. 5 min:
	// BMCs lock accounts after a few failures.
	LoginRetry time.Duration
	// BreakerOpen is how long a BMC is left alone after BreakerFailures. 30 s.
	BreakerOpen time.Duration
}

// BreakerFailures is how many calls in a row must fail (unreachable or timed out)
// before a BMC is left alone for Timeouts.BreakerOpen.
const BreakerFailures = 5

func or(d, def time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return def
}

func (t Timeouts) withDefaults() Timeouts {
	return Timeouts{
		Request:     or(t.Request, 30*time.Second),
		Power:       or(t.Power, time.Minute),
		SoftPower:   or(t.SoftPower, 10*time.Minute),
		Settle:      or(t.Settle, 30*time.Second),
		Poll:        or(t.Poll, 300*time.Millisecond),
		LoginRetry:  or(t.LoginRetry, 5*time.Minute),
		BreakerOpen: or(t.BreakerOpen, 30*time.Second),
	}
}

// PowerRecord remembers a power state for drivers that cannot ask:
// fake-hardware and manual-management. The conductor backs it by the node's
// power_state, as Ironic's fake driver does.
type PowerRecord interface {
	Load(ctx context.Context) (PowerState, error)
	Store(ctx context.Context, s PowerState) error
}

// memoryRecord is the PowerRecord of those who give none.
type memoryRecord struct {
	mu sync.Mutex
	s  PowerState
}

func (m *memoryRecord) Load(context.Context) (PowerState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.s, nil
}

func (m *memoryRecord) Store(_ context.Context, s PowerState) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.s = s
	return nil
}

// Options are what a driver needs besides driver_info. The zero value works.
type Options struct {
	Timeouts Timeouts
	// Power is where manual-management and fake-hardware keep the power state;
	// nil keeps it in memory.
	Power PowerRecord
	// Logger gets retries, quirks and failed log-outs; nil is silence.
	Logger *slog.Logger

	name   string  // what to call a BMC that has no address: the node's UUID
	shared *guards // one guard an address; nil makes one for this BMC alone
}

func (o Options) withDefaults() Options {
	o.Timeouts = o.Timeouts.withDefaults()
	if o.Power == nil {
		o.Power = &memoryRecord{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.shared == nil {
		o.shared = newGuards()
	}
	return o
}
