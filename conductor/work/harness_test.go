package work_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
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
