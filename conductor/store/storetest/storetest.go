// Package storetest is the behaviour that every driver of package store has:
// one suite, run by each driver's tests.
package storetest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// Opener opens an empty store that asks now for the time. The crash that comes
// with it opens a second store on what the disk would hold if the process died
// at that moment. Both are closed by the opener's t.Cleanup.
type Opener func(t testing.TB, now func() time.Time) (s store.Store, crash func() store.Store)

// Clock is a time that tests set.
type Clock struct {
	mu sync.Mutex
	t  time.Time
}

// NewClock starts on a fixed day.
func NewClock() *Clock { return &Clock{t: time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)} }

// Now is the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

// Add moves the time.
func (c *Clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// bench is a store under test.
type bench struct {
	testing.TB
	store.Store
	ctx   context.Context
	clock *Clock
	crash func() store.Store
}

// Run runs the suite.
func Run(t *testing.T, open Opener) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"nodes", nodeTests}, {"lists", listTests}, {"ports", portTests}, {"advance", advanceTests},
		{"table", tableTests}, {"work", workTests}, {"boots", bootTests}, {"trail", trailTests},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, x := range group.tests {
				t.Run(x.name, func(t *testing.T) {
					clock := NewClock()
					s, crash := open(t, clock.Now)
					x.run(&bench{t, s, t.Context(), clock, crash})
				})
			}
		})
	}
}

type test struct {
	name string
	run  func(b *bench)
}

// must ends the test on an error.
func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// want ends the test unless err is target.
func (b *bench) want(err, target error) {
	b.Helper()
	if !errors.Is(err, target) {
		b.Fatalf("got error %v, want %v", err, target)
	}
}

// node creates a node in a state.
func (b *bench) node(name string, in state.State) *store.Node {
	b.Helper()
	n := &store.Node{Name: name, Driver: "fake-hardware", ProvisionState: in, TargetProvisionState: state.States[in].Target}
	b.must(b.CreateNode(b.ctx, n))
	return n
}

// read reads a node.
func (b *bench) read(ident string) *store.Node {
	b.Helper()
	n, err := b.Node(b.ctx, ident)
	b.must(err)
	return n
}

// verb is a user's verb.
func (b *bench) verb(n *store.Node, v state.Verb) *store.Node {
	b.Helper()
	out, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: b.read(n.UUID).ProvisionState, Verbs: []state.Verb{v}, Who: "ann"})
	b.must(err)
	return out
}

const leaseTime = 30 * time.Second

// claim claims the work that is due.
func (b *bench) claim(owner string) *store.Work {
	b.Helper()
	w, err := b.ClaimWork(b.ctx, owner, leaseTime)
	b.must(err)
	return w
}

// noWork wants that the node has none.
func (b *bench) noWork(n *store.Node) {
	b.Helper()
	if w, err := b.WorkOf(b.ctx, n.UUID); !errors.Is(err, store.ErrNotFound) {
		b.Fatalf("node in state %q has work %+v (error %v), want none", b.read(n.UUID).ProvisionState, w, err)
	}
}
