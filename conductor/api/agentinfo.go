package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

// faultIdentity is the node's fault when two machines claim to be it.
const faultIdentity = "identity conflict"

func info(n *store.Node, key string) string {
	v, _ := n.DriverInternalInfo[key].(string)
	return v
}

// newToken is an agent token: 256 bits, in Ironic's 43 characters.
func newToken() string {
	var b [32]byte
	rand.Read(b[:]) //nolint:errcheck // documented never to fail
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// sameToken compares in constant time; an empty token equals nothing.
func sameToken(have, given string) bool {
	a, b := sha256.Sum256([]byte(have)), sha256.Sum256([]byte(given))
	return have != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// tell keeps a fact about a hop and streams it. Refusals are told at most once
// in alarmEvery.
func (s *server) tell(ctx context.Context, node string, e event.Evidence) {
	now := s.now()
	if !e.OK && !s.live.mayTell(node, e.Hop+e.Fact, now) {
		return
	}
	if err := s.store.AddEvidence(ctx, &store.Evidence{NodeUUID: node, Time: now, Evidence: e}); err != nil {
		s.log.LogAttrs(ctx, slog.LevelError, "evidence lost", slog.String("node", node), slog.String("fact", e.Fact), slog.String("error", err.Error()))
	}
	s.cfg.Events.Publish(event.New(node, event.KindEvidence, now, e))
}

// alarm tells of a refused claim to a node's identity. quarantine also takes
// the node out of service, because both claimants are alive.
func (s *server) alarm(ctx context.Context, n *store.Node, hop, fact, peer string, quarantine bool) {
	s.log.LogAttrs(ctx, slog.LevelWarn, "identity alarm", slog.String("node", n.UUID), slog.String("fact", fact), slog.String("peer", peer), slog.Bool("quarantine", quarantine))
	s.tell(ctx, n.UUID, event.Evidence{Hop: hop, Fact: fact, Detail: map[string]any{"alarm": true, "peer": peer, "quarantine": quarantine}})
	if !quarantine || n.Fault == faultIdentity {
		return
	}
	_, err := s.store.UpdateNode(ctx, n.UUID, 0, func(n *store.Node) error {
		n.Maintenance, n.Fault = true, faultIdentity
		n.MaintenanceReason = "Two machines claim to be this node: " + fact + " (from " + peer + "). Find the impostor, then unset maintenance."
		return nil
	})
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelError, "quarantine failed", slog.String("node", n.UUID), slog.String("error", err.Error()))
	}
}

// clean strips control and formatting characters, which could drive a
// terminal, and cuts to limit bytes.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
		for len(s) > 0 && !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' {
			return -1
		}
		return r
	}, s)
}
