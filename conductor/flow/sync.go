package flow

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

// syncWorkers is how many BMCs are asked at once.
const syncWorkers = 16

// SyncPower asks the BMC of every node at rest for its power state, one round
// every so often, until ctx ends. It only records: who switched a machine by hand
// had a reason, so nothing is switched back.
func (d *Deps) SyncPower(ctx context.Context, every time.Duration) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		d.syncRound(ctx, every)
	}
}

func (d *Deps) syncRound(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := d.each(ctx, func(n *store.Node) bool {
		return !Fake(n) && n.Driver != "manual-management" && n.ProvisionState != state.Enroll && state.States[n.ProvisionState].Stable && n.TargetPowerState == ""
	}, d.syncNode)
	if err != nil {
		d.Log.Warn("power states are not known anew", "error", err)
	}
}

// each does something to every node that fits, some at once, and waits for all.
func (d *Deps) each(ctx context.Context, fits func(*store.Node) bool, do func(context.Context, *store.Node)) error {
	nodes, err := d.Store.Nodes(ctx, store.NodeFilter{})
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(syncWorkers)
	for _, n := range nodes {
		if !fits(n) {
			continue
		}
		g.Go(func() error {
			do(ctx, n)
			return nil
		})
	}
	return g.Wait()
}

func (d *Deps) syncNode(ctx context.Context, n *store.Node) {
	b, err := d.BMC(n)
	if err != nil {
		return // verifying said so already
	}
	pw, ok := b.(bmc.Power)
	if !ok {
		return
	}
	now, err := pw.PowerState(ctx)
	if err != nil || string(now) == n.PowerState {
		if err != nil && ctx.Err() == nil {
			d.Log.Debug("power state is not known anew", "node", n.UUID, "error", err)
		}
		return
	}
	changed := false
	_, err = d.Store.UpdateNode(ctx, n.UUID, 0, func(x *store.Node) error {
		// A verb that came meanwhile knows better.
		changed = x.ProvisionState == n.ProvisionState && x.TargetPowerState == "" && x.PowerState == n.PowerState
		if changed {
			x.PowerState = string(now)
		}
		return nil
	})
	if err != nil || !changed {
		return
	}
	d.Record(ctx, n.UUID, event.Evidence{Hop: event.HopPower, Fact: string(now) + " seen, not by the conductor's doing", OK: true})
}
