package orders

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/proto/agent"
)

type keeper struct{ id Identity }

func (k *keeper) Identity() Identity           { return k.id }
func (k *keeper) SetLastOrder(gen int64) error { k.id.LastOrder = gen; return nil }

// opener is a host on which every disk can be opened.
type opener struct {
	host.Host
	opened []string
}

func (o *opener) OpenWrite(_ context.Context, d agent.Disk) (host.Device, error) {
	o.opened = append(o.opened, d.Name)
	return nil, nil
}

const (
	node, boot, token, action = "n1", "b1", "secret", "erase_devices_metadata"
)

var (
	now    = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	serial = func(s string) agent.Disk { return agent.Disk{Name: "/dev/" + s, Serial: &s, Size: 100} }
)

func order(change func(*agent.Order)) *agent.Order {
	o := agent.Order{Node: node, BootID: boot, Disks: []agent.DiskIdentity{serial("A").Identity()}, Action: action, Generation: 7, Expiry: now.Add(time.Minute)}
	if change != nil {
		change(&o)
	}
	o = o.Sign(token)
	return &o
}

func TestOrders(t *testing.T) {
	forged := order(nil)
	forged.Disks = append(forged.Disks, serial("B").Identity())
	other := order(nil).Sign("another token")
	for name, c := range map[string]struct {
		order *agent.Order
		want  error
	}{
		"good":                {order(nil), nil},
		"missing":             {nil, ErrMissing},
		"a disk was added":    {forged, agent.ErrOrderForged},
		"another token":       {&other, agent.ErrOrderForged},
		"expired":             {order(func(o *agent.Order) { o.Expiry = now.Add(-time.Second) }), agent.ErrOrderExpired},
		"another node":        {order(func(o *agent.Order) { o.Node = "n2" }), agent.ErrOrderOther},
		"another boot":        {order(func(o *agent.Order) { o.BootID = "b0" }), agent.ErrOrderOther},
		"another step":        {order(func(o *agent.Order) { o.Action = "write_image" }), agent.ErrOrderOther},
		"an older generation": {order(func(o *agent.Order) { o.Generation = 5 }), ErrReplayed},
	} {
		k := &keeper{Identity{Node: node, Token: token, Required: true, LastOrder: 5}}
		b := NewBook(k, boot, func() time.Time { return now })
		_, err := b.Take(c.order, action)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if c.want != nil && k.id.LastOrder != 5 {
			t.Errorf("%s: a refused order was used up", name)
		}
	}
}

// An order works once, also after the agent crashed and was started again.
func TestReplay(t *testing.T) {
	k := &keeper{Identity{Node: node, Token: token, Required: true}}
	for i, want := range []error{nil, ErrReplayed} {
		b := NewBook(k, boot, func() time.Time { return now }) // a new agent
		if _, err := b.Take(order(nil), action); !errors.Is(err, want) {
			t.Fatalf("time %d: got %v", i, err)
		}
	}
}

// The permit is in front of the disks: a step that asks for another disk gets none.
func TestGuard(t *testing.T) {
	k := &keeper{Identity{Node: node, Token: token, Required: true}}
	p, err := NewBook(k, boot, func() time.Time { return now }).Take(order(nil), action)
	if err != nil {
		t.Fatal(err)
	}
	h := &opener{}
	g := p.Guard(h)
	if _, err := g.OpenWrite(t.Context(), serial("A")); err != nil {
		t.Fatal(err)
	}
	if _, err := g.OpenWrite(t.Context(), serial("B")); !errors.Is(err, ErrNotMine) {
		t.Fatalf("another disk: %v", err)
	}
	grown := serial("A")
	grown.Size++
	if _, err := g.OpenWrite(t.Context(), grown); !errors.Is(err, ErrNotMine) {
		t.Fatalf("another size: %v", err)
	}
	if _, err := (Permit{}).Guard(h).OpenWrite(t.Context(), serial("A")); !errors.Is(err, ErrReadOnly) {
		t.Fatalf("a step without a permit: %v", err)
	}
	if len(h.opened) != 1 {
		t.Fatalf("opened %v", h.opened)
	}
	if d, ordered, err := Select(g, []agent.Disk{serial("B"), serial("A")}); err != nil || !ordered || len(d) != 1 || d[0].Name != "/dev/A" {
		t.Fatalf("selected %v %t %v", d, ordered, err)
	}
	if _, _, err := Select(g, []agent.Disk{serial("B")}); !errors.Is(err, ErrGone) {
		t.Fatalf("the ordered disk is gone: %v", err)
	}
}

// A stock Ironic sends no orders: its token, which the API has checked, is enough.
func TestStockIronic(t *testing.T) {
	b := NewBook(&keeper{Identity{Node: node, Token: token}}, boot, func() time.Time { return now })
	p, err := b.Take(nil, action)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Allows(serial("B")); err != nil {
		t.Fatal(err)
	}
	if d, ordered, err := Select(p.Guard(&opener{}), []agent.Disk{serial("B")}); err != nil || ordered || len(d) != 1 {
		t.Fatalf("selected %v %t %v", d, ordered, err)
	}
}
