package storetest

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

var advanceTests = []test{
	{"a user's verb moves the node and queues its work in one step", func(b *bench) {
		n := b.node("a", state.Enroll)
		b.clock.Add(time.Minute)
		got, err := b.Advance(b.ctx, store.Transition{
			Node: n.UUID, From: state.Enroll, Version: 1, Verbs: []state.Verb{state.VerbManage}, Who: "ann", Payload: json.RawMessage(`{"x":1}`),
		})
		b.must(err)
		if got.ProvisionState != state.Verifying || got.TargetProvisionState != state.Manageable || !got.ProvisionUpdatedAt.Equal(b.clock.Now()) || got.Version != 2 {
			b.Errorf("moved to %+v", got)
		}
		if d := cmp.Diff(got, b.read("a")); d != "" {
			b.Errorf("(-returned +read):\n%s", d)
		}
		w, err := b.WorkOf(b.ctx, n.UUID)
		b.must(err)
		want := &store.Work{ID: w.ID, NodeUUID: n.UUID, Kind: state.WorkVerify, Payload: json.RawMessage(`{"x":1}`), RunAt: b.clock.Now(), Created: b.clock.Now()}
		if d := cmp.Diff(want, w); d != "" {
			b.Error(d)
		}
		h, err := b.Histories(b.ctx, n.UUID, 0)
		b.must(err)
		if len(h) != 1 || h[0].User != "ann" || h[0].Severity != "INFO" || !strings.Contains(h[0].Event, `"verifying"`) || !h[0].CreatedAt.Equal(b.clock.Now()) {
			b.Errorf("history %+v", h)
		}
	}},
	{"a state or version that changed meanwhile is stale", func(b *bench) {
		n := b.node("a", state.Manageable)
		_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Enroll, Verbs: []state.Verb{state.VerbManage}})
		b.want(err, store.ErrStale)
		_, err = b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Manageable, Version: 9, Verbs: []state.Verb{state.VerbInspect}})
		b.want(err, store.ErrStale)
		_, err = b.Advance(b.ctx, store.Transition{Node: "nobody", From: state.Enroll, Verbs: []state.Verb{state.VerbManage}})
		b.want(err, store.ErrNotFound)
		b.unmoved(n)
	}},
	{"of concurrent moves exactly one wins", func(b *bench) {
		n := b.node("a", state.Available)
		var won, stale atomic.Int32
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Available, Verbs: []state.Verb{state.VerbDeploy}})
				switch {
				case err == nil:
					won.Add(1)
				case errors.Is(err, store.ErrStale):
					stale.Add(1)
				default:
					b.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 || stale.Load() != 19 {
			b.Errorf("%d won, %d were stale", won.Load(), stale.Load())
		}
	}},
	{"several verbs are one move; one that is refused undoes all", func(b *bench) {
		n := b.node("a", state.CleanWait)
		_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.CleanWait, Verbs: []state.Verb{state.VerbResume, state.VerbDeploy},
			Set: func(n *store.Node) error { n.Name = "b"; return nil }})
		var refused *state.NotAcceptedError
		if !errors.As(err, &refused) || refused.From != state.Cleaning {
			b.Fatalf("got %v", err)
		}
		b.unmoved(n)
		got, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.CleanWait, Verbs: []state.Verb{state.VerbResume, state.VerbDone}})
		b.must(err)
		if got.ProvisionState != state.Available || got.TargetProvisionState != "" || got.Version != 2 {
			b.Errorf("moved to %+v", got)
		}
		h, err := b.Histories(b.ctx, n.UUID, 0)
		b.must(err)
		if len(h) != 1 {
			b.Errorf("%d rows of history for one move", len(h))
		}
	}},
	{"Set changes fields in the same move, and its error undoes it", func(b *bench) {
		n := b.node("a", state.Enroll)
		boom := errors.New("boom")
		t := store.Transition{Node: n.UUID, From: state.Enroll, Verbs: []state.Verb{state.VerbManage}}
		t.Set = func(n *store.Node) error { n.Description = "d"; return boom }
		_, err := b.Advance(b.ctx, t)
		b.want(err, boom)
		t.Set = func(n *store.Node) error { n.ProvisionState = state.Active; return nil }
		_, err = b.Advance(b.ctx, t)
		b.want(err, store.ErrInvalid)
		b.unmoved(n)
		t.Set = func(n *store.Node) error {
			if n.ProvisionState != state.Enroll {
				b.Errorf("Set sees state %q", n.ProvisionState)
			}
			n.Description, n.PowerState = "d", "power on"
			return nil
		}
		got, err := b.Advance(b.ctx, t)
		b.must(err)
		if got.Description != "d" || b.read("a").PowerState != "power on" {
			b.Errorf("got %+v", got)
		}
	}},
	{"the target is the table's, the caller's, or what the flow was begun with", func(b *bench) {
		n := b.node("a", state.Manageable)
		manageable := state.Manageable
		step := func(target *state.State, want state.State, verbs ...state.Verb) {
			b.Helper()
			got, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: b.read("a").ProvisionState, Verbs: verbs, Target: target})
			b.must(err)
			if got.TargetProvisionState != want {
				b.Errorf("after %v in state %q the target is %q, want %q", verbs, got.ProvisionState, got.TargetProvisionState, want)
			}
		}
		step(&manageable, "manageable", state.VerbClean) // manual cleaning
		step(nil, "manageable", state.VerbWait)
		step(nil, "manageable", state.VerbResume)
		step(nil, "manageable", state.VerbFail)
		step(nil, "", state.VerbManage)
		step(nil, "available", state.VerbProvide)
		step(nil, "", state.VerbDone)
		step(nil, "active", state.VerbDeploy)
		step(nil, "active", state.VerbWait)
		step(nil, "available", state.VerbDelete)
		step(nil, "available", state.VerbClean)
	}},
	{"a user's verb that starts work clears the last error; a failure's Set writes it to the node and its history", func(b *bench) {
		n := b.node("a", state.Enroll)
		b.verb(n, state.VerbManage)
		w := b.claim("c1")
		_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Verifying, Verbs: []state.Verb{state.VerbFail}, Lease: w.Lease(),
			Set: func(n *store.Node) error { n.LastError = "no power"; return nil }})
		b.must(err)
		if got := b.read("a").LastError; got != "no power" {
			b.Errorf("last error %q", got)
		}
		h, err := b.Histories(b.ctx, n.UUID, 1)
		b.must(err)
		if h[0].Severity != "ERROR" || h[0].Conductor != "c1" || !strings.Contains(h[0].Event, "no power") {
			b.Errorf("history %+v", h[0])
		}
		if got := b.verb(n, state.VerbManage); got.LastError != "" {
			b.Errorf("last error %q stayed", got.LastError)
		}
	}},
	{"a user's verb into a resting or failed state drops the work and fences who does it", func(b *bench) {
		n := b.node("a", state.Manageable)
		b.verb(n, state.VerbInspect)
		w := b.claim("c1")
		_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Inspecting, Verbs: []state.Verb{state.VerbWait}, Lease: w.Lease(), Park: true})
		b.must(err)
		w = b.claim("c1")
		b.verb(n, state.VerbAbort)
		b.noWork(n)
		b.want(b.SaveWork(b.ctx, w.Lease(), nil), store.ErrFenced)
		_, err = b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.InspectWait, Verbs: []state.Verb{state.VerbDone}, Lease: w.Lease()})
		b.want(err, store.ErrFenced)
	}},
	{"a user's verb that queues work replaces the work that was", func(b *bench) {
		n := b.node("a", state.Available)
		b.verb(n, state.VerbDeploy)
		old := b.claim("c1")
		_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Deploying, Verbs: []state.Verb{state.VerbWait}, Lease: old.Lease(), Park: true})
		b.must(err)
		old = b.claim("c1")
		b.verb(n, state.VerbDelete)
		w := b.claim("c2")
		if w.Kind != state.WorkUndeploy || w.Fence <= old.Fence || w.Attempt != 0 {
			b.Errorf("work is %+v; the old one had fence %d", w, old.Fence)
		}
		b.want(b.RenewWork(b.ctx, old.Lease(), leaseTime), store.ErrFenced)
	}},
	{"unhold keeps the work and makes it due", func(b *bench) {
		n := b.node("a", state.Available)
		b.verb(n, state.VerbDeploy)
		w := b.claim("c1")
		_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Deploying, Verbs: []state.Verb{state.VerbHold}, Lease: w.Lease(), Park: true,
			RunAt: b.clock.Now().Add(time.Hour)})
		b.must(err)
		b.verb(n, state.VerbUnhold)
		if again := b.claim("c1"); again.ID != w.ID {
			b.Errorf("claimed %+v", again)
		}
	}},
	{"under a lease a move ends the work, or hands over to the next", func(b *bench) {
		n := b.node("a", state.Active)
		b.verb(n, state.VerbDelete)
		w := b.claim("c1")
		_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Deleting, Verbs: []state.Verb{state.VerbClean}, Lease: w.Lease(), Payload: json.RawMessage(`{}`)})
		b.must(err)
		next := b.claim("c1")
		if next.Kind != state.WorkClean || next.ID == w.ID || string(next.Payload) != "{}" {
			b.Errorf("next work %+v", next)
		}
		_, err = b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Cleaning, Verbs: []state.Verb{state.VerbDone}, Lease: next.Lease()})
		b.must(err)
		b.noWork(n)
	}},
	{"nonsense is refused", func(b *bench) {
		n, other := b.node("a", state.Enroll), b.node("other", state.Manageable)
		b.verb(other, state.VerbInspect)
		l := b.claim("c1").Lease()
		for _, t := range []store.Transition{
			{Node: n.UUID, From: state.Enroll},
			{Node: n.UUID, From: state.Enroll, Verbs: []state.Verb{state.VerbManage}, Park: true},
			{Node: n.UUID, From: state.Enroll, Verbs: []state.Verb{state.VerbManage}, Lease: l},
		} {
			_, err := b.Advance(b.ctx, t)
			b.want(err, store.ErrInvalid)
		}
		b.unmoved(n)
	}},
	{"listeners hear of every commit in order, before the caller goes on, and of nothing that failed", func(b *bench) {
		var heard []string
		b.OnChange(func(n *store.Node, t *store.Transition) {
			if n == nil {
				heard = append(heard, "work")
				return
			}
			heard = append(heard, string(t.From)+">"+string(n.ProvisionState))
		})
		n := b.node("a", state.Manageable)
		b.verb(n, state.VerbInspect)
		_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Enroll, Verbs: []state.Verb{state.VerbManage}})
		b.want(err, store.ErrStale)
		w := b.claim("c1")
		b.must(b.ParkWork(b.ctx, w.Lease(), nil, b.clock.Now().Add(time.Hour), time.Time{}, 0, ""))
		b.must(b.WakeWork(b.ctx, n.UUID))
		if d := cmp.Diff([]string{"manageable>inspecting", "work", "work"}, heard); d != "" {
			b.Error(d)
		}
	}},
	{"a crash after a move keeps the move, its work and its history", func(b *bench) {
		n := b.node("a", state.Available)
		b.verb(n, state.VerbDeploy)
		w := b.claim("c1")
		b.must(b.SaveWork(b.ctx, w.Lease(), json.RawMessage(`{"step":3}`)))
		want := b.read("a")
		after := b.crash()
		got, err := after.Node(b.ctx, "a")
		b.must(err)
		if d := cmp.Diff(want, got); d != "" {
			b.Error(d)
		}
		b.must(after.ReleaseWork(b.ctx, "c1"))
		again, err := after.ClaimWork(b.ctx, "c1", leaseTime)
		b.must(err)
		if again.ID != w.ID || again.Fence <= w.Fence || string(again.Payload) != `{"step":3}` {
			b.Errorf("reclaimed %+v of %+v", again, w)
		}
		h, err := after.Histories(b.ctx, n.UUID, 0)
		b.must(err)
		if len(h) != 1 {
			b.Errorf("history %+v", h)
		}
	}},
}

// unmoved wants that the node is as it was created.
func (b *bench) unmoved(n *store.Node) {
	b.Helper()
	got := b.read(n.UUID)
	if got.ProvisionState != n.ProvisionState || got.Version != 1 || got.Name != n.Name || got.Description != n.Description {
		b.Errorf("the node changed: %+v", got)
	}
	h, err := b.Histories(b.ctx, n.UUID, 0)
	b.must(err)
	if len(h) != 0 {
		b.Errorf("it has history: %+v", h)
	}
	b.noWork(n)
}
