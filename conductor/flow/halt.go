package flow

import (
	"context"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

// Orphan forgets the agent and marks its machine to be switched off.
func Orphan(n *store.Node) error {
	if err := ForgetAgent(n); err != nil {
		return err
	}
	n.DriverInternalInfo[store.KeyHalt] = true
	return nil
}

func orphaned(n *store.Node) bool {
	v, _ := n.DriverInternalInfo[store.KeyHalt].(bool)
	return v
}

// machines are the nodes whose machine is being switched: halting an ended work's
// must not hit the boot that the next verb has just made.
type machines struct{ locks sync.Map }

// hold waits for the machine and returns what lets it go.
func (m *machines) hold(uuid string) (release func()) {
	v, _ := m.locks.LoadOrStore(uuid, new(sync.Mutex))
	lock := v.(*sync.Mutex) //nolint:forcetypeassert // nothing else is stored
	lock.Lock()
	return lock.Unlock
}

// haltAgain is after how long a BMC that failed is asked once more.
const haltAgain = 30 * time.Second

// HaltOrphans switches marked machines off until ctx ends.
func (d *Deps) HaltOrphans(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	d.Store.OnChange(func(n *store.Node, _ *store.Transition) {
		if n == nil || !orphaned(n) {
			return
		}
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	t := time.NewTicker(haltAgain)
	defer t.Stop()
	for {
		d.haltRound(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-t.C:
		}
	}
}

func (d *Deps) haltRound(ctx context.Context) {
	if err := d.each(ctx, orphaned, d.halt); err != nil {
		d.Log.Warn("orphaned machines are not looked for", "error", err)
	}
}

func (d *Deps) halt(ctx context.Context, listed *store.Node) {
	uuid := listed.UUID
	defer d.machines.hold(uuid)()
	// Read again: a verb that came meanwhile has power-cycled the machine itself.
	n, err := d.Store.Node(ctx, uuid)
	if err != nil || !orphaned(n) || n.Reservation != "" {
		return
	}
	if err := d.switchOff(ctx, n); err != nil {
		d.Record(ctx, uuid, event.Evidence{Hop: event.HopPower, Fact: "power off failed; the agent may go on", Detail: map[string]any{"error": err.Error()}})
		return
	}
	_, err = d.Store.UpdateNode(ctx, uuid, 0, func(x *store.Node) error {
		if !orphaned(x) {
			return nil
		}
		x.PowerState = string(bmc.PowerOff)
		return ForgetAgent(x)
	})
	if err != nil {
		d.Log.Error("orphaned machine is off, and its node does not know", "node", uuid, "error", err)
		return
	}
	d.Record(ctx, uuid, event.Evidence{Hop: event.HopPower, Fact: "power off confirmed: nothing of the ended work goes on", OK: true})
}

func (d *Deps) switchOff(ctx context.Context, n *store.Node) error {
	if Fake(n) {
		return nil
	}
	b, err := d.BMC(n)
	if err != nil {
		return err
	}
	pw, ok := b.(bmc.Power)
	if !ok {
		return bmc.ErrUnsupported
	}
	return pw.SetPower(ctx, bmc.ActionOff)
}
