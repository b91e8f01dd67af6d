package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// maxCA bounds the PEM of an agent's own certificate, in bytes.
const maxCA = 16 << 10

// heartbeat notes that the node's agent lives and wakes the node's work. It is
// never refused because the node is busy, and writes nothing when nothing changed.
func (s *server) heartbeat(w http.ResponseWriter, r *http.Request) {
	var b agent.Heartbeat
	if err := readJSON(r, &b); err != nil {
		s.fail(w, r, err)
		return
	}
	n, err := s.node(r)
	if err == nil {
		err = s.checkBeat(r, n, &b)
	}
	if err == nil {
		err = s.noteBeat(r, n, &b)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// checkBeat validates in the recorded order: token present, version, token right.
func (s *server) checkBeat(r *http.Request, n *store.Node, b *agent.Heartbeat) error {
	switch {
	case b.CallbackURL == "":
		return bad("Missing mandatory parameter: callback_url")
	case b.AgentToken == "":
		return bad("Agent token is required for heartbeat processing.")
	case b.AgentVersion == "":
		return bad("Agent did not transmit a version, and a version is required. Please update the agent being used.")
	case len(b.AgentVerifyCA) > maxCA || len(b.AgentVersion) > maxText || len(b.CallbackURL) > 1024:
		return bad("The heartbeat has a field that is too long.")
	}
	u, err := url.Parse(b.CallbackURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return bad("callback_url '%s' is not an http(s) URL", clip(clean(b.CallbackURL, 200)))
	}
	if !sameToken(info(n, store.KeyToken), b.AgentToken) {
		// The holder before, still alive after another machine took its place: two claimants.
		before := s.live.wasToken(n.UUID, b.AgentToken)
		fact := "heartbeat with a wrong token"
		if before {
			fact = "heartbeat with the token that another machine's lookup replaced"
		}
		s.alarm(r.Context(), n, event.HopHeartbeat, fact, r.RemoteAddr, before)
		return bad("Invalid or missing agent token received.")
	}
	if have := info(n, store.KeyURL); have != "" && have != b.CallbackURL {
		s.alarm(r.Context(), n, event.HopHeartbeat, "heartbeat refused: the callback URL changed", r.RemoteAddr, false)
		return bad("Detected change in ramdisk provided \"callback_url\": it was %s", have)
	}
	return nil
}

func (s *server) noteBeat(r *http.Request, n *store.Node, b *agent.Heartbeat) error {
	now, ctx := s.now(), r.Context()
	first := s.live.LastHeartbeat(n.UUID).IsZero()
	flush := s.live.beatNow(n.UUID, now)
	version := clean(b.AgentVersion, maxText)
	changed := info(n, store.KeyURL) != b.CallbackURL || info(n, store.KeyVersion) != version || info(n, store.KeyVerifyCA) != b.AgentVerifyCA
	if flush || changed {
		_, err := s.store.UpdateNode(ctx, n.UUID, 0, func(n *store.Node) error {
			if !sameToken(info(n, store.KeyToken), b.AgentToken) {
				return bad("Invalid or missing agent token received.") // its life ended meanwhile
			}
			m := map[string]any{}
			for k, v := range n.DriverInternalInfo {
				m[k] = v
			}
			m[store.KeyURL], m[store.KeyVersion] = b.CallbackURL, version
			if b.AgentVerifyCA != "" {
				m[store.KeyVerifyCA] = b.AgentVerifyCA
			}
			m[store.KeyHeartbeat] = now.UTC().Format(time.RFC3339Nano)
			n.DriverInternalInfo = m
			return nil
		})
		if err != nil {
			return err
		}
	}
	if first {
		s.tell(ctx, n.UUID, event.Evidence{Hop: event.HopHeartbeat, Fact: "agent called", OK: true, Detail: map[string]any{"callback_url": b.CallbackURL, "version": version}})
	}
	if state.States[n.ProvisionState].Stable {
		return nil
	}
	if err := s.store.WakeWork(ctx, n.UUID); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("heartbeat of node %s: wake its work: %w", n.UUID, err)
	}
	return nil
}
