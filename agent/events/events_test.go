package events

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipway-metal/slipway/proto/event"
)

func ring(send Send, node string) *Ring {
	return NewRing(send, func() string { return node }, slog.New(slog.DiscardHandler))
}

// Progress goes out at most once a second, the newest of it, and steps all.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var posts []int
		r := ring(func(_ context.Context, b []event.Event) error { posts = append(posts, len(b)); return nil }, "n")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.Run(ctx); close(done) }()
		r.Emit(event.KindStep, event.Step{})
		synctest.Wait()
		for range 50 { // five seconds of ten reports a second
			r.Emit(event.KindProgress, event.Progress{})
			time.Sleep(100 * time.Millisecond)
		}
		cancel()
		<-done
		if len(posts) < 5 || len(posts) > 7 {
			t.Fatalf("%d posts: %v", len(posts), posts)
		}
		for _, n := range posts {
			if n != 1 {
				t.Fatalf("a batch of %d: %v", n, posts)
			}
		}
	})
}

// A conductor that takes nothing costs the work nothing, and the oldest events.
func TestBlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []event.Event
		var open atomic.Bool
		r := ring(func(ctx context.Context, b []event.Event) error {
			if !open.Load() {
				<-ctx.Done()
				return ctx.Err()
			}
			got = append(got, b...)
			return nil
		}, "n")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.Run(ctx); close(done) }()
		r.Emit(event.KindLog, event.Log{Message: "the one that vanishes into the hole"})
		synctest.Wait() // it is being sent
		start := time.Now()
		for range 3 * ringSize {
			r.Emit(event.KindLog, event.Log{Message: "x"})
		}
		if time.Since(start) != 0 {
			t.Fatalf("emitting took %s", time.Since(start))
		}
		open.Store(true)
		r.Emit(event.KindStep, event.Step{Step: "last"})
		time.Sleep(time.Minute)
		cancel()
		<-done
		if n := len(got); n > ringSize+1 || n == 0 || got[n-1].Kind != event.KindStep {
			t.Fatalf("%d events", n)
		}
	})
}

// What happened before the node is known, or while the conductor restarts, is
// told later.
func TestKeptForLater(t *testing.T) {
	fail := true
	var got []event.Event
	node := ""
	r := NewRing(func(_ context.Context, b []event.Event) error {
		if fail {
			return errors.New("restarting")
		}
		got = b
		return nil
	}, func() string { return node }, slog.New(slog.DiscardHandler))
	r.Emit(event.KindLog, event.Log{Message: "crash"})
	r.post(t.Context())
	node = "n"
	r.post(t.Context())
	fail = false
	r.post(t.Context())
	if len(got) != 1 || got[0].Node != "n" {
		t.Fatalf("%+v", got)
	}
}
