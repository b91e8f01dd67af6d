// Package verify holds the short flows that touch no ramdisk: verifying a new
// node's BMC, adopting a running machine, and the answer to verbs that the
// node's interfaces don't support.
package verify

import (
	"context"
	"fmt"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/event"
)

// tries is how often an unreachable BMC is asked before verifying fails.
const tries = 3

// Handler reads the power state: who can do that can drive the machine.
func Handler(d *flow.Deps) work.Handler {
	return func(ctx context.Context, j *work.Job) work.Result {
		if flow.Fake(j.Node) {
			return work.Done{}
		}
		b, err := d.BMC(j.Node)
		if err != nil {
			return work.Fail{Cause: err, Next: "correct driver_info (`slipway node set`), then `manage` again"}
		}
		pw, ok := b.(bmc.Power)
		if !ok {
			return work.Done{}
		}
		st, err := pw.PowerState(ctx)
		if err != nil {
			d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopPower, Fact: "BMC did not answer", Detail: map[string]any{"error": err.Error()}})
			if j.Attempt+1 < tries && !flow.Permanent(err) {
				return work.Retry{After: time.Duration(j.Attempt+1) * time.Second, Cause: err}
			}
			return work.Fail{Cause: err, Next: "check the BMC's address and credentials in driver_info, then `manage` again"}
		}
		d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopPower, Fact: "power state read: " + string(st), OK: true})
		return work.Done{Set: func(n *store.Node) error {
			n.PowerState = string(st)
			return nil
		}}
	}
}

// Adopt takes a machine that already runs as active.
func Adopt(d *flow.Deps) work.Handler { return Handler(d) }

// Unsupported answers a verb for which the node has no working interface.
func Unsupported(what string) work.Handler {
	return func(_ context.Context, j *work.Job) work.Result {
		if flow.Fake(j.Node) {
			return work.Done{}
		}
		return work.Fail{
			Cause: fmt.Errorf("driver %q of node %s has no %s interface that can do this", j.Node.Driver, j.Node.UUID, what),
			Next:  "the node is unharmed; take it back with the verbs that the state accepts",
		}
	}
}
