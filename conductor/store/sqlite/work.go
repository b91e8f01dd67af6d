package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/slipway-metal/slipway/conductor/store"
)

const selectWork = "SELECT id, node_uuid, kind, payload, run_at, deadline, cause, attempt, fence, owner, lease_end, created_at FROM work "

// due is a row that may be claimed: its time has come and nobody has it.
const due = "run_at <= ?1 AND (lease_end IS NULL OR lease_end <= ?1)"

func scanWork(row *sql.Row) (*store.Work, error) {
	w := &store.Work{}
	return w, row.Scan(&w.ID, &w.NodeUUID, &w.Kind, raw{&w.Payload}, stamp{&w.RunAt}, stamp{&w.Deadline}, text[string]{&w.Cause},
		&w.Attempt, &w.Fence, text[string]{&w.Owner}, stamp{&w.LeaseEnd}, stamp{&w.Created})
}

// leased returns the node whose work the lease is on, or ErrFenced.
func leased(tx *sql.Tx, l *store.Lease) (string, error) {
	var node string
	err := tx.QueryRow("SELECT node_uuid FROM work WHERE id = ? AND fence = ? AND owner = ?", l.WorkID, l.Fence, l.Owner).Scan(&node)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("work %d, fence %d of %s: %w", l.WorkID, l.Fence, l.Owner, store.ErrFenced)
	}
	if err != nil {
		return "", fmt.Errorf("read lease of work %d: %w", l.WorkID, err)
	}
	return node, nil
}

// underLease runs a write with the lease checked in the same transaction.
func (s *Store) underLease(ctx context.Context, l *store.Lease, do func(tx *sql.Tx) ([]change, error)) error {
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		if _, err := leased(tx, l); err != nil {
			return nil, err
		}
		return do(tx)
	})
}

// ClaimWork leases one due row. The row's fence grows over all work that its
// node ever had, so that a machine can tell a late command by it.
func (s *Store) ClaimWork(ctx context.Context, owner string, lease time.Duration) (*store.Work, error) {
	if owner == "" {
		return nil, fmt.Errorf("claim work: %w: no owner", store.ErrInvalid)
	}
	// Most claims find nothing: a reader says so without waiting for the writer.
	if err := findDue(ctx, s.read, s.now(), new(int64)); err != nil {
		return nil, err
	}
	var w *store.Work
	err := s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		now := s.now()
		var id int64
		if err := findDue(context.Background(), tx, now, &id); err != nil {
			return nil, err
		}
		var fence int64
		err := tx.QueryRow("UPDATE nodes SET fence = fence + 1 WHERE uuid = (SELECT node_uuid FROM work WHERE id = ?) RETURNING fence", id).Scan(&fence)
		if err != nil {
			return nil, fmt.Errorf("claim work %d: fence: %w", id, err)
		}
		_, err = tx.Exec("UPDATE work SET owner = ?, lease_end = ?, fence = ?, woken = 0 WHERE id = ?", owner, now.Add(lease).UnixNano(), fence, id)
		if err != nil {
			return nil, fmt.Errorf("claim work %d: %w", id, err)
		}
		if w, err = scanWork(tx.QueryRow(selectWork+"WHERE id = ?", id)); err != nil {
			return nil, fmt.Errorf("claim work %d: %w", id, err)
		}
		return nil, nil
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

func findDue(ctx context.Context, q querier, now time.Time, id *int64) error {
	err := q.QueryRowContext(ctx, "SELECT id FROM work WHERE "+due+" ORDER BY run_at, id LIMIT 1", now.UnixNano()).Scan(id)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("due work: %w", store.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("look for due work: %w", err)
	}
	return nil
}

// NextWork says when the next row may be claimed: its time has come and the
// lease on it, if any, has ended.
func (s *Store) NextWork(ctx context.Context) (time.Time, error) {
	var at time.Time
	err := s.read.QueryRowContext(ctx, "SELECT min(max(run_at, coalesce(lease_end, 0))) FROM work").Scan(stamp{&at})
	if err != nil {
		return time.Time{}, fmt.Errorf("look for the next work: %w", err)
	}
	return at, nil
}

// RenewWork moves the lease's end.
func (s *Store) RenewWork(ctx context.Context, l *store.Lease, lease time.Duration) error {
	return s.underLease(ctx, l, func(tx *sql.Tx) ([]change, error) {
		if _, err := tx.Exec("UPDATE work SET lease_end = ? WHERE id = ?", s.now().Add(lease).UnixNano(), l.WorkID); err != nil {
			return nil, fmt.Errorf("renew the lease of work %d: %w", l.WorkID, err)
		}
		return nil, nil
	})
}

// ReleaseWork gives up what owner holds.
func (s *Store) ReleaseWork(ctx context.Context, owner string) error {
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		if _, err := tx.Exec("UPDATE work SET owner = NULL, lease_end = NULL WHERE owner = ?", owner); err != nil {
			return nil, fmt.Errorf("release the work of %s: %w", owner, err)
		}
		return []change{{}}, nil
	})
}

