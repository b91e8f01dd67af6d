package work_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
)

func TestALongHandlerKeepsItsLease(t *testing.T) {
	inBubble(t, func(context.Context, *work.Job) work.Result {
		time.Sleep(10 * work.DefaultLease)
		return work.Done{}
	}, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		for range 9 {
			sleep(work.DefaultLease)
			if got := b.node(id).Reservation; got != "c1" {
				b.Fatalf("reservation %q", got)
			}
			if _, err := b.ClaimWork(b.Context(), "c2", time.Second); !errors.Is(err, store.ErrNotFound) {
				b.Fatalf("another could claim it: %v", err)
			}
		}
		sleep(2 * work.DefaultLease)
		b.in(id, state.Active)
	})
}

// cancelled is a handler that runs until its context ends, and then claims success.
func cancelled(cause *error) work.Handler {
	return func(ctx context.Context, _ *work.Job) work.Result {
		<-ctx.Done()
		*cause = context.Cause(ctx)
		return work.Done{}
	}
}

func TestAnAbortCancelsTheHandlerAtOnceAndItsResultIsDroppedQuietly(t *testing.T) {
	var cause error
	var runs atomic.Int32
	inBubble(t, func(ctx context.Context, j *work.Job) work.Result {
		if runs.Add(1) == 1 {
			return work.Wait{For: "the first call"}
		}
		return cancelled(&cause)(ctx, j)
	}, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.wake(id)
		start := time.Now()
		b.verb(id, state.VerbAbort)
		if !errors.Is(cause, store.ErrFenced) || !time.Now().Equal(start) {
			b.Errorf("cancelled by %v after %v", cause, time.Since(start))
		}
		b.in(id, state.DeployFailed)
		if got := b.log.String(); got != "" {
			b.Errorf("log: %s", got)
		}
	})
}

func TestADeletedNodeEndsItsWorkQuietly(t *testing.T) {
	var cause error
	inBubble(t, cancelled(&cause), func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.must(b.DeleteNode(b.Context(), id))
		sleep(work.DefaultLease)
		if !errors.Is(cause, store.ErrFenced) {
			b.Errorf("cancelled by %v", cause)
		}
		if got := b.log.String(); got != "" {
			b.Errorf("log: %s", got)
		}
	})
}

func TestAStoppedConductorGivesInterruptedWorkBackAndTheNextTakesItUp(t *testing.T) {
	resumed := make(chan json.RawMessage, 1)
	inBubble(t, func(ctx context.Context, j *work.Job) work.Result {
		if err := j.Save(ctx, "half way"); err != nil {
			return work.Fail{Cause: err}
		}
		<-ctx.Done()
		return work.Fail{Cause: ctx.Err()}
	}, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.quit()
		b.in(id, state.Deploying)
		b.start("c2", func(_ context.Context, j *work.Job) work.Result {
			resumed <- j.Payload
			if j.Attempt != 0 {
				b.Errorf("a stop counted as attempt %d", j.Attempt)
			}
			return work.Done{}
		})
		b.in(id, state.Active)
		if got := string(<-resumed); got != `"half way"` {
			b.Errorf("resumed with %s", got)
		}
	})
}

func TestAConductorThatDiedTakesItsWorkUpAtOnce(t *testing.T) {
	s := inTurn(work.Done{})
	inBubble(t, s.handle, func(b *bench) {
		b.quit()
		id := b.begin(state.Available, state.VerbDeploy)
		_, err := b.ClaimWork(b.Context(), "c1", time.Hour) // and died with it
		b.must(err)
		start := time.Now()
		b.start("c1", s.handle)
		b.in(id, state.Active)
		if !time.Now().Equal(start) {
			b.Errorf("it took %v", time.Since(start))
		}
	})
}

func TestWorkOfADeadConductorIsTakenWhenItsLeaseEnds(t *testing.T) {
	s := inTurn(work.Done{})
	inBubble(t, s.handle, func(b *bench) {
		b.quit()
		id := b.begin(state.Available, state.VerbDeploy)
		_, err := b.ClaimWork(b.Context(), "dead", work.DefaultLease)
		b.must(err)
		b.start("c1", s.handle)
		sleep(work.DefaultLease - time.Second)
		b.in(id, state.Deploying)
		sleep(time.Second)
		b.in(id, state.Active)
	})
}

func TestAHeartbeatDuringARunIsNotLost(t *testing.T) {
	var runs atomic.Int32
	inBubble(t, func(context.Context, *work.Job) work.Result {
		first := runs.Add(1) == 1
		time.Sleep(10 * time.Second)
		if first {
			return work.Wait{For: "the agent"}
		}
		return work.Done{}
	}, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		sleep(5 * time.Second)
		b.wake(id)
		sleep(15 * time.Second)
		b.in(id, state.Active)
	})
}

func TestWorkersBoundWhatRunsAtOnceAndWaitingTakesNone(t *testing.T) {
	var mu sync.Mutex
	now, most := 0, 0
	inBubble(t, func(_ context.Context, j *work.Job) work.Result {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		time.Sleep(time.Second)
		mu.Lock()
		now--
		mu.Unlock()
		if j.Payload == nil {
			return work.Wait{For: "the agent", Payload: 1}
		}
		return work.Done{}
	}, func(b *bench) {
		var ids []string
		for range 3 * work.DefaultWorkers {
			ids = append(ids, b.begin(state.Available, state.VerbDeploy))
		}
		sleep(10 * time.Second)
		for _, id := range ids {
			b.in(id, state.WaitCallback)
			b.wake(id)
		}
		sleep(10 * time.Second)
		for _, id := range ids {
			b.in(id, state.Active)
		}
		if most != work.DefaultWorkers {
			b.Errorf("%d ran at once, want %d", most, work.DefaultWorkers)
		}
	})
}

func TestAnIdleEngineDoesNothing(t *testing.T) {
	s := inTurn(work.Done{})
	inBubble(t, s.handle, func(b *bench) {
		counting := &counter{Store: b.Store}
		b.quit()
		b.Store = counting
		b.start("c1", s.handle)
		before := counting.claims.Load()
		sleep(24 * time.Hour)
		if after := counting.claims.Load(); after != before {
			b.Errorf("%d claims in an idle day", after-before)
		}
	})
}

// counter counts claims.
type counter struct {
	store.Store
	claims atomic.Int32
}

func (c *counter) ClaimWork(ctx context.Context, owner string, lease time.Duration) (*store.Work, error) {
	c.claims.Add(1)
	return c.Store.ClaimWork(ctx, owner, lease)
}

func TestUpdateRefreshesTheJobsNode(t *testing.T) {
	inBubble(t, func(ctx context.Context, j *work.Job) work.Result {
		err := j.Update(ctx, func(n *store.Node) error { n.PowerState = "power on"; return nil })
		if err != nil || j.Node.PowerState != "power on" {
			return work.Fail{Cause: fmt.Errorf("node %+v: %w", j.Node, err)}
		}
		return work.Done{}
	}, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.in(id, state.Active)
		if got := b.node(id).PowerState; got != "power on" {
			b.Errorf("power state %q", got)
		}
	})
}

func TestAnEngineNeedsAnOwner(t *testing.T) {
	if err := (&work.Engine{}).Run(t.Context()); err == nil {
		t.Error("it ran")
	}
}
