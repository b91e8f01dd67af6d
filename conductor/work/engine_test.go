package work_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/store/sqlite"
	"github.com/slipway-metal/slipway/conductor/work"
)

// bench is an engine on a real store in a bubble of fake time.
type bench struct {
	*testing.T
	store.Store
	engine *work.Engine
	log    *lines
	stop   context.CancelFunc
	ended  chan error

	mu    sync.Mutex
	moves []string // from>to of every Advance
}

// lines is a log that tests read.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// inBubble runs a test in fake time with a store and an engine that runs h for
// every kind of work.
func inBubble(t *testing.T, h work.Handler, test func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t}
		s, err := sqlite.Open(filepath.Join(t.TempDir(), "slipway.db"), bytes.Repeat([]byte{7}, 32), time.Now)
		b.must(err)
		b.Store = s
		s.OnChange(func(n *store.Node, tr *store.Transition) {
			if n != nil {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.moves = append(b.moves, fmt.Sprintf("%s>%s", tr.From, n.ProvisionState))
			}
		})
		b.start("c1", h)
		test(b)
		b.quit()
		b.must(s.Close())
	})
}

func (b *bench) start(owner string, h work.Handler) {
	b.log = &lines{}
	handlers := map[string]work.Handler{}
	for _, kind := range []string{state.WorkInspect, state.WorkDeploy, state.WorkClean, state.WorkUndeploy, state.WorkVerify} {
		handlers[kind] = h
	}
	b.engine = &work.Engine{Store: b.Store, Owner: owner, Handlers: handlers, Log: slog.New(slog.NewTextHandler(b.log, nil))}
	ctx, stop := context.WithCancel(b.Context())
	b.stop, b.ended = stop, make(chan error, 1)
	go func() { b.ended <- b.engine.Run(ctx) }()
	synctest.Wait()
}

func (b *bench) quit() {
	b.Helper()
	b.stop()
	b.must(<-b.ended)
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// begin creates a node in a state and gives it a user's verb.
func (b *bench) begin(from state.State, v state.Verb) string {
	b.Helper()
	n := &store.Node{ProvisionState: from}
	b.must(b.CreateNode(b.Context(), n))
	b.verb(n.UUID, v)
	return n.UUID
}

func (b *bench) verb(id string, v state.Verb) {
	b.Helper()
	_, err := b.Advance(b.Context(), store.Transition{Node: id, From: b.node(id).ProvisionState, Verbs: []state.Verb{v}, Who: "ann"})
	b.must(err)
	synctest.Wait()
}

func (b *bench) node(id string) *store.Node {
	b.Helper()
	n, err := b.Node(b.Context(), id)
	b.must(err)
	return n
}

func (b *bench) wake(id string) {
	b.Helper()
	b.must(b.WakeWork(b.Context(), id))
	synctest.Wait()
}

// in wants that the node is in a state.
func (b *bench) in(id string, want state.State) {
	b.Helper()
	if n := b.node(id); n.ProvisionState != want {
		b.Fatalf("node is in %q (%s), want %q", n.ProvisionState, n.LastError, want)
	}
}

// moved wants exactly these moves.
func (b *bench) moved(want ...string) {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := cmp.Diff(want, b.moves); d != "" {
		b.Fatalf("moves (-want +got):\n%s", d)
	}
}

// sleep lets fake time pass until everything that is due has happened.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// script is a handler that returns results in turn, the last one again and
// again, and keeps the jobs it saw and when.
type script struct {
	mu      sync.Mutex
	results []func() work.Result
	jobs    []work.Job
	at      []time.Time
}

// inTurn is a script of results that do not depend on the time.
func inTurn(results ...work.Result) *script {
	s := &script{}
	for _, r := range results {
		s.results = append(s.results, func() work.Result { return r })
	}
	return s
}

func (s *script) handle(_ context.Context, j *work.Job) work.Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs, s.at = append(s.jobs, *j), append(s.at, time.Now())
	return s.results[min(len(s.jobs), len(s.results))-1]()
}

// seen are the jobs so far, and how long after the first each came.
func (s *script) seen() ([]work.Job, []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var after []time.Duration
	for _, at := range s.at {
		after = append(after, at.Sub(s.at[0]))
	}
	return slices.Clone(s.jobs), after
}

