package serve

import (
	"context"
	"log/slog"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

// power is the API's word to BMCs: it answers at once, and the outcome goes to
// the node.
type power struct {
	ctx   context.Context // of the process
	deps  *flow.Deps
	log   *slog.Logger
	limit time.Duration // of one change when the caller gives none
}

// powerLimit covers a soft power-off of an operating system that takes its time.
const powerLimit = 15 * time.Minute

// Validate opens the BMC, which checks driver_info and calls nobody.
func (p *power) Validate(_ context.Context, n *store.Node) error {
	_, err := p.deps.BMC(n)
	return err
}

// SetPower starts the change.
func (p *power) SetPower(ctx context.Context, uuid, target string, timeout time.Duration) error {
	n, err := p.deps.Store.Node(ctx, uuid)
	if err != nil {
		return err
	}
	b, err := p.deps.BMC(n)
	if err != nil {
		return err
	}
	pw, ok := b.(bmc.Power)
	if !ok {
		return bmc.ErrUnsupported
	}
	action, err := bmc.ParseAction(target)
	if err != nil {
		return err
	}
	if timeout == 0 {
		timeout = p.limit
	}
	go p.change(pw, n.UUID, action, timeout)
	return nil
}

func (p *power) change(pw bmc.Power, uuid string, a bmc.Action, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	err := pw.SetPower(ctx, a)
	fact := event.Evidence{Hop: event.HopPower, Fact: string(a.Target()) + " confirmed", OK: err == nil}
	if err != nil {
		fact.Fact, fact.Detail = string(a)+" failed", map[string]any{"error": err.Error()}
	}
	p.deps.Record(p.ctx, uuid, fact)
	if _, uerr := p.deps.Store.UpdateNode(p.ctx, uuid, 0, func(n *store.Node) error {
		n.TargetPowerState = ""
		if err != nil {
			n.LastError = err.Error()
			return nil
		}
		n.PowerState = string(a.Target())
		return nil
	}); uerr != nil {
		p.log.Error("outcome of a power change is lost", "node", uuid, "error", uerr)
	}
}

// record keeps the power state of drivers that can't ask a BMC on the node.
type record struct {
	store store.Store
	node  string
}

// Load reads it.
func (r record) Load(ctx context.Context) (bmc.PowerState, error) {
	n, err := r.store.Node(ctx, r.node)
	if err != nil {
		return "", err
	}
	return bmc.PowerState(n.PowerState), nil
}

// Store writes it.
func (r record) Store(ctx context.Context, s bmc.PowerState) error {
	_, err := r.store.UpdateNode(ctx, r.node, 0, func(n *store.Node) error {
		n.PowerState = string(s)
		return nil
	})
	return err
}

// driverProperties tells a driver's driver_info keys.
func driverProperties(driver string) map[string]string {
	props, err := bmc.Properties(driver)
	if err != nil { // a driver without a BMC
		return nil
	}
	return props
}

// bootDevices opens the node's BMC as far as it can choose a boot device.
func (p *power) bootDevices(ctx context.Context, uuid string) (bmc.BootDevice, error) {
	n, err := p.deps.Store.Node(ctx, uuid)
	if err != nil {
		return nil, err
	}
	b, err := p.deps.BMC(n)
	if err != nil {
		return nil, err
	}
	bd, ok := b.(bmc.BootDevice)
	if !ok {
		return nil, bmc.ErrUnsupported
	}
	return bd, nil
}

// BootDevice asks the BMC what the machine boots from.
func (p *power) BootDevice(ctx context.Context, uuid string) (string, bool, error) {
	bd, err := p.bootDevices(ctx, uuid)
	if err != nil {
		return "", false, err
	}
	b, err := bd.BootDevice(ctx)
	return string(b.Device), b.Persistent, err
}

// SetBootDevice makes the machine boot from device.
func (p *power) SetBootDevice(ctx context.Context, uuid, device string, persistent bool) error {
	bd, err := p.bootDevices(ctx, uuid)
	if err != nil {
		return err
	}
	return bd.SetBootDevice(ctx, bmc.Device(device), persistent)
}

// SupportedBootDevices lists what the machine offers.
func (p *power) SupportedBootDevices(ctx context.Context, uuid string) ([]string, error) {
	bd, err := p.bootDevices(ctx, uuid)
	if err != nil {
		return nil, err
	}
	devices, err := bd.BootDevices(ctx)
	out := make([]string, len(devices))
	for i, d := range devices {
		out[i] = string(d)
	}
	return out, err
}
