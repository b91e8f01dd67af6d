package work

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/conductor/store"
)

// Defaults of an Engine, and of a Wait without a deadline.
const (
	DefaultWorkers = 16
	DefaultLease   = 30 * time.Second
	DefaultWait    = time.Hour
)

// Engine claims due work and carries it out. It never polls: it sleeps until the
// store says that something changed or until the next work is due.
type Engine struct {
	Store    store.Store
	Handlers map[string]Handler // by state.Work…
	Owner    string             // this conductor's name; two that run at once need two names
	Workers  int                // handlers that run at once; waiting work takes none
	Lease    time.Duration      // after which others may take the work of a dead conductor; renewed meanwhile
	Log      *slog.Logger

	mu      sync.Mutex
	running map[string]chan struct{} // node → tells its renewer to look at the lease now
}

// Run works until ctx ends and every handler has returned. What this owner held
// when it died is taken up at once. Call it once.
func (e *Engine) Run(ctx context.Context) error {
	if e.Owner == "" || e.Store == nil {
		return errors.New("work: an engine needs a store and an owner")
	}
	if e.Workers <= 0 {
		e.Workers = DefaultWorkers
	}
	if e.Lease <= 0 {
		e.Lease = DefaultLease
	}
	if e.Log == nil {
		e.Log = slog.New(slog.DiscardHandler)
	}
	e.running = map[string]chan struct{}{}
	changed := make(chan struct{}, 1)
	e.Store.OnChange(func(n *store.Node, t *store.Transition) {
		select {
		case changed <- struct{}{}:
		default:
		}
		if t != nil && t.Lease == nil {
			e.poke(n.UUID) // a user's verb may have ended the work that runs
		}
	})
	if err := e.Store.ReleaseWork(ctx, e.Owner); err != nil {
		return fmt.Errorf("take up the work of the last run: %w", err)
	}
	slots := make(chan struct{}, e.Workers)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		w := e.next(ctx, changed)
		if w == nil {
			return nil
		}
		handlers.Go(func() {
			defer func() { <-slots }()
			e.carry(ctx, w)
		})
	}
}

// next claims the next due work, or returns nil once ctx has ended.
func (e *Engine) next(ctx context.Context, changed <-chan struct{}) *store.Work {
	for ctx.Err() == nil {
		w, err := e.Store.ClaimWork(ctx, e.Owner, e.Lease)
		if err == nil {
			return w
		}
		at := time.Time{}
		if errors.Is(err, store.ErrNotFound) {
			at, err = e.Store.NextWork(ctx)
		}
		if err != nil {
			if ctx.Err() == nil {
				e.Log.ErrorContext(ctx, "cannot look for work; trying again in a second", "error", err)
			}
			at = time.Now().Add(time.Second)
		}
		e.sleep(ctx, changed, at)
	}
	return nil
}

// sleep waits for a change, a time (zero: none), or the end of ctx.
func (e *Engine) sleep(ctx context.Context, changed <-chan struct{}, until time.Time) {
	var due <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-changed:
	case <-due:
	case <-ctx.Done():
	}
}

// poke makes the renewer of a node's running work look at the lease now.
func (e *Engine) poke(node string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case e.running[node] <- struct{}{}:
	default: // nothing runs, or it has been told already
	}
}

// carry runs the handler of claimed work once, its lease renewed meanwhile, and
// applies the result.
func (e *Engine) carry(ctx context.Context, w *store.Work) {
	t := &task{
		store: e.Store, Work: w, overdue: !w.Deadline.IsZero() && !time.Now().Before(w.Deadline),
		log: e.Log.With("node", w.NodeUUID, "work", w.Kind, "attempt", w.Attempt),
	}
	n, err := e.Store.Node(ctx, w.NodeUUID)
	if errors.Is(err, store.ErrNotFound) {
		return // deleted, and the work with it
	}
	var result Result = Retry{Cause: err}
	if err == nil {
		jobCtx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		stop := e.keepLease(w, cancel, t.log)
		result = t.run(jobCtx, e.Handlers[w.Kind], n)
		stop()
	}
	// What a handler has done must be recorded also when the conductor stops.
	last, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer done()
	if interrupted(ctx, result) {
		err = t.release(last)
	} else {
		err = t.apply(last, result)
	}
	switch {
	case errors.Is(err, store.ErrFenced), errors.Is(err, store.ErrNotFound):
		t.log.DebugContext(ctx, "the work was taken away; its result is dropped")
	case err != nil:
		t.log.ErrorContext(ctx, "cannot record the result; the work runs again when its lease ends", "error", err)
	}
}

// interrupted says whether a result only tells that the conductor stops: such
// work is run again by whoever comes next.
func interrupted(ctx context.Context, r Result) bool {
	switch r.(type) {
	case Fail, Retry:
		return ctx.Err() != nil
	}
	return false
}

// keepLease renews the lease until stop is called, and cancels the handler when
// the lease is lost or could not be renewed in time.
func (e *Engine) keepLease(w *store.Work, cancel context.CancelCauseFunc, log *slog.Logger) (stop func()) {
	look := make(chan struct{}, 1)
	e.mu.Lock()
	e.running[w.NodeUUID] = look
	e.mu.Unlock()
	quit, ended := make(chan struct{}), make(chan struct{})
	// Not the conductor's context: the handler needs its lease until it returns.
	ctx, end := context.WithCancel(context.Background())
	go func() {
		defer close(ended)
		tick := time.NewTicker(e.Lease / 3)
		defer tick.Stop()
		good := time.Now()
		for {
			select {
			case <-quit:
				return
			case <-look:
			case <-tick.C:
			}
			err := e.Store.RenewWork(ctx, w.Lease(), e.Lease)
			switch {
			case err == nil:
				good = time.Now()
			case errors.Is(err, store.ErrFenced):
				cancel(err)
				return
			case ctx.Err() != nil:
				return
			case time.Since(good) >= e.Lease:
				cancel(fmt.Errorf("the lease ended and could not be renewed: %w", err))
				return
			default:
				log.WarnContext(ctx, "cannot renew the lease", "error", err)
			}
		}
	}()
	return func() {
		close(quit)
		end()
		<-ended
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.running[w.NodeUUID] == look {
			delete(e.running, w.NodeUUID)
		}
	}
}