func TestDoneEndsTheWorkByTheDoneVerb(t *testing.T) {
	set := func(n *store.Node) error { n.PowerState = "power off"; return nil }
	s := inTurn(work.Done{Set: set})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Manageable, state.VerbInspect)
		b.in(id, state.Manageable)
		b.moved("manageable>inspecting", "inspecting>manageable")
		if got := b.node(id).PowerState; got != "power off" {
			b.Errorf("Set did not count: %q", got)
		}
		if _, err := b.WorkOf(b.Context(), id); !errors.Is(err, store.ErrNotFound) {
			b.Errorf("work is left: %v", err)
		}
	})
}

func TestDoneByAnotherVerbStartsTheFollowingWorkWithItsTarget(t *testing.T) {
	s := inTurn(work.Done{Verb: "clean", Target: "manageable"}, work.Done{Verb: "manage"})
	inBubble(t, s.handle, func(b *bench) {
		var target state.State
		b.OnChange(func(n *store.Node, _ *store.Transition) {
			if n != nil && n.ProvisionState == state.Cleaning {
				target = n.TargetProvisionState
			}
		})
		id := b.begin(state.Active, state.VerbDelete)
		b.in(id, state.Manageable)
		b.moved("active>deleting", "deleting>cleaning", "cleaning>manageable")
		if target != state.Manageable {
			b.Errorf("the target while cleaning was %q", target)
		}
	})
}

func TestWaitingMovesOnceAndStaysWithoutFlapping(t *testing.T) {
	type payload struct{ Step int }
	s := &script{results: []func() work.Result{
		func() work.Result {
			return work.Wait{Until: time.Now().Add(time.Hour), For: "the first call", Payload: payload{1}}
		},
		func() work.Result { return work.Wait{Until: time.Now().Add(time.Hour), For: "the step"} },
		func() work.Result { return work.Done{} },
	}}
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.in(id, state.WaitCallback)
		if got := b.node(id).Reservation; got != "" {
			b.Errorf("%q holds a node that waits", got)
		}
		sleep(30 * time.Minute)
		b.wake(id)
		b.in(id, state.WaitCallback)
		b.wake(id)
		b.in(id, state.Active)
		b.moved("available>deploying", "deploying>wait call-back", "wait call-back>active")
		jobs, _ := s.seen()
		if got := string(jobs[2].Payload); got != `{"Step":1}` {
			b.Errorf("the payload became %s", got)
		}
		if jobs[1].Overdue {
			b.Error("overdue before the deadline")
		}
	})
}

func TestAStateWithoutAWaitingTwinWaitsWhereItIs(t *testing.T) {
	s := inTurn(work.Wait{For: "power"}, work.Done{})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Enroll, state.VerbManage)
		b.in(id, state.Verifying)
		b.wake(id)
		b.in(id, state.Manageable)
	})
}

func TestPollRunsAgainAndKeepsTheDeadline(t *testing.T) {
	s := &script{results: []func() work.Result{
		func() work.Result {
			return work.Wait{Until: time.Now().Add(25 * time.Second), Poll: 10 * time.Second, For: "power off"}
		},
		func() work.Result { return work.Wait{Poll: 10 * time.Second, For: "power off"} },
	}}
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		sleep(time.Minute)
		jobs, at := s.seen()
		var overdue []bool
		for _, j := range jobs {
			overdue = append(overdue, j.Overdue)
		}
		if d := cmp.Diff([]time.Duration{0, 10 * time.Second, 20 * time.Second, 25 * time.Second}, at); d != "" {
			b.Errorf("ran at (-want +got):\n%s", d)
		}
		if d := cmp.Diff([]bool{false, false, false, true}, overdue); d != "" {
			b.Errorf("overdue (-want +got):\n%s", d)
		}
		// It waited on past the deadline: that is a failure, not a loop.
		b.in(id, state.DeployFailed)
		if got := b.node(id).LastError; !strings.HasPrefix(got, "timed out waiting for power off. ") {
			b.Errorf("last error %q", got)
		}
	})
}

