package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

// inspect creates a node with work.
func (b *bench) inspect(name string) *store.Node {
	b.Helper()
	n := b.node(name, state.Manageable)
	b.verb(n, state.VerbInspect)
	return n
}

// idle wants that no work is due.
func (b *bench) idle() {
	b.Helper()
	if w, err := b.ClaimWork(b.ctx, "idle", leaseTime); !errors.Is(err, store.ErrNotFound) {
		b.Fatalf("claimed %+v (%v), want nothing", w, err)
	}
}

// next wants that NextWork says when.
func (b *bench) next(want time.Time) {
	b.Helper()
	got, err := b.NextWork(b.ctx)
	b.must(err)
	if !got.Equal(want) {
		b.Fatalf("next work at %v, want %v", got, want)
	}
}

var workTests = []test{
	{"a claim leases the work that is due longest, to one owner, and shows as reservation", func(b *bench) {
		b.idle()
		b.next(time.Time{})
		first := b.inspect("a")
		b.clock.Add(time.Second)
		b.inspect("b")
		w := b.claim("c1")
		if w.NodeUUID != first.UUID || w.Owner != "c1" || !w.LeaseEnd.Equal(b.clock.Now().Add(leaseTime)) || w.Fence != 1 {
			b.Errorf("claimed %+v", w)
		}
		if got := b.read("a").Reservation; got != "c1" {
			b.Errorf("reservation %q", got)
		}
		if nodes, err := b.Nodes(b.ctx, store.NodeFilter{}); err != nil || nodes[0].Reservation != "c1" || nodes[1].Reservation != "" {
			b.Errorf("listed %v, %v (%v)", nodes[0].Reservation, nodes[1].Reservation, err)
		}
		if b.claim("c2").NodeUUID == first.UUID {
			b.Error("two owners have one work")
		}
		b.idle()
		b.next(w.LeaseEnd)
	}},
	{"of concurrent claims each work goes to one", func(b *bench) {
		for i := range 10 {
			b.inspect(fmt.Sprint("n", i))
		}
		var mu sync.Mutex
		got := map[int64]int{}
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				w, err := b.ClaimWork(b.ctx, fmt.Sprint("c", i), leaseTime)
				if errors.Is(err, store.ErrNotFound) {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					b.Error(err)
					return
				}
				got[w.ID]++
			})
		}
		wg.Wait()
		for id, n := range got {
			if n != 1 {
				b.Errorf("work %d was claimed %d times", id, n)
			}
		}
		if len(got) != 10 {
			b.Errorf("%d of 10 were claimed", len(got))
		}
	}},
	{"a lease that ended is taken by another, and the first is fenced from every write", func(b *bench) {
		n := b.inspect("a")
		old := b.claim("c1")
		b.clock.Add(leaseTime)
		if got := b.read("a").Reservation; got != "" {
			b.Errorf("reservation %q after the lease's end", got)
		}
		w := b.claim("c2")
		if w.ID != old.ID || w.Fence <= old.Fence {
			b.Errorf("claimed %+v after %+v", w, old)
		}
		l := old.Lease()
		b.want(b.RenewWork(b.ctx, l, leaseTime), store.ErrFenced)
		b.want(b.SaveWork(b.ctx, l, nil), store.ErrFenced)
		b.want(b.ParkWork(b.ctx, l, nil, time.Time{}, time.Time{}, 0, ""), store.ErrFenced)
		_, err := b.UpdateLeased(b.ctx, l, func(n *store.Node) error { n.Name = "x"; return nil })
		b.want(err, store.ErrFenced)
		_, err = b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Inspecting, Verbs: []state.Verb{state.VerbDone}, Lease: l})
		b.want(err, store.ErrFenced)
		b.must(b.SaveWork(b.ctx, w.Lease(), json.RawMessage(`1`)))
	}},
	{"a lease that ended and that nobody took is still good", func(b *bench) {
		b.inspect("a")
		w := b.claim("c1")
		b.clock.Add(24 * time.Hour)
		b.must(b.RenewWork(b.ctx, w.Lease(), leaseTime))
		b.idle()
		b.next(b.clock.Now().Add(leaseTime))
	}},
	{"parked work waits for its time and keeps what it was parked with", func(b *bench) {
		n := b.inspect("a")
		w := b.claim("c1")
		at, deadline := b.clock.Now().Add(time.Minute), b.clock.Now().Add(time.Hour)
		b.must(b.SaveWork(b.ctx, w.Lease(), json.RawMessage(`{"a":1}`)))
		b.must(b.ParkWork(b.ctx, w.Lease(), nil, at, deadline, 3, "waits for c"))
		b.want(b.SaveWork(b.ctx, w.Lease(), nil), store.ErrFenced)
		b.idle()
		b.next(at)
		got, err := b.WorkOf(b.ctx, n.UUID)
		b.must(err)
		if string(got.Payload) != `{"a":1}` || !got.Deadline.Equal(deadline) || got.Attempt != 3 || got.Cause != "waits for c" || got.Owner != "" {
			b.Errorf("parked as %+v", got)
		}
		b.clock.Add(time.Minute)
		w = b.claim("c2")
		if w.Attempt != 3 || !w.Deadline.Equal(deadline) {
			b.Errorf("claimed %+v", w)
		}
		b.must(b.ParkWork(b.ctx, w.Lease(), json.RawMessage(`{}`), time.Time{}, time.Time{}, 0, ""))
		if w = b.claim("c2"); string(w.Payload) != `{}` || !w.Deadline.IsZero() || w.Attempt != 0 {
			b.Errorf("claimed %+v", w)
		}
	}},
	{"a wake-up makes parked work due, and is not lost on work that runs", func(b *bench) {
		n := b.inspect("a")
		far := b.clock.Now().Add(time.Hour)
		w := b.claim("c1")
		b.must(b.ParkWork(b.ctx, w.Lease(), nil, far, far, 0, ""))
		b.must(b.WakeWork(b.ctx, n.UUID))
		w = b.claim("c1")
		b.must(b.WakeWork(b.ctx, n.UUID))
		b.idle() // it runs
		b.must(b.ParkWork(b.ctx, w.Lease(), nil, far, far, 0, ""))
		w = b.claim("c1")
		b.must(b.ParkWork(b.ctx, w.Lease(), nil, far, far, 0, ""))
		b.idle() // the wake-up counted once
		b.must(b.WakeWork(b.ctx, "nobody"))
		b.next(far)
	}},
	{"waiting by a move parks the work in the same step, and a wake-up meanwhile counts", func(b *bench) {
		n := b.inspect("a")
		w := b.claim("c1")
		b.must(b.WakeWork(b.ctx, n.UUID))
		deadline := b.clock.Now().Add(time.Hour)
		got, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Inspecting, Verbs: []state.Verb{state.VerbWait}, Lease: w.Lease(),
			Park: true, RunAt: deadline, Deadline: deadline, Cause: "the agent's first call", Payload: json.RawMessage(`{"b":2}`)})
		b.must(err)
		if got.ProvisionState != state.InspectWait || got.Reservation != "" {
			b.Errorf("moved to %+v", got)
		}
		again := b.claim("c1")
		if again.ID != w.ID || string(again.Payload) != `{"b":2}` || again.Cause != "the agent's first call" || !again.Deadline.Equal(deadline) {
			b.Errorf("parked as %+v", again)
		}
	}},
	{"a conductor that starts again gets at once what it held when it died, and nobody else's", func(b *bench) {
		b.inspect("a")
		b.inspect("b")
		mine, other := b.claim("c1"), b.claim("c2")
		b.must(b.ReleaseWork(b.ctx, "c1"))
		b.want(b.SaveWork(b.ctx, mine.Lease(), nil), store.ErrFenced)
		b.must(b.SaveWork(b.ctx, other.Lease(), nil))
		if w := b.claim("c1"); w.ID != mine.ID || w.Fence <= mine.Fence {
			b.Errorf("claimed %+v", w)
		}
	}},
	{"a delayed start is not due before its time", func(b *bench) {
		n := b.node("a", state.Manageable)
		at := b.clock.Now().Add(time.Minute)
		_, err := b.Advance(b.ctx, store.Transition{Node: n.UUID, From: state.Manageable, Verbs: []state.Verb{state.VerbInspect}, RunAt: at})
		b.must(err)
		b.idle()
		b.next(at)
	}},
	{"changes under the lease reach the node", func(b *bench) {
		b.inspect("a")
		w := b.claim("c1")
		got, err := b.UpdateLeased(b.ctx, w.Lease(), func(n *store.Node) error { n.PowerState = "power on"; return nil })
		b.must(err)
		if got.PowerState != "power on" || b.read("a").PowerState != "power on" || got.Reservation != "c1" {
			b.Errorf("got %+v", got)
		}
	}},
	{"a claim needs an owner", func(b *bench) {
		_, err := b.ClaimWork(b.ctx, "", leaseTime)
		b.want(err, store.ErrInvalid)
	}},
}

