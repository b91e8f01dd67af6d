package work

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// task is one run of claimed work.
type task struct {
	*store.Work
	store   store.Store
	overdue bool // its deadline had passed when it was claimed
	log     *slog.Logger
}

// report is the next step of failures that are our mistakes.
const report = "Report it with the conductor's log, then retry the verb"

// run calls the handler; a panic and a missing handler are failures.
func (t *task) run(ctx context.Context, h Handler, n *store.Node) (r Result) {
	if h == nil {
		return Fail{Cause: fmt.Errorf("conductor %s can not do %s work", t.Owner, t.Kind), Next: "Start a conductor of the version that queued it, then retry the verb"}
	}
	defer func() {
		if p := recover(); p != nil {
			t.log.ErrorContext(ctx, "the handler panicked", "panic", p, "stack", string(debug.Stack()))
			r = Fail{Cause: fmt.Errorf("internal error: %s work panicked: %v", t.Kind, p), Next: report}
		}
	}()
	j := &Job{Node: n, Payload: t.Payload, Attempt: t.Attempt, Overdue: t.overdue}
	j.Save = func(ctx context.Context, v any) error {
		payload, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("save the payload of %s work: %w", t.Kind, err)
		}
		if err := t.store.SaveWork(ctx, t.Lease(), payload); err != nil {
			return err
		}
		j.Payload = payload
		return nil
	}
	j.Update = func(ctx context.Context, f func(*store.Node) error) error {
		n, err := t.store.UpdateLeased(ctx, t.Lease(), f)
		if err != nil {
			return err
		}
		*j.Node = *n
		return nil
	}
	return h(ctx, j)
}

// maxStale bounds how often a result is applied anew because the node's state
// changed at that moment.
const maxStale = 3

// apply is the one place that turns a result into a move or a rest.
func (t *task) apply(ctx context.Context, r Result) error {
	for try := 1; ; try++ {
		n, err := t.store.Node(ctx, t.NodeUUID)
		if err != nil {
			return err
		}
		if err = t.applyTo(ctx, n, r); try == maxStale || !errors.Is(err, store.ErrStale) {
			return err
		}
	}
}

func (t *task) applyTo(ctx context.Context, n *store.Node, r Result) error {
	switch r := r.(type) {
	case Done:
		return t.done(ctx, n, r)
	case Wait:
		return t.wait(ctx, n, r)
	case Retry:
		return t.retry(ctx, n, r)
	case Fail:
		return t.fail(ctx, n, r)
	}
	return t.fail(ctx, n, Fail{Cause: fmt.Errorf("internal error: %s work returned %T", t.Kind, r), Next: report})
}

// done ends the work by its verb, from a waiting state by resuming first where
// the state does not take the verb itself. A verb that the state can't take and
// an error of Set fail the work: trying again would change nothing.
func (t *task) done(ctx context.Context, n *store.Node, r Done) error {
	verb := state.Verb(r.Verb)
	if verb == "" {
		verb = state.VerbDone
	}
	verbs := []state.Verb{verb}
	if _, err := state.Next(n.ProvisionState, verb); err != nil && waits(n.ProvisionState) {
		verbs = []state.Verb{state.VerbResume, verb}
	}
	var target *state.State
	if r.Target != "" {
		s := state.State(r.Target)
		target = &s
	}
	var setErr error
	_, err := t.store.Advance(ctx, store.Transition{
		Node: n.UUID, From: n.ProvisionState, Verbs: verbs, Target: target, Lease: t.Lease(),
		Set: func(n *store.Node) error {
			if r.Set != nil {
				setErr = r.Set(n)
			}
			return setErr
		},
	})
	var refused *state.NotAcceptedError
	switch {
	case setErr != nil:
		return t.fail(ctx, n, Fail{Cause: fmt.Errorf("end %s work: %w", t.Kind, setErr), Next: report})
	case errors.As(err, &refused), errors.Is(err, store.ErrInvalid):
		return t.fail(ctx, n, Fail{Cause: fmt.Errorf("internal error: end %s work: %w", t.Kind, err), Next: report})
	}
	return err
}

