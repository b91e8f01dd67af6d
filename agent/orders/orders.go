// Package orders keeps the agent inert: a step may write to a disk only with an
// order that the conductor signed, once, and only to the disks it names. Under
// a stock Ironic, which sends none, the agent token stands in for them.
package orders

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/proto/agent"
)

// Errors of Take and of the guarded host.
var (
	ErrMissing  = errors.New("order: missing; this conductor must send one with every destructive step")
	ErrReplayed = errors.New("order: already used")
	ErrNotMine  = errors.New("order: does not name this disk")
	ErrReadOnly = errors.New("this step may not write to disks")
	ErrGone     = errors.New("order: its disk is gone")
)

// Identity is who the agent is for its conductor, now.
type Identity struct {
	Node, Token string
	// Required: the conductor sends orders.
	Required bool
	// LastOrder is the generation of the last order taken.
	LastOrder int64
}

// Keeper holds the identity beyond the agent's own life: it must survive a crash
// of the agent within one boot, or a used order would count as new.
type Keeper interface {
	Identity() Identity
	SetLastOrder(generation int64) error
}

// Book checks orders and remembers which were used.
type Book struct {
	keeper Keeper
	bootID string
	now    func() time.Time
	mu     sync.Mutex
}

// NewBook makes a Book for the running boot.
func NewBook(k Keeper, bootID string, now func() time.Time) *Book {
	return &Book{keeper: k, bootID: bootID, now: now}
}

// Take checks the order of a destructive step and uses it up.
func (b *Book) Take(o *agent.Order, action string) (Permit, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := b.keeper.Identity()
	if o == nil {
		if id.Required {
			return Permit{}, fmt.Errorf("step %s: %w", action, ErrMissing)
		}
		return Permit{write: true, any: true}, nil
	}
	if id.Token == "" {
		return Permit{}, fmt.Errorf("step %s: this agent has no token yet: %w", action, agent.ErrOrderForged)
	}
	if err := o.Check(id.Token, id.Node, b.bootID, action, b.now()); err != nil {
		return Permit{}, fmt.Errorf("step %s: %w", action, err)
	}
	if o.Generation <= id.LastOrder {
		return Permit{}, fmt.Errorf("step %s: %w (generation %d, last %d)", action, ErrReplayed, o.Generation, id.LastOrder)
	}
	if err := b.keeper.SetLastOrder(o.Generation); err != nil {
		return Permit{}, fmt.Errorf("step %s: the order can't be noted as used: %w", action, err)
	}
	return Permit{write: true, disks: o.Disks}, nil
}

// Permit is what a step may write to. The zero Permit allows nothing.
type Permit struct {
	write, any bool
	disks      []agent.DiskIdentity
}

// Allows says whether d may be written.
func (p Permit) Allows(d agent.Disk) error {
	if !p.write {
		return fmt.Errorf("disk %s: %w", d.Identity(), ErrReadOnly)
	}
	if p.any {
		return nil
	}
	for _, ordered := range p.disks {
		if ordered.Matches(d.Identity()) {
			return nil
		}
	}
	return fmt.Errorf("disk %s: %w", d.Identity(), ErrNotMine)
}

// Guard gives a step the machine with the permit in front of every write. The
// disk that the permit allows is the disk whose identity the host checks once
// more when it is opened.
func (p Permit) Guard(h host.Host) host.Host { return guarded{h, p} }

type guarded struct {
	host.Host
	permit Permit
}

// OpenWrite implements host.Host.
func (g guarded) OpenWrite(ctx context.Context, d agent.Disk) (host.Device, error) {
	if err := g.permit.Allows(d); err != nil {
		return nil, err
	}
	return g.Host.OpenWrite(ctx, d)
}

// Select gives the disks that a step which was given h is to treat: with an
// order the ordered ones, each of which must be there; without one (ok is then
// false) all of them.
func Select(h host.Host, found []agent.Disk) (disks []agent.Disk, ordered bool, err error) {
	g, ok := h.(guarded)
	if !ok || g.permit.any {
		return found, false, nil
	}
	for _, want := range g.permit.disks {
		i := slices.IndexFunc(found, func(d agent.Disk) bool { return want.Matches(d.Identity()) })
		if i < 0 {
			return nil, true, fmt.Errorf("disk %s: %w: it is ordered and not there; inspect the node again", want, ErrGone)
		}
		disks = append(disks, found[i])
	}
	return disks, true, nil
}