// SaveWork stores the payload under the lease.
func (s *Store) SaveWork(ctx context.Context, l *store.Lease, payload json.RawMessage) error {
	return s.underLease(ctx, l, func(tx *sql.Tx) ([]change, error) {
		if _, err := tx.Exec("UPDATE work SET payload = ? WHERE id = ?", raw{&payload}, l.WorkID); err != nil {
			return nil, fmt.Errorf("save the payload of work %d: %w", l.WorkID, err)
		}
		return nil, nil
	})
}

// parking is what parked work keeps.
type parking struct {
	payload         json.RawMessage // nil: what is stored
	runAt, deadline time.Time
	attempt         int
	cause           string
}

// park gives a lease up. Work that was woken while it ran is due at once.
func park(tx *sql.Tx, l *store.Lease, p parking, now time.Time) error {
	_, err := tx.Exec(`UPDATE work SET payload = coalesce(?, payload), run_at = CASE woken WHEN 0 THEN ? ELSE ? END,
		deadline = ?, attempt = ?, cause = ?, owner = NULL, lease_end = NULL, woken = 0 WHERE id = ?`,
		raw{&p.payload}, p.runAt.UnixNano(), now.UnixNano(), nanos(p.deadline), p.attempt, text[string]{&p.cause}, l.WorkID)
	if err != nil {
		return fmt.Errorf("park work %d: %w", l.WorkID, err)
	}
	return nil
}

// ParkWork gives the lease up until runAt or a wake-up.
func (s *Store) ParkWork(ctx context.Context, l *store.Lease, payload json.RawMessage, runAt, deadline time.Time, attempt int, cause string) error {
	return s.underLease(ctx, l, func(tx *sql.Tx) ([]change, error) {
		now := s.now()
		if runAt.IsZero() {
			runAt = now
		}
		return []change{{}}, park(tx, l, parking{payload, runAt, deadline, attempt, cause}, now)
	})
}

// wake makes parked work due, and marks running work to be due once it is parked.
func wake(tx *sql.Tx, node string, now time.Time) error {
	_, err := tx.Exec("UPDATE work SET run_at = min(run_at, ?1), woken = owner IS NOT NULL WHERE node_uuid = ?2", now.UnixNano(), node)
	if err != nil {
		return fmt.Errorf("wake the work of node %s: %w", node, err)
	}
	return nil
}

// WakeWork makes a node's work due now. Agents of nodes without work call too,
// every few seconds: those cost a read and no write. (Work that is queued after
// that read is due by itself.)
func (s *Store) WakeWork(ctx context.Context, node string) error {
	var found int
	err := s.read.QueryRowContext(ctx, "SELECT 1 FROM work WHERE node_uuid = ?", node).Scan(&found)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wake the work of node %s: %w", node, err)
	}
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		return []change{{}}, wake(tx, node, s.now())
	})
}

// WorkOf returns a node's work.
func (s *Store) WorkOf(ctx context.Context, node string) (*store.Work, error) {
	w, err := scanWork(s.read.QueryRowContext(ctx, selectWork+"WHERE node_uuid = ?", node))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("work of node %s: %w", node, store.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read the work of node %s: %w", node, err)
	}
	return w, nil
}
