package bmc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Power states of DSP0268's Resource.PowerState. PoweringOn and PoweringOff are
// reported as where they lead, as Ironic does, and are not taken for arrival.
var powerStates = map[string]PowerState{
	"On": PowerOn, "PoweringOn": PowerOn, "Paused": PowerOn,
	"Off": PowerOff, "PoweringOff": PowerOff,
}

// PowerState implements Power.
func (r *redfish) PowerState(ctx context.Context) (PowerState, error) {
	s, err := r.read(ctx, "read power state")
	if err != nil {
		return PowerUnknown, err
	}
	return powerStates[s.PowerState], nil
}

// read is readSystem as a call of its own.
func (r *redfish) read(ctx context.Context, op string) (s *system, err error) {
	err = r.do(ctx, op, func() error {
		s, err = r.readSystem()
		return err
	})
	return s, err
}

// SetPower implements Power.
func (r *redfish) SetPower(ctx context.Context, a Action) error {
	op := string(a)
	switch a {
	case ActionOn, ActionOff, ActionSoftOff:
		return r.reach(ctx, op, a)
	case ActionReboot, ActionSoftReboot:
	default:
		_, err := ParseAction(op)
		return &Error{Class: ErrInvalid, Address: r.in.address, Op: op, Cause: err}
	}
	s, err := r.read(ctx, op)
	if err != nil {
		return err
	}
	if powerStates[s.PowerState] == PowerOn {
		off := ActionOff
		if a == ActionSoftReboot {
			off = ActionSoftOff
		}
		err := r.reach(ctx, op, off)
		if errors.Is(err, ErrUnsupported) {
			return r.restart(ctx, op, s)
		}
		if err != nil {
			return err
		}
	}
	return r.reach(ctx, op, ActionOn)
}

// way is a reset type by which an action may be done, and how long it may take.
type way struct {
	reset string
	soft  bool // the operating system has to react
}

// ways lists the reset types for an action, the best first. PushPowerButton
// toggles; it is pushed only when the state was just read to be the other one.
func ways(a Action, b behaviour) []way {
	switch {
	case a == ActionOn:
		return []way{{"On", false}, {"ForceOn", false}, {"PushPowerButton", false}}
	case a == ActionOff && !b.noForceOff:
		return []way{{"ForceOff", false}, {"GracefulShutdown", true}}
	}
	return []way{{"GracefulShutdown", true}, {"PushPowerButton", true}}
}

// choose takes the first way that the BMC offers; one that lists nothing is taken to offer the first.
func choose(s *system, ways []way) (way, bool) {
	if len(s.Actions.Reset.Allowed) == 0 {
		return ways[0], true
	}
	for _, w := range ways {
		if slices.Contains(s.Actions.Reset.Allowed, w.reset) {
			return w, true
		}
	}
	return way{}, false
}