// wait rests: by the move to the waiting state where the node is in a working
// one that has such a twin, else where it is.
func (t *task) wait(ctx context.Context, n *store.Node, r Wait) error {
	now := time.Now()
	deadline := r.Until
	if deadline.IsZero() {
		deadline = t.Deadline
	}
	if deadline.IsZero() {
		deadline = now.Add(DefaultWait)
	}
	if t.overdue && !now.Before(deadline) {
		return t.fail(ctx, n, Fail{
			Cause: fmt.Errorf("timed out waiting for %s", r.For),
			Next:  "`slipway explain " + n.UUID + "` shows how far the machine came",
		})
	}
	runAt := deadline
	if poll := now.Add(r.Poll); r.Poll > 0 && poll.Before(deadline) {
		runAt = poll
	}
	payload, err := marshal(r.Payload)
	if err != nil {
		return t.badPayload(ctx, n, err)
	}
	if _, twin := state.Waiting[n.ProvisionState]; !twin {
		return t.store.ParkWork(ctx, t.Lease(), payload, runAt, deadline, 0, r.For)
	}
	_, err = t.store.Advance(ctx, store.Transition{
		Node: n.UUID, From: n.ProvisionState, Verbs: []state.Verb{state.VerbWait}, Lease: t.Lease(), Why: "waiting for " + r.For,
		Park: true, Payload: payload, RunAt: runAt, Deadline: deadline, Cause: r.For,
	})
	return err
}

// maxBackoff bounds the delay of a Retry that names none.
const maxBackoff = time.Minute

func (t *task) retry(ctx context.Context, n *store.Node, r Retry) error {
	payload, err := marshal(r.Payload)
	if err != nil {
		return t.badPayload(ctx, n, err)
	}
	after := r.After
	if after <= 0 {
		after = min(time.Second<<min(t.Attempt, 6), maxBackoff)
	}
	cause := ""
	if r.Cause != nil {
		cause = r.Cause.Error()
	}
	return t.store.ParkWork(ctx, t.Lease(), payload, time.Now().Add(after), t.Deadline, t.Attempt+1, cause)
}

// release gives the work back as it was claimed, due now, with what was saved.
func (t *task) release(ctx context.Context) error {
	return t.store.ParkWork(ctx, t.Lease(), nil, time.Now(), t.Deadline, t.Attempt, t.Cause)
}

// fail ends the work by the fail verb. Where the state has none (a user holds it
// at this moment), the work rests until somebody moves the node on.
func (t *task) fail(ctx context.Context, n *store.Node, r Fail) error {
	message := sentence(r)
	_, err := t.store.Advance(ctx, store.Transition{
		Node: n.UUID, From: n.ProvisionState, Verbs: []state.Verb{state.VerbFail}, Lease: t.Lease(),
		Set: func(n *store.Node) error {
			if r.Set != nil {
				if err := r.Set(n); err != nil {
					message += " (and " + err.Error() + ")"
				}
			}
			n.LastError = message
			return nil
		},
	})
	var refused *state.NotAcceptedError
	if errors.As(err, &refused) {
		err = t.store.ParkWork(ctx, t.Lease(), nil, time.Now().Add(DefaultWait), t.Deadline, t.Attempt+1, message)
	}
	if err == nil {
		t.log.WarnContext(ctx, "the work failed", "error", message)
	}
	return err
}

func (t *task) badPayload(ctx context.Context, n *store.Node, err error) error {
	return t.fail(ctx, n, Fail{Cause: fmt.Errorf("internal error: %s work's payload: %w", t.Kind, err), Next: report})
}

// sentence is the last error: the cause, then what to do.
func sentence(r Fail) string {
	cause := "failed for no stated reason"
	if r.Cause != nil {
		cause = strings.TrimRight(r.Cause.Error(), ". \n")
	}
	if r.Next == "" {
		return cause
	}
	return cause + ". " + r.Next
}

// waits says whether a state is the waiting twin of a working one.
func waits(s state.State) bool {
	for _, twin := range state.Waiting {
		if twin == s {
			return true
		}
	}
	return false
}

func marshal(v any) (json.RawMessage, error) {
	if v == nil {
		return nil, nil
	}
	return json.Marshal(v)
}
