package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// Advance moves a node: the only writer of its provision state.
func (s *Store) Advance(ctx context.Context, t store.Transition) (*store.Node, error) {
	if len(t.Verbs) == 0 {
		return nil, fmt.Errorf("advance node %s: %w: no verb", t.Node, store.ErrInvalid)
	}
	if t.Park && t.Lease == nil {
		return nil, fmt.Errorf("advance node %s: %w: only leased work can be parked", t.Node, store.ErrInvalid)
	}
	var n *store.Node
	err := s.inTx(ctx, func(tx *sql.Tx) (_ []change, err error) {
		if n, err = s.advance(tx, &t); err != nil {
			return nil, err
		}
		told := *n // listeners get their own
		return []change{{&told, &t}}, nil
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (s *Store) advance(tx *sql.Tx, t *store.Transition) (*store.Node, error) {
	if t.Lease != nil {
		id, err := leased(tx, t.Lease)
		if err != nil {
			return nil, err
		}
		if id != t.Node {
			return nil, fmt.Errorf("advance node %s: %w: the lease is on work of node %s", t.Node, store.ErrInvalid, id)
		}
	}
	n, err := s.node(context.Background(), tx, t.Node)
	if err != nil {
		return nil, err
	}
	if n.ProvisionState != t.From || (t.Version != 0 && n.Version != t.Version) {
		return nil, fmt.Errorf("node %s is in state %q, version %d, not %q, %d: %w", n.UUID, n.ProvisionState, n.Version, t.From, t.Version, store.ErrStale)
	}
	to, kind, err := walk(t.From, t.Verbs)
	if err != nil {
		return nil, err
	}
	if t.Park && kind != "" {
		return nil, fmt.Errorf("advance node %s: %w: %q queues work, so the leased one can not be parked", n.UUID, store.ErrInvalid, t.Verbs)
	}
	was, err := snap(n)
	if err != nil {
		return nil, err
	}
	if t.Set != nil {
		if err := t.Set(n); err != nil {
			return nil, err
		}
		if statesDiffer(was.node, n) {
			return nil, fmt.Errorf("advance node %s: %w: Set changed the provision state", n.UUID, store.ErrInvalid)
		}
	}
	// As Ironic's process_event does: new work starts without the last one's error.
	if kind != "" && t.Lease == nil && n.LastError == was.node.LastError {
		n.LastError = ""
	}
	n.ProvisionState, n.TargetProvisionState = to, target(t, n, to)
	n.ProvisionUpdatedAt = s.now().UTC()
	if _, err := s.save(tx, was, n); err != nil {
		return nil, err
	}
	if err := s.moveWork(tx, t, to, kind); err != nil {
		return nil, fmt.Errorf("advance node %s: %w", n.UUID, err)
	}
	if err := s.addHistory(tx, historyOf(t, n)); err != nil {
		return nil, err
	}
	// The caller and OnChange see who holds the work after the move.
	n.Reservation, err = s.holder(tx, n.UUID)
	return n, err
}

// walk follows the verbs and returns where they end and which work the last
// edge that names one queues.
func walk(from state.State, verbs []state.Verb) (to state.State, kind string, err error) {
	to = from
	for _, v := range verbs {
		e, err := state.Next(to, v)
		if err != nil {
			return "", "", err
		}
		to = e.To
		if e.Work != "" {
			kind = e.Work
		}
	}
	return to, kind, nil
}

// target is the target provision state after the move; see Transition.Target.
func target(t *store.Transition, n *store.Node, to state.State) state.State {
	info := state.States[to]
	switch {
	case t.Target != nil:
		return *t.Target
	case info.Stable:
		return ""
	case n.TargetProvisionState != "" && state.States[t.From].Target == info.Target:
		return n.TargetProvisionState
	}
	return info.Target
}

// rests says whether a state needs no work: it waits for a user's verb.
func rests(s state.State) bool {
	return state.States[s].Stable || slices.Contains(state.Failed, s)
}

// moveWork does to the node's work what Transition's comment says.
func (s *Store) moveWork(tx *sql.Tx, t *store.Transition, to state.State, kind string) error {
	now := s.now()
	runAt := t.RunAt
	if runAt.IsZero() {
		runAt = now
	}
	var err error
	switch {
	case kind != "":
		if _, err = tx.Exec("DELETE FROM work WHERE node_uuid = ?", t.Node); err != nil {
			return fmt.Errorf("end the old work: %w", err)
		}
		_, err = tx.Exec("INSERT INTO work (node_uuid, kind, payload, run_at, deadline, cause, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
			t.Node, kind, raw{&t.Payload}, runAt.UnixNano(), nanos(t.Deadline), text[string]{&t.Cause}, now.UnixNano())
	case t.Park:
		return park(tx, t.Lease, parking{payload: t.Payload, runAt: runAt, deadline: t.Deadline, cause: t.Cause}, now)
	case t.Lease != nil:
		_, err = tx.Exec("DELETE FROM work WHERE id = ?", t.Lease.WorkID)
	case rests(to):
		_, err = tx.Exec("DELETE FROM work WHERE node_uuid = ?", t.Node)
	default:
		err = wake(tx, t.Node, now)
	}
	if err != nil {
		return fmt.Errorf("queue work: %w", err)
	}
	return nil
}

// holder is the owner of a live lease on the node's work.
func (s *Store) holder(tx *sql.Tx, node string) (string, error) {
	var owner string
	err := tx.QueryRow("SELECT owner FROM work WHERE node_uuid = ? AND lease_end > ?", node, s.now().UnixNano()).Scan(&owner)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("node %s: who holds its work: %w", node, err)
	}
	return owner, nil
}

// historyOf is the row that a move leaves.
func historyOf(t *store.Transition, n *store.Node) *store.History {
	h := &store.History{
		NodeUUID: n.UUID, Event: t.Why, EventType: "provisioning", User: t.Who,
	}
	if t.Lease != nil {
		h.Conductor = t.Lease.Owner
	}
	moved := fmt.Sprintf("moved from %q to %q", t.From, n.ProvisionState)
	if slices.Contains(t.Verbs, state.VerbFail) {
		h.Severity = "ERROR"
		if h.Event == "" {
			h.Event = n.LastError
		}
	}
	if h.Event == "" {
		h.Event = moved
	} else {
		h.Event = moved + ": " + h.Event
	}
	return h
}
