package flow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/event"
)

// Finish is a flow's place in leaving the ramdisk for the disk.
type Finish struct {
	Asked time.Time `json:"asked,omitzero"` // the agent was asked to switch off
	Off   bool      `json:"off,omitempty"`
}

// Begun says whether the agent was asked to go.
func (f *Finish) Begun() bool { return !f.Asked.IsZero() }

// BootDisk switches the machine off by its agent (so that its caches are
// flushed), sets the disk as the lasting boot device and switches it on. It
// returns nil when the machine is on again.
func (d *Deps) BootDisk(ctx context.Context, j *work.Job, f *Finish, p any) work.Result {
	b, pw, res := d.power(j)
	if res != nil {
		return res
	}
	if !f.Begun() {
		f.Asked = d.Now()
		if err := j.Save(ctx, p); err != nil {
			return work.Retry{After: time.Second, Cause: err}
		}
		if a, err := d.AgentOf(j.Node); err == nil {
			// Whatever it answers, the BMC's word decides below.
			if _, err := a.Execute(ctx, "standby.power_off", map[string]any{}, false); err != nil {
				d.Log.Info("agent did not take power_off; the BMC will", "node", j.Node.UUID, "error", err)
			}
			a.Close()
		}
	}
	if !f.Off {
		st, err := pw.PowerState(ctx)
		if err != nil {
			return d.bmcFailed(ctx, j, "read power state", err, p)
		}
		if st != bmc.PowerOff {
			if d.Now().Sub(f.Asked) < d.Config.PowerOff {
				return work.Wait{Until: f.Asked.Add(d.Config.PowerOff), For: "the machine to switch itself off", Poll: offPoll, Payload: p}
			}
			if err := pw.SetPower(ctx, bmc.ActionOff); err != nil {
				return d.bmcFailed(ctx, j, "power off", err, p)
			}
		}
		f.Off = true
		d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopPower, Fact: "power off confirmed", OK: true})
		if err := j.Save(ctx, p); err != nil {
			return work.Retry{After: time.Second, Cause: err}
		}
	}
	if bd, ok := b.(bmc.BootDevice); ok {
		err := bd.SetBootDevice(ctx, bmc.DeviceDisk, true)
		if errors.Is(err, bmc.ErrUnsupported) { // some keep no lasting override: then the firmware's own order follows
			err = bd.SetBootDevice(ctx, bmc.DeviceDisk, false)
		}
		if err != nil {
			return d.bmcFailed(ctx, j, "set boot device to disk", err, p)
		}
		d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopDisk, Fact: "boot device set to disk", OK: true})
	}
	if err := pw.SetPower(ctx, bmc.ActionOn); err != nil {
		return d.bmcFailed(ctx, j, "power on", err, p)
	}
	d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopPower, Fact: "power on confirmed", OK: true})
	return nil
}

// offPoll: a ramdisk is off within a second or two.
const offPoll = time.Second

func (d *Deps) power(j *work.Job) (bmc.BMC, bmc.Power, work.Result) {
	b, err := d.BMC(j.Node)
	if err != nil {
		return nil, nil, work.Fail{Cause: err, Next: "correct driver and driver_info (`slipway node set`), then retry the verb"}
	}
	pw, ok := b.(bmc.Power)
	if !ok {
		return nil, nil, work.Fail{Cause: fmt.Errorf("driver %q has no power control", j.Node.Driver), Next: "use a driver that has, such as redfish"}
	}
	return b, pw, nil
}

// Off switches the machine off and says so on the node.
func (d *Deps) Off(ctx context.Context, j *work.Job) work.Result {
	_, pw, res := d.power(j)
	if res != nil {
		return res
	}
	st, err := pw.PowerState(ctx)
	if err != nil {
		return d.bmcFailed(ctx, j, "read power state", err, nil)
	}
	if st != bmc.PowerOff {
		if err := pw.SetPower(ctx, bmc.ActionOff); err != nil {
			return d.bmcFailed(ctx, j, "power off", err, nil)
		}
		d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopPower, Fact: "power off confirmed", OK: true})
	}
	if err := j.Update(ctx, func(n *store.Node) error {
		n.PowerState, n.TargetPowerState = string(bmc.PowerOff), ""
		return nil
	}); err != nil {
		return work.Retry{After: time.Second, Cause: err}
	}
	return nil
}