// reach brings the machine into a's target state and sees it there.
func (r *redfish) reach(ctx context.Context, op string, a Action) error {
	want := "On"
	if a.Target() == PowerOff {
		want = "Off"
	}
	var (
		before string
		chosen way
	)
	there, err := r.attempt(ctx, op, func() (bool, error) {
		s, err := r.readSystem()
		if err != nil {
			return false, err
		}
		before = s.PowerState
		if before == want {
			return true, nil
		}
		w, ok := choose(s, ways(a, s.behaviour))
		if !ok || s.Actions.Reset.Target == "" {
			return false, &Error{
				Class: ErrUnsupported, Address: r.in.address, Op: op,
				Cause: fmt.Errorf("the BMC offers only %s", list(s.Actions.Reset.Allowed)), Next: "switch the machine by hand",
			}
		}
		chosen = w
		return false, r.post(s.Actions.Reset.Target, map[string]string{"ResetType": w.reset})
	})
	refused := err
	if s := status(err); s == http.StatusBadRequest || s == http.StatusConflict {
		// Some BMCs refuse a change that changes nothing: what counts is the state.
		err = nil
	}
	if err != nil || there {
		return err
	}
	limit := r.opt.Timeouts.Power
	if chosen.soft {
		limit = r.opt.Timeouts.SoftPower
	}
	if refused != nil {
		limit = 0 // one look
	}
	last := before
	there, err = r.poll(ctx, limit, func() (bool, error) {
		s, err := r.read(ctx, op)
		if err != nil {
			return false, err
		}
		last = s.PowerState
		return last == want, nil
	})
	switch {
	case there:
		return nil
	case refused != nil:
		return refused
	case err != nil:
		return r.explain(op, err)
	}
	e := &Error{Class: ErrIgnored, Address: r.in.address, Op: op}
	e.Cause = fmt.Errorf("%s was accepted and power is still %s after %s", chosen.reset, clean(last), limit)
	switch {
	case last != before:
		e.Class = ErrTimeout
		e.Next = "try again; restart the BMC if it stays"
	case chosen.soft:
		e.Next = "the operating system may not react to the power button: power off without soft"
	default:
		e.Next = "restart the BMC, or switch the machine by hand"
	}
	return e
}

// restart is the reboot of a BMC that offers no power off. It is seen to have
// happened by LastResetTime, where the BMC has one.
func (r *redfish) restart(ctx context.Context, op string, s *system) error {
	w, ok := choose(s, []way{{"ForceRestart", false}, {"PowerCycle", false}, {"GracefulRestart", true}})
	if !ok || len(s.Actions.Reset.Allowed) == 0 {
		return &Error{
			Class: ErrUnsupported, Address: r.in.address, Op: op,
			Cause: fmt.Errorf("the BMC offers only %s", list(s.Actions.Reset.Allowed)), Next: "restart the machine by hand",
		}
	}
	if _, err := r.attempt(ctx, op, func() (bool, error) {
		return false, r.post(s.Actions.Reset.Target, map[string]string{"ResetType": w.reset})
	}); err != nil {
		return err
	}
	if s.LastResetTime == "" {
		r.opt.Logger.Warn("this BMC gives no way to see that a restart happened", "bmc", r.in.address, "reset", w.reset)
		return nil
	}
	limit := r.opt.Timeouts.Power
	if w.soft {
		limit = r.opt.Timeouts.SoftPower
	}
	done, err := r.poll(ctx, limit, func() (bool, error) {
		now, err := r.read(ctx, op)
		if err != nil {
			return false, err
		}
		return now.LastResetTime != s.LastResetTime && now.PowerState == "On", nil
	})
	if err != nil {
		return r.explain(op, err)
	}
	if !done {
		return &Error{
			Class: ErrIgnored, Address: r.in.address, Op: op,
			Cause: fmt.Errorf("%s was accepted and LastResetTime is unchanged after %s", w.reset, limit), Next: "restart the machine by hand",
		}
	}
	return nil
}

// attempt is do, again and again while the BMC says "not now", until Settle.
func (r *redfish) attempt(ctx context.Context, op string, f func() (bool, error)) (done bool, err error) {
	giveUp := time.Now().Add(r.opt.Timeouts.Settle)
	for wait := r.opt.Timeouts.Poll; ; wait = min(wait*3/2, 10*r.opt.Timeouts.Poll) {
		err = r.do(ctx, op, func() error {
			var err error
			done, err = f()
			return err
		})
		var a *answerError
		if err == nil || !errors.As(err, &a) || !a.notNow || time.Now().After(giveUp) {
			return done, err
		}
		r.opt.Logger.Info("BMC says not now, trying again", "bmc", r.in.address, "op", op, "cause", a.text)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return done, r.explain(op, ctx.Err())
		}
	}
}

func list(values []string) string {
	if len(values) == 0 {
		return "nothing"
	}
	return clean(strings.Join(values, ", "))
}
