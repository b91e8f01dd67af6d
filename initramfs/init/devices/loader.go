package devices

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Prober loads a module by name, with what it depends on; u-root's
// kmodule.Prober is one.
type Prober interface {
	Probe(name, params string) error
}

// Loader loads modules for modaliases with a bounded number of workers. Each
// modalias and each module is handled once.
type Loader struct {
	Index  *Index
	Prober Prober
	Soft   map[string]Soft
	// Params returns the parameters for a module ("" for most).
	Params func(module string) string
	// Loaded is told of each module asked for, with what asked and how long it took.
	Loaded func(module, by string, took time.Duration, err error)

	mu      sync.Mutex
	queue   []string
	seen    map[string]bool
	modules map[string]*sync.Once
	busy    int
	last    time.Time     // when work was last seen
	wake    chan struct{} // tells workers that the queue has grown
}

// Start starts the workers; they end with ctx.
func (l *Loader) Start(ctx context.Context, workers int) {
	l.Prepare()
	l.wake = make(chan struct{}, workers)
	l.last = time.Now()
	for range workers {
		go l.work(ctx)
	}
}

// Prepare makes Load usable without workers.
func (l *Loader) Prepare() {
	l.seen = make(map[string]bool)
	l.modules = make(map[string]*sync.Once)
}

// Offer queues a modalias; it never blocks.
func (l *Loader) Offer(modalias string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[modalias] {
		return
	}
	l.seen[modalias] = true
	l.last = time.Now()
	l.queue = append(l.queue, modalias)
	select {
	case l.wake <- struct{}{}:
	default: // all workers are awake already
	}
}

// Touch notes that devices are still appearing, without one to load for.
func (l *Loader) Touch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = time.Now()
}

// Settle waits until nothing has been queued, loaded or touched for quiet, or
// ctx ends; it reports which.
func (l *Loader) Settle(ctx context.Context, quiet time.Duration) error {
	for {
		l.mu.Lock()
		left := quiet - time.Since(l.last)
		if l.busy > 0 || len(l.queue) > 0 {
			left = quiet
		}
		l.mu.Unlock()
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("devices still appear: %w", context.Cause(ctx))
		case <-timer.C:
		}
	}
}

func (l *Loader) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		for modalias, ok := l.take(); ok; modalias, ok = l.take() {
			for _, module := range l.Index.Match(modalias) {
				l.Load(module, modalias)
			}
			l.done()
		}
	}
}

func (l *Loader) take() (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return "", false
	}
	modalias := l.queue[0]
	l.queue = l.queue[1:]
	l.busy++
	return modalias, true
}

func (l *Loader) done() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	l.last = time.Now()
}

// Load loads a module, what it depends on, and its soft dependencies. by says
// what asked for it.
func (l *Loader) Load(module, by string) {
	l.mu.Lock()
	once := l.modules[module]
	if once == nil {
		once = new(sync.Once)
		l.modules[module] = once
	}
	l.mu.Unlock()
	once.Do(func() {
		for _, pre := range l.Soft[module].Pre {
			l.Load(pre, module)
		}
		start := time.Now()
		err := l.Prober.Probe(module, l.Params(module))
		l.Loaded(module, by, time.Since(start), err)
		if err != nil {
			return
		}
		for _, post := range l.Soft[module].Post {
			l.Load(post, module)
		}
	})
}
