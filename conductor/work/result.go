// Package work claims leased work from the store, runs its handler, and turns
// the handler's result into one store.Advance or store.ParkWork. Any number of
// conductors may run it on one store; any may die at any time.
package work

import (
	"context"
	"encoding/json"
	"time"

	"github.com/slipway-metal/slipway/conductor/store"
)

// Handler carries one kind of work on from where its payload says it is. It is
// called again after every wake-up, retry, deadline and restart, so each side
// effect is recorded with Job.Save before it is made and recognised after. Its
// ctx ends when the work is not its any more (aborted, replaced, taken by another
// conductor) and when the conductor stops; what it returns then does no harm.
type Handler func(ctx context.Context, j *Job) Result

// Job is what a handler sees of its work.
type Job struct {
	Node    *store.Node // as read when this run began
	Payload json.RawMessage
	Attempt int
	// Overdue is true when the deadline of the last Wait has passed.
	Overdue bool
	// Save stores v as the payload now, under the lease.
	Save func(ctx context.Context, v any) error
	// Update changes the node's other fields now, under the lease; Node is refreshed.
	Update func(ctx context.Context, f func(*store.Node) error) error
}

// Result is one of Done, Wait, Retry, Fail; nothing else implements it.
type Result interface{ result() }

// Done ends the work with the state's done verb (or Verb, when it is another:
// deleting ends by clean). Set changes the node in the same transaction.
type Done struct {
	Verb   string
	Set    func(*store.Node) error
	Target string // non-empty: target provision state for the following work
}

// Wait rests until a heartbeat or other wake-up, or until Until, the deadline of
// what is waited for; the handler is then run with Overdue, and another Wait
// that is over already is a failure. A zero Until keeps the deadline of the Wait
// before, or else is DefaultWait from now: nothing waits for ever. Payload is
// stored with it when not nil.
type Wait struct {
	Until   time.Time
	For     string // what is waited for, for people: "the agent's first call"
	Payload any
	// Poll, when not zero, runs the handler again after that long without a wake-up.
	Poll time.Duration
}

// Retry runs the handler again After some time (zero: a second, doubled by each
// attempt up to a minute); Cause is shown meanwhile. A deadline stays.
type Retry struct {
	After   time.Duration
	Cause   error
	Payload any
}

// Fail ends the work with the fail verb. Next tells the operator what to do.
type Fail struct {
	Cause error
	Next  string
	Set   func(*store.Node) error
}

func (Done) result()  {}
func (Wait) result()  {}
func (Retry) result() {}
func (Fail) result()  {}
