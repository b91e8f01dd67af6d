package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

// keepAlive is how often an idle stream says that it lives, well below the idle
// timeouts of proxies.
const keepAlive = 15 * time.Second

// writeLimit is how long one write to a stuck listener may take.
const writeLimit = 10 * time.Second

// streamEvents is GET /slipway/v1/events: Server-Sent Events, of one node with
// ?node=, resumed after the id in the Last-Event-ID header (or ?last_event_id=).
func (s *server) streamEvents(w http.ResponseWriter, r *http.Request) {
	node, after, err := s.streamOf(r)
	if err != nil {
		s.problem(w, r, err)
		return
	}
	events, cancel := s.cfg.Events.Subscribe(node, after)
	defer cancel()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	rc := http.NewResponseController(w)
	send := func(text string) error {
		// Not every writer has deadlines (httptest's recorder has none).
		if err := rc.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		if _, err := w.Write([]byte(text)); err != nil {
			return err
		}
		return rc.Flush()
	}
	if send("retry: 1000\n\n") != nil {
		return
	}
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		text := ": alive\n\n"
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		case e, ok := <-events:
			if !ok {
				return
			}
			raw, err := json.Marshal(e)
			if err != nil {
				continue // an event whose data is no JSON was refused at its source
			}
			text = fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", e.ID, e.Kind, raw)
		}
		if send(text) != nil {
			return
		}
	}
}

func (s *server) streamOf(r *http.Request) (node string, after int64, err error) {
	if ident := r.URL.Query().Get("node"); ident != "" {
		n, err := s.findNode(r.Context(), ident, http.StatusNotFound)
		if err != nil {
			return "", 0, err
		}
		node = n.UUID
	}
	text := r.Header.Get("Last-Event-ID")
	if text == "" {
		text = r.URL.Query().Get("last_event_id")
	}
	if text != "" {
		if after, err = strconv.ParseInt(text, 10, 64); err != nil || after < 0 {
			return "", 0, bad("Last-Event-ID '%s' is not an event's id", clip(text))
		}
	}
	return node, after, nil
}

// Caps of agent events.
const (
	maxBatch   = 200
	maxLogText = 4096 // bytes
)

// agentEvents takes a batch of events from the node's agent.
func (s *server) agentEvents(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err == nil && !sameToken(info(n, store.KeyToken), r.Header.Get(HeaderToken)) {
		err = client(http.StatusForbidden, "The token is not that of the node's agent.")
	}
	// The same answer, whether the node exists or not: the caller is a stranger.
	var f *fault
	if errors.As(err, &f) && f.status == http.StatusNotFound {
		err = client(http.StatusForbidden, "The token is not that of the node's agent.")
	}
	var batch []event.Event
	if err == nil {
		err = readJSON(r, &batch)
	}
	if err == nil && len(batch) > maxBatch {
		err = client(http.StatusRequestEntityTooLarge, "%d events in one batch; at most %d are taken", len(batch), maxBatch)
	}
	if err != nil {
		s.problem(w, r, err)
		return
	}
	allowed := s.live.takeEvents(n.UUID, len(batch), s.now())
	for _, e := range batch[:allowed] {
		s.takeEvent(r, n, e)
	}
	if allowed < len(batch) {
		w.Header().Set("Retry-After", "1")
		s.problem(w, r, client(http.StatusTooManyRequests, "The agent sends too many events; %d of %d were dropped.", len(batch)-allowed, len(batch)))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// takeEvent publishes what an agent may say: its data is decoded into the
// event's own type and written anew, so nothing unknown goes further. State
// changes are the conductor's to tell.
func (s *server) takeEvent(r *http.Request, n *store.Node, e event.Event) {
	now := s.now()
	at := e.Time
	if d := now.Sub(at); d > time.Hour || d < -time.Minute { // the machine's clock is wrong
		at = now
	}
	switch e.Kind {
	case event.KindProgress:
		var p event.Progress
		if json.Unmarshal(e.Data, &p) != nil {
			return
		}
		p.Step, p.Stage, p.Bottleneck = clean(p.Step, 100), clean(p.Stage, 100), clean(p.Bottleneck, 100)
		p.Percent = min(max(p.Percent, 0), 100)
		if len(p.StageNanos) > 32 {
			p.StageNanos = nil
		}
		s.live.setProgress(n.UUID, p, now)
		s.cfg.Events.Publish(event.New(n.UUID, e.Kind, at, p))
	case event.KindStep:
		var st event.Step
		if json.Unmarshal(e.Data, &st) != nil || !slices.Contains([]string{"started", "succeeded", "failed"}, st.Status) {
			return
		}
		st.Step, st.Error = clean(st.Step, 100), clean(st.Error, maxLogText)
		s.cfg.Events.Publish(event.New(n.UUID, e.Kind, at, st))
	case event.KindLog:
		var l event.Log
		if json.Unmarshal(e.Data, &l) != nil {
			return
		}
		l.Level, l.Source, l.Message = clean(l.Level, 20), clean(l.Source, 50), clean(l.Message, maxLogText)
		s.cfg.Events.Publish(event.New(n.UUID, e.Kind, at, l))
	case event.KindEvidence:
		var v event.Evidence
		if json.Unmarshal(e.Data, &v) != nil || len(v.Detail) > 32 {
			return
		}
		v.Hop, v.Fact = clean(v.Hop, 20), clean(v.Fact, 200)
		v.Detail, _ = sanitise(v.Detail).(map[string]any)
		s.tell(r.Context(), n.UUID, v)
	}
}
