package bmc

import (
	"context"
)

func manualDriver() Driver {
	return Driver{
		Name:       "manual-management",
		Properties: map[string]string{},
		Open: func(_ map[string]any, opt Options) (BMC, error) {
			return &manual{opt.Power, orName(opt.name, "manual")}, nil
		},
	}
}

func orName(name, def string) string {
	if name == "" {
		return def
	}
	return name
}

// manual is a machine that people switch. Its power state is what the operator
// recorded last; setting it records that it was done.
type manual struct {
	power PowerRecord
	name  string
}

var _ Power = (*manual)(nil)

// Driver implements BMC.
func (m *manual) Driver() string { return "manual-management" }

// Address implements BMC.
func (m *manual) Address() string { return m.name }

// Close implements BMC.
func (m *manual) Close(context.Context) error { return nil }

// PowerState implements Power.
func (m *manual) PowerState(ctx context.Context) (PowerState, error) {
	return recorded(ctx, m.power, m.name)
}

// SetPower implements Power.
func (m *manual) SetPower(ctx context.Context, a Action) error {
	return record(ctx, m.power, m.name, a)
}

// record notes a's target.
func record(ctx context.Context, power PowerRecord, name string, a Action) error {
	if _, err := ParseAction(string(a)); err != nil {
		return &Error{Class: ErrInvalid, Address: name, Op: string(a), Cause: err}
	}
	err := ctx.Err()
	if err == nil {
		err = power.Store(ctx, a.Target())
	}
	return recordError(ctx, name, string(a), err)
}

// recorded reads the state back.
func recorded(ctx context.Context, power PowerRecord, name string) (PowerState, error) {
	if err := ctx.Err(); err != nil {
		return PowerUnknown, recordError(ctx, name, "read power state", err)
	}
	s, err := power.Load(ctx)
	return s, recordError(ctx, name, "read power state", err)
}

func recordError(ctx context.Context, name, op string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return &Error{Class: ErrTimeout, Address: name, Op: op, Cause: err, Next: "try again"}
	}
	return &Error{Class: ErrFailed, Address: name, Op: op, Cause: err, Next: "see the conductor's log"}
}
