package storetest

import (
	"context"
	"errors"
	"slices"

	"pgregory.net/rapid"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// allVerbs are the verbs of the table.
func allVerbs() []state.Verb {
	var out []state.Verb
	for _, e := range state.Edges {
		if !slices.Contains(out, e.On) {
			out = append(out, e.On)
		}
	}
	slices.Sort(out)
	return out
}

// allStates are the states of the table, sorted.
func allStates() []state.State {
	var out []state.State
	for s := range state.States {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

var tableTests = []test{
	{"every edge of the table leads where it says, and every other verb is refused", func(b *bench) {
		for _, from := range allStates() {
			for _, verb := range allVerbs() {
				n := &store.Node{ProvisionState: from}
				b.must(b.CreateNode(b.ctx, n))
				want, refusal := state.Next(from, verb)
				got, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: from, Verbs: []state.Verb{verb}})
				if refusal != nil {
					var refused *state.NotAcceptedError
					if !errors.As(err, &refused) || b.read(n.UUID).ProvisionState != from {
						b.Errorf("%q from %q: got %v, node %+v", verb, from, err, b.read(n.UUID))
					}
					continue
				}
				b.must(err)
				if got.ProvisionState != want.To {
					b.Errorf("%q from %q led to %q, want %q", verb, from, got.ProvisionState, want.To)
				}
				w, err := b.WorkOf(b.ctx, n.UUID)
				if queued := err == nil; queued != (want.Work != "") || queued && w.Kind != want.Work {
					b.Errorf("%q from %q queued %+v (%v), want %q", verb, from, w, err, want.Work)
				}
			}
		}
	}},
	{"whatever users and conductors do, the node follows the table and busy states have work", func(b *bench) {
		rapid.Check(b, func(t *rapid.T) { walkRandomly(b.Store, b.clock, t) })
	}},
}

// model is what the random walk expects of the store.
type model struct {
	state   state.State
	version int64
	kind    string // of the node's work, "" for none
	lease   *store.Lease
}

// walkRandomly drives one node by users' verbs, and by a conductor's verbs under
// a lease, and compares with the table after each.
func walkRandomly(s store.Store, clock *Clock, t *rapid.T) {
	ctx := context.Background()
	n := &store.Node{}
	if err := s.CreateNode(ctx, n); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.DeleteNode(ctx, n.UUID) }() // other runs claim any node's work
	m := &model{state: state.Enroll, version: 1}
	verbs := rapid.SampledFrom(allVerbs())
	t.Repeat(map[string]func(*rapid.T){
		"user": func(t *rapid.T) {
			accepted := state.Accepted(m.state)
			if len(accepted) == 0 {
				t.Skip("busy")
			}
			m.advance(ctx, s, n.UUID, rapid.SampledFrom(accepted).Draw(t, "verb"), nil, false, t)
		},
		"refused": func(t *rapid.T) {
			verb := verbs.Draw(t, "verb")
			if _, err := state.Next(m.state, verb); err == nil {
				t.Skip("accepted")
			}
			m.advance(ctx, s, n.UUID, verb, nil, false, t)
		},
		"conductor": func(t *rapid.T) {
			if m.lease == nil {
				t.Skip("nothing is leased")
			}
			verb := verbs.Draw(t, "verb")
			m.advance(ctx, s, n.UUID, verb, m.lease, verb == state.VerbWait || verb == state.VerbHold || verb == state.VerbResume, t)
		},
		"claim": func(t *rapid.T) {
			clock.Add(leaseTime) // whoever had it is dead
			w, err := s.ClaimWork(ctx, "c1", leaseTime)
			if m.kind == "" {
				if !errors.Is(err, store.ErrNotFound) {
					t.Fatalf("claimed %+v (%v) of a node without work", w, err)
				}
				return
			}
			if err != nil || w.NodeUUID != n.UUID || w.Kind != m.kind {
				t.Fatalf("claimed %+v (%v), want work %q", w, err, m.kind)
			}
			m.lease = w.Lease()
		},
		"": func(t *rapid.T) { m.check(ctx, s, n.UUID, t) },
	})
}

// advance makes a move on store and model.
func (m *model) advance(ctx context.Context, s store.Store, id string, verb state.Verb, l *store.Lease, park bool, t *rapid.T) {
	edge, refusal := state.Next(m.state, verb)
	_, err := s.Advance(ctx, store.Transition{Node: id, From: m.state, Version: m.version, Verbs: []state.Verb{verb}, Lease: l, Park: park})
	if (err == nil) != (refusal == nil) {
		t.Fatalf("%q from %q: got %v, the table says %v", verb, m.state, err, refusal)
	}
	if err != nil {
		return
	}
	m.state, m.version = edge.To, m.version+1
	switch failed := slices.Contains(state.Failed, edge.To); {
	case edge.Work != "":
		m.kind, m.lease = edge.Work, nil
	case park:
		m.lease = nil
	case l != nil, state.States[edge.To].Stable, failed:
		m.kind, m.lease = "", nil
	}
}

// check compares the store with the model.
func (m *model) check(ctx context.Context, s store.Store, id string, t *rapid.T) {
	n, err := s.Node(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if n.ProvisionState != m.state || n.Version != m.version {
		t.Fatalf("node is in %q, version %d; want %q, %d", n.ProvisionState, n.Version, m.state, m.version)
	}
	if held := m.lease != nil; held != (n.Reservation == "c1") {
		t.Fatalf("reservation %q while leased is %v", n.Reservation, held)
	}
	w, err := s.WorkOf(ctx, id)
	switch {
	case m.kind == "" && !errors.Is(err, store.ErrNotFound):
		t.Fatalf("state %q has work %+v (%v)", m.state, w, err)
	case m.kind != "" && (err != nil || w.Kind != m.kind):
		t.Fatalf("state %q has work %+v (%v), want %q", m.state, w, err, m.kind)
	}
}
