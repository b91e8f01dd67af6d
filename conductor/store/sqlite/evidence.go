package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-metal/slipway/conductor/store"
)

// Rows that are kept: of each node, and of all machines without a node. History's
// number is Ironic's default (conductor.node_history_max_entries).
const (
	evidenceKept         = 1000
	evidenceKeptNodeless = 10000
	historyKept          = 300
	// pruneEvery spares most inserts of evidence the look for old rows.
	pruneEvery = 64
)

// AddEvidence stores e and sets its ID.
func (s *Store) AddEvidence(ctx context.Context, e *store.Evidence) error {
	if e.Time.IsZero() {
		e.Time = s.now().UTC()
	}
	detail, err := dict[any]{&e.Detail}.Value()
	if err != nil {
		return fmt.Errorf("evidence %s %q: %w", e.Hop, e.Fact, err)
	}
	e.MAC = strings.ToLower(e.MAC)
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		if e.NodeUUID != "" {
			if err := nodeExists(tx, e.NodeUUID); err != nil {
				return nil, fmt.Errorf("evidence %s %q: %w", e.Hop, e.Fact, err)
			}
		}
		res, err := tx.Exec("INSERT INTO evidence (node_uuid, mac, at, hop, fact, ok, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
			text[string]{&e.NodeUUID}, text[string]{&e.MAC}, nanos(e.Time), e.Hop, e.Fact, bit(e.OK), detail)
		if err != nil {
			return nil, fmt.Errorf("store evidence %s %q of node %s: %w", e.Hop, e.Fact, e.NodeUUID, err)
		}
		if e.ID, err = res.LastInsertId(); err != nil {
			return nil, fmt.Errorf("store evidence: %w", err)
		}
		if e.ID%pruneEvery != 0 {
			return nil, nil
		}
		if e.NodeUUID != "" {
			return nil, prune(tx, "evidence", e.NodeUUID, evidenceKept)
		}
		_, err = tx.Exec(`DELETE FROM evidence WHERE node_uuid IS NULL AND id <= (SELECT id FROM evidence
			WHERE node_uuid IS NULL ORDER BY id DESC LIMIT 1 OFFSET ?)`, evidenceKeptNodeless)
		if err != nil {
			return nil, fmt.Errorf("forget old evidence: %w", err)
		}
		return nil, nil
	})
}

// LastEvidence returns the newest row of each hop since a time, oldest first.
func (s *Store) LastEvidence(ctx context.Context, node string, since time.Time) ([]store.Evidence, error) {
	from := int64(0)
	if !since.IsZero() {
		from = since.UnixNano()
	}
	return collect(ctx, s.read, "evidence of node "+node, `SELECT id, coalesce(node_uuid, ''), coalesce(mac, ''), at, hop, fact, ok, detail
		FROM evidence WHERE id IN (SELECT max(id) FROM evidence WHERE node_uuid = ? AND at >= ? GROUP BY hop) ORDER BY at, id`,
		[]any{node, from}, scanEvidence)
}

func scanEvidence(scan func(...any) error) (store.Evidence, error) {
	var e store.Evidence
	var detail string
	if err := scan(&e.ID, &e.NodeUUID, &e.MAC, stamp{&e.Time}, &e.Hop, &e.Fact, flag{&e.OK}, &detail); err != nil {
		return e, err
	}
	if detail == "{}" {
		return e, nil
	}
	return e, json.Unmarshal([]byte(detail), &e.Detail)
}

// AddHistory stores h; UUID and time are filled in.
func (s *Store) AddHistory(ctx context.Context, h *store.History) error {
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) { return nil, s.addHistory(tx, h) })
}

func (s *Store) addHistory(tx *sql.Tx, h *store.History) error {
	if err := nodeExists(tx, h.NodeUUID); err != nil {
		return fmt.Errorf("history: %w", err)
	}
	if h.UUID == "" {
		h.UUID = uuid.NewString()
	}
	if h.CreatedAt.IsZero() {
		h.CreatedAt = s.now().UTC()
	}
	if h.Severity == "" {
		h.Severity = "INFO"
	}
	_, err := tx.Exec("INSERT INTO history (uuid, node_uuid, event, event_type, severity, conductor, user, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		h.UUID, h.NodeUUID, h.Event, h.EventType, h.Severity, h.Conductor, h.User, nanos(h.CreatedAt))
	if err != nil {
		return fmt.Errorf("history of node %s: %w", h.NodeUUID, err)
	}
	return prune(tx, "history", h.NodeUUID, historyKept)
}

// Histories returns the newest rows of a node's history, newest first; limit 0 is all.
func (s *Store) Histories(ctx context.Context, node string, limit int) ([]store.History, error) {
	if limit <= 0 {
		limit = -1 // SQLite: no limit
	}
	return collect(ctx, s.read, "history of node "+node, `SELECT uuid, node_uuid, event, event_type, severity, conductor, user, created_at
		FROM history WHERE node_uuid = ? ORDER BY id DESC LIMIT ?`, []any{node, limit},
		func(scan func(...any) error) (store.History, error) {
			var h store.History
			err := scan(&h.UUID, &h.NodeUUID, text[string]{&h.Event}, text[string]{&h.EventType}, text[string]{&h.Severity},
				text[string]{&h.Conductor}, text[string]{&h.User}, stamp{&h.CreatedAt})
			return h, err
		})
}
