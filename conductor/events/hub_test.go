package events_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/slipway-metal/slipway/conductor/events"
	"github.com/slipway-metal/slipway/proto/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// publish publishes a log line of a node.
func publish(h *events.Hub, node, message string) {
	h.Publish(event.New(node, event.KindLog, time.Now(), event.Log{Message: message}))
}

// read reads n events as "node message", or "gap n".
func read(t *testing.T, ch <-chan event.Event, n int) (got []string, last int64) {
	t.Helper()
	for range n {
		e, ok := <-ch
		if !ok {
			t.Fatal("the stream ended after", got)
		}
		if e.ID <= last {
			t.Fatalf("id %d came after %d", e.ID, last)
		}
		last = e.ID
		if e.Kind == event.KindGap {
			var g event.Gap
			if err := json.Unmarshal(e.Data, &g); err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint("gap ", g.Lost))
			continue
		}
		var l event.Log
		if err := json.Unmarshal(e.Data, &l); err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Node+" "+l.Message)
	}
	return got, last
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

// quiet wants that nothing comes.
func quiet(t *testing.T, ch <-chan event.Event) {
	t.Helper()
	synctest.Wait()
	select {
	case e, ok := <-ch:
		t.Errorf("got %+v (open %v), want nothing", e, ok)
	default:
	}
}

func TestListenersGetNewEventsOfTheirNodeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := events.New(10)
		publish(h, "a", "before")
		all, endAll := h.Subscribe("", 0)
		one, endOne := h.Subscribe("b", 0)
		publish(h, "a", "1")
		publish(h, "b", "2")
		got, _ := read(t, all, 2)
		want(t, got, "a 1", "b 2")
		got, _ = read(t, one, 1)
		want(t, got, "b 2")
		quiet(t, all)
		quiet(t, one)
		endAll()
		endOne()
		for range all {
			t.Error("an event came after the end")
		}
		publish(h, "b", "3")
		if e, ok := <-one; ok {
			t.Errorf("got %+v after the end", e)
		}
	})
}

func TestAListenerResumesWhereItStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := events.New(200)
		ch, end := h.Subscribe("", 0)
		publish(h, "a", "0")
		_, last := read(t, ch, 1)
		end()
		var all []string
		for i := 1; i <= 150; i++ {
			publish(h, "a", fmt.Sprint(i))
			publish(h, "other", "x")
			if i > 50 { // of the 300, the ring has the newest 200
				all = append(all, fmt.Sprint("a ", i))
			}
		}
		ch, end = h.Subscribe("a", last)
		defer end()
		got, _ := read(t, ch, 101)
		want(t, got, append([]string{"gap 100"}, all...)...)
		quiet(t, ch)
	})
}

func TestASlowListenerLosesEventsAndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := events.New(100)
		ch, end := h.Subscribe("", 0)
		defer end()
		for i := range 1000 { // never blocks, though nobody reads
			publish(h, "a", fmt.Sprint(i))
			if i == 0 {
				synctest.Wait() // it holds event 0 and waits for its reader
			}
		}
		got, _ := read(t, ch, 102)
		want(t, got[:3], "a 0", "gap 899", "a 900")
		want(t, got[101:], "a 999")
	})
}

func TestAnIDOfAnotherRunOfTheConductorStartsOverWithAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := events.New(10)
		ch, end := before.Subscribe("", 0)
		publish(before, "a", "old")
		_, last := read(t, ch, 1)
		end()
		time.Sleep(time.Second)
		h := events.New(10)
		publish(h, "a", "new")
		for name, id := range map[string]int64{"earlier": last, "later": last * 2} {
			ch, end := h.Subscribe("", id)
			got, resumed := read(t, ch, 2)
			want(t, got, "gap 0", "a new")
			if name == "earlier" && resumed <= last {
				t.Errorf("id %d after a restart is not above %d", resumed, last)
			}
			end()
		}
	})
}

func TestLastProgressLastsUntilTheStateChanges(t *testing.T) {
	h := events.New(10)
	if _, _, ok := h.LastProgress("a"); ok {
		t.Error("progress of an unknown node")
	}
	at := time.Now()
	for i := range 3 {
		h.Publish(event.New("a", event.KindProgress, at, event.Progress{Step: "write_image", Done: int64(i)}))
	}
	publish(h, "a", "x")
	p, when, ok := h.LastProgress("a")
	if !ok || p.Done != 2 || p.Step != "write_image" || !when.Equal(at) {
		t.Errorf("got %+v at %v, %v", p, when, ok)
	}
	h.Publish(event.New("b", event.KindState, at, event.State{}))
	if _, _, ok := h.LastProgress("a"); !ok {
		t.Error("another node's state ended it")
	}
	h.Publish(event.New("a", event.KindState, at, event.State{}))
	if _, _, ok := h.LastProgress("a"); ok {
		t.Error("progress outlived the state")
	}
}

func BenchmarkPublish(b *testing.B) {
	h := events.New(0)
	for range 100 {
		_, end := h.Subscribe("", 0)
		defer end()
	}
	e := event.New("a", event.KindProgress, time.Now(), event.Progress{})
	for b.Loop() {
		h.Publish(e)
	}
}
