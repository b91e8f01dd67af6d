// Package events tells the conductor what happens as it happens. Telling never
// holds up the work: events go into a ring that loses its oldest, and a poster
// sends what is there at most once a second.
package events

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/proto/event"
)

const (
	// ringSize is how many events wait at most.
	ringSize = 256
	// every is the least time between two posts: progress goes out once a second.
	every = time.Second
	// sendTimeout: a conductor that takes longer loses the batch.
	sendTimeout = 5 * time.Second
)

// Send posts a batch to the conductor.
type Send func(ctx context.Context, batch []event.Event) error

// Ring holds events until they are posted.
type Ring struct {
	send Send
	node func() string
	log  *slog.Logger

	mu      sync.Mutex
	waiting []event.Event
	lost    int
	wake    chan struct{}
}

// NewRing makes a ring; node gives the node's UUID once it is known. log must
// not lead back into the ring.
func NewRing(send Send, node func() string, log *slog.Logger) *Ring {
	return &Ring{send: send, node: node, log: log, wake: make(chan struct{}, 1)}
}

// Emit adds an event and returns at once. Of several events of progress of one
// step that wait, only the last is kept.
func (r *Ring) Emit(kind string, data any) {
	e := event.New("", kind, time.Now().UTC(), data)
	r.mu.Lock()
	if n := len(r.waiting); kind == event.KindProgress && n > 0 && r.waiting[n-1].Kind == kind {
		r.waiting[n-1] = e
	} else {
		if n == ringSize {
			r.waiting = r.waiting[1:]
			r.lost++
		}
		r.waiting = append(r.waiting, e)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run posts until ctx ends; then it tries once more to get rid of what waits.
func (r *Ring) Run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-r.wake:
			r.post(ctx)
			select { // paces the posts
			case <-ctx.Done():
			case <-time.After(every):
			}
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	r.post(last)
}

// post sends all that waits. A batch that can't be sent is put back as far as
// there is room: the conductor may be restarting.
func (r *Ring) post(ctx context.Context) {
	node := r.node()
	r.mu.Lock()
	batch, lost := r.waiting, r.lost
	if node != "" {
		r.waiting, r.lost = nil, 0
	}
	r.mu.Unlock()
	if node == "" || len(batch) == 0 {
		return
	}
	for i := range batch {
		batch[i].Node = node
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if err := r.send(ctx, batch); err != nil {
		r.log.Debug("events not taken", "events", len(batch), "error", err)
		r.putBack(batch, lost)
	} else if lost > 0 {
		r.log.Warn("events lost as the conductor was too slow", "events", lost)
	}
}

func (r *Ring) putBack(batch []event.Event, lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	room := max(0, ringSize-len(r.waiting))
	drop := max(0, len(batch)-room)
	r.lost += lost + drop
	r.waiting = append(batch[drop:len(batch):len(batch)], r.waiting...)
}

type reporterKey struct{}

// WithReporter gives the code below ctx a place to report progress to.
func WithReporter(ctx context.Context, report func(event.Progress)) context.Context {
	return context.WithValue(ctx, reporterKey{}, report)
}

// Report tells of progress, to nobody when no reporter was set.
func Report(ctx context.Context, p event.Progress) {
	if report, ok := ctx.Value(reporterKey{}).(func(event.Progress)); ok {
		report(p)
	}
}