var bootTests = []test{
	{"a nonce is spent once, also after a crash", func(b *bench) {
		n := b.node("a", state.Enroll)
		b.must(b.CreateBoot(b.ctx, &store.Boot{Nonce: "n1", Path: "p1", NodeUUID: n.UUID, MAC: "52:54:00:00:00:01"}))
		got, err := b.BootByPath(b.ctx, "p1")
		b.must(err)
		want := store.Boot{Path: "p1", NodeUUID: n.UUID, MAC: "52:54:00:00:00:01", Created: b.clock.Now()}
		if *got != want {
			b.Errorf("got %+v, want %+v", *got, want)
		}
		got, err = b.SpendNonce(b.ctx, "n1", b.clock.Now())
		b.must(err)
		if got.NodeUUID != n.UUID || !got.Used.Equal(b.clock.Now()) || got.Nonce != "n1" {
			b.Errorf("spent %+v", *got)
		}
		for _, s := range []store.Store{b.Store, b.crash()} {
			_, err = s.SpendNonce(b.ctx, "n1", b.clock.Now())
			b.want(err, store.ErrExists)
		}
		_, err = b.SpendNonce(b.ctx, "n2", b.clock.Now())
		b.want(err, store.ErrNotFound)
		_, err = b.BootByPath(b.ctx, "n1")
		b.want(err, store.ErrNotFound)
	}},
	{"of concurrent claimants of a nonce one wins", func(b *bench) {
		n := b.node("a", state.Enroll)
		b.must(b.CreateBoot(b.ctx, &store.Boot{Nonce: "n1", Path: "p1", NodeUUID: n.UUID}))
		errs := make(chan error, 10)
		var wg sync.WaitGroup
		for range cap(errs) {
			wg.Go(func() {
				_, err := b.SpendNonce(b.ctx, "n1", b.clock.Now())
				errs <- err
			})
		}
		wg.Wait()
		close(errs)
		won := 0
		for err := range errs {
			if err == nil {
				won++
			} else {
				b.want(err, store.ErrExists)
			}
		}
		if won != 1 {
			b.Errorf("%d won", won)
		}
	}},
	{"a boot needs nonce, path and node; old ones of a node are forgotten", func(b *bench) {
		n := b.node("a", state.Enroll)
		b.want(b.CreateBoot(b.ctx, &store.Boot{Path: "p", NodeUUID: n.UUID}), store.ErrInvalid)
		b.want(b.CreateBoot(b.ctx, &store.Boot{Nonce: "n", Path: "p", NodeUUID: "nobody"}), store.ErrNotFound)
		for i := range 20 {
			b.must(b.CreateBoot(b.ctx, &store.Boot{Nonce: fmt.Sprint("n", i), Path: fmt.Sprint("p", i), NodeUUID: n.UUID}))
		}
		_, err := b.BootByPath(b.ctx, "p0")
		b.want(err, store.ErrNotFound)
		_, err = b.BootByPath(b.ctx, "p19")
		b.must(err)
	}},
}

