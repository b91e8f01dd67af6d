package deploy

import (
	"context"

	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
)

// UndeployHandler tears an instance down: the machine is switched off, what is
// the instance's is forgotten, and cleaning follows.
func UndeployHandler(d *flow.Deps) work.Handler {
	return func(ctx context.Context, j *work.Job) work.Result {
		if !flow.Fake(j.Node) {
			if res := d.Off(ctx, j); res != nil {
				return res
			}
		}
		return work.Done{Verb: string(state.VerbClean), Target: string(state.Available), Set: func(n *store.Node) error {
			n.InstanceInfo = map[string]any{}
			n.InstanceUUID, n.InstanceName = "", ""
			delete(n.DriverInternalInfo, store.KeyDeploy)
			return flow.ForgetAgent(n)
		}}
	}
}