func TestAnOverdueHandlerMayGoOnWaitingUntilANewDeadline(t *testing.T) {
	s := &script{results: []func() work.Result{func() work.Result { return work.Wait{Until: time.Now().Add(time.Minute), For: "x"} }}}
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		sleep(150 * time.Second)
		b.in(id, state.WaitCallback)
		if jobs, _ := s.seen(); len(jobs) != 3 || !jobs[2].Overdue {
			b.Errorf("ran %d times", len(jobs))
		}
	})
}

func TestAWaitWithoutDeadlineEndsAllTheSame(t *testing.T) {
	s := inTurn(work.Wait{For: "nothing in particular"})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		sleep(work.DefaultWait + time.Second)
		b.in(id, state.DeployFailed)
	})
}

func TestRetryCountsAttemptsAndBacksOff(t *testing.T) {
	boom := errors.New("BMC busy")
	s := inTurn(work.Retry{Cause: boom}, work.Retry{Cause: boom}, work.Retry{Cause: boom, After: 10 * time.Second, Payload: 7}, work.Wait{For: "x"}, work.Done{})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		w, err := b.WorkOf(b.Context(), id)
		b.must(err)
		if w.Cause != "BMC busy" || w.Attempt != 1 {
			b.Errorf("parked as %+v", w)
		}
		b.in(id, state.Deploying)
		sleep(time.Minute)
		b.wake(id)
		b.in(id, state.Active)
		var got []string
		jobs, at := s.seen()
		for i, j := range jobs {
			got = append(got, fmt.Sprint(j.Attempt, " ", at[i], " ", string(j.Payload)))
		}
		if d := cmp.Diff([]string{"0 0s ", "1 1s ", "2 3s ", "3 13s 7", "0 1m0s 7"}, got); d != "" {
			b.Errorf("attempt, time, payload (-want +got):\n%s", d)
		}
	})
}

func TestFailNamesCauseAndNextStep(t *testing.T) {
	set := func(n *store.Node) error { n.DriverInternalInfo["agent_url"] = nil; return nil }
	s := inTurn(work.Fail{Cause: errors.New("disk wwn-1: no space."), Next: "Give it another disk.", Set: set})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.in(id, state.DeployFailed)
		n := b.node(id)
		if n.LastError != "disk wwn-1: no space. Give it another disk." {
			b.Errorf("last error %q", n.LastError)
		}
		if _, ok := n.DriverInternalInfo["agent_url"]; !ok {
			b.Error("Set did not count")
		}
		if !strings.Contains(b.log.String(), "node="+id) {
			b.Errorf("log %q", b.log)
		}
	})
}

func TestWhatCanNotBeAppliedFailsTheWorkAndSaysWhy(t *testing.T) {
	for name, r := range map[string]work.Result{
		"a verb that the state does not take": work.Done{Verb: "rescue"},
		"an error of Set":                     work.Done{Set: func(*store.Node) error { return errors.New("set broke") }},
		"a changed state in Set":              work.Done{Set: func(n *store.Node) error { n.ProvisionState = state.Active; return nil }},
		"a payload that is no JSON":           work.Wait{Payload: func() {}},
		"no result":                           nil,
	} {
		t.Run(name, func(t *testing.T) {
			s := inTurn(r)
			inBubble(t, s.handle, func(b *bench) {
				id := b.begin(state.Available, state.VerbDeploy)
				b.in(id, state.DeployFailed)
				if b.node(id).LastError == "" {
					b.Error("no last error")
				}
			})
		})
	}
}

func TestAPanicIsAFailureWithItsStackInTheLog(t *testing.T) {
	inBubble(t, func(context.Context, *work.Job) work.Result { panic("boom") }, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.in(id, state.DeployFailed)
		if got := b.node(id).LastError; !strings.Contains(got, "deploy work panicked: boom") {
			b.Errorf("last error %q", got)
		}
		if !strings.Contains(b.log.String(), "engine_test.go") {
			b.Errorf("no stack in the log: %s", b.log)
		}
	})
}

func TestWorkOfAnUnknownKindFails(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.begin(state.Active, state.VerbRescue)
		b.in(id, state.RescueFailed)
	})
}

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
