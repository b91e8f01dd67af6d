// Package events hands events to whoever listens: a ring in memory in which a
// slow listener loses events and never slows who publishes them.
package events

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/proto/event"
)

// DefaultSize is how many events a hub keeps: minutes of a busy rack, in a few MB.
const DefaultSize = 10_000

// batch is how many events a listener takes from the ring at a time.
const batch = 64

// Hub keeps the newest events and hands them out.
type Hub struct {
	mu       sync.Mutex
	ring     []event.Event // event id is at id % len
	born     int64         // id of the first event ever
	next     int64         // id of the next event
	wake     chan struct{} // closed by the next Publish; nil when nobody waits
	progress map[string]event.Event
}

// New returns a hub that keeps size events (0: DefaultSize). Its ids start at the
// microsecond of its birth, so that they go on growing when a conductor is
// started again, and stay below JavaScript's 2^53.
func New(size int) *Hub {
	if size <= 0 {
		size = DefaultSize
	}
	id := time.Now().UnixMicro()
	return &Hub{ring: make([]event.Event, size), born: id, next: id, progress: map[string]event.Event{}}
}

// Publish gives e its id and wakes the listeners. It never blocks.
func (h *Hub) Publish(e event.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	e.ID = h.next
	h.next++
	h.ring[e.ID%int64(len(h.ring))] = e
	switch e.Kind {
	case event.KindProgress:
		h.progress[e.Node] = e
	case event.KindState: // the work that made progress is over
		delete(h.progress, e.Node)
	}
	if h.wake != nil {
		close(h.wake)
		h.wake = nil
	}
}

// LastProgress returns the newest progress of a node since its last change of
// state, and its time.
func (h *Hub) LastProgress(node string) (p event.Progress, at time.Time, ok bool) {
	h.mu.Lock()
	e, ok := h.progress[node]
	h.mu.Unlock()
	if !ok || json.Unmarshal(e.Data, &p) != nil {
		return event.Progress{}, time.Time{}, false
	}
	return p, e.Time, true
}

// Subscribe streams the events of one node (UUID), or of all for "". After 0
// only new ones come; after an id of an earlier stream, those since it that are
// still kept. A listener that was too slow or comes too late for some gets one
// event of kind gap in their place. Call cancel to end it; the channel is closed
// then.
func (h *Hub) Subscribe(node string, after int64) (events <-chan event.Event, cancel func()) {
	ctx, cancel := context.WithCancel(context.Background())
	h.mu.Lock()
	from := after + 1
	if after <= 0 {
		from = h.next
	}
	h.mu.Unlock()
	out := make(chan event.Event)
	go h.feed(ctx, node, from, out)
	return out, cancel
}

// feed sends what is in the ring from an id on, until ctx ends.
func (h *Hub) feed(ctx context.Context, node string, from int64, out chan<- event.Event) {
	defer close(out)
	var buf []event.Event
	for {
		var wake <-chan struct{}
		buf, from, wake = h.take(node, from, buf[:0])
		for _, e := range buf {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
		if wake == nil {
			continue
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// take appends the next events from an id on to buf and says from where to go
// on. The channel is not nil when there are no more for now.
func (h *Hub) take(node string, from int64, buf []event.Event) ([]event.Event, int64, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	oldest := max(h.born, h.next-int64(len(h.ring)))
	// An id that this hub has not given yet is another's: its clock was ahead.
	if from < oldest || from > h.next {
		gap := event.Gap{}
		if from >= h.born && from < oldest {
			gap.Lost = oldest - from
		}
		e := event.New(node, event.KindGap, time.Now().UTC(), gap)
		e.ID = oldest - 1
		buf, from = append(buf, e), oldest
	}
	for ; from < h.next && len(buf) < batch; from++ {
		if e := h.ring[from%int64(len(h.ring))]; node == "" || e.Node == node {
			buf = append(buf, e)
		}
	}
	if from < h.next {
		return buf, from, nil
	}
	if h.wake == nil {
		h.wake = make(chan struct{})
	}
	return buf, from, h.wake
}