var trailTests = []test{
	{"the newest evidence of each hop since a time, oldest first", func(b *bench) {
		n := b.node("a", state.Enroll)
		start := b.clock.Now()
		for _, e := range []event.Evidence{
			{Hop: event.HopPower, Fact: "powered on", OK: true},
			{Hop: event.HopDHCP, Fact: "offer sent", OK: true},
			{Hop: event.HopHTTP, Fact: "kernel served", OK: true, Detail: map[string]any{"bytes": 7.0}},
			{Hop: event.HopDHCP, Fact: "ack sent", OK: true},
		} {
			b.clock.Add(time.Second)
			b.must(b.AddEvidence(b.ctx, &store.Evidence{NodeUUID: n.UUID, MAC: "52:54:00:00:00:01", Evidence: e}))
		}
		for since, want := range map[time.Time]string{
			{}: "powered on kernel served ack sent ", start.Add(3 * time.Second): "kernel served ack sent ", start.Add(time.Minute): "",
		} {
			got, err := b.LastEvidence(b.ctx, n.UUID, since)
			b.must(err)
			var facts string
			for _, e := range got {
				facts += e.Fact + " "
				if e.Hop == event.HopHTTP && e.Detail["bytes"] != 7.0 || e.NodeUUID != n.UUID || e.MAC == "" || !e.OK || e.ID == 0 {
					b.Errorf("evidence %+v", e)
				}
			}
			if facts != want {
				b.Errorf("since %v: %q, want %q", since, facts, want)
			}
		}
	}},
	{"evidence of a machine without a node is kept, of a deleted node refused", func(b *bench) {
		b.must(b.AddEvidence(b.ctx, &store.Evidence{MAC: "52:54:00:00:00:01", Evidence: event.Evidence{Hop: event.HopDHCP, Fact: "discover seen"}}))
		err := b.AddEvidence(b.ctx, &store.Evidence{NodeUUID: "gone", Evidence: event.Evidence{Hop: event.HopDHCP, Fact: "offer sent"}})
		b.want(err, store.ErrNotFound)
	}},
	{"history comes newest first, bounded by the limit and by what is kept", func(b *bench) {
		n := b.node("a", state.Enroll)
		for i := range 310 {
			b.must(b.AddHistory(b.ctx, &store.History{NodeUUID: n.UUID, Event: fmt.Sprint("e", i), Severity: "INFO", EventType: "t", Conductor: "c", User: "u"}))
		}
		all, err := b.Histories(b.ctx, n.UUID, 0)
		b.must(err)
		two, err := b.Histories(b.ctx, n.UUID, 2)
		b.must(err)
		if len(all) != 300 || len(two) != 2 || two[0].Event != "e309" || two[1].Event != "e308" || two[0].UUID == "" {
			b.Errorf("%d rows; newest two %+v", len(all), two)
		}
		b.want(b.AddHistory(b.ctx, &store.History{NodeUUID: "gone"}), store.ErrNotFound)
	}},
}
