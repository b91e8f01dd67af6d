package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/slipway-metal/slipway/conductor/store"
)

// errClosed is what writes after Close get.
var errClosed = errors.New("the store is closed")

// maxGroup bounds how many writes share one commit, and so how long the first
// of them waits for the others.
const maxGroup = 128

// job is one write: do runs inside a transaction that other jobs may share.
type job struct {
	ctx   context.Context
	do    func(tx *sql.Tx) error
	after []change // announced after the commit
	err   error
	panic any
	done  chan struct{}
}

// change is what OnChange's functions are told.
type change struct {
	node *store.Node
	t    *store.Transition
}

// inTx runs do in a transaction of the writer and returns after its commit.
// What do returns as an error undoes its writes and nobody else's. The changes
// that do returns are announced after the commit.
func (s *Store) inTx(ctx context.Context, do func(tx *sql.Tx) ([]change, error)) error {
	j := &job{ctx: ctx, done: make(chan struct{})}
	j.do = func(tx *sql.Tx) (err error) {
		j.after, err = do(tx)
		return err
	}
	select {
	case s.jobs <- j:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.quit:
		return errClosed
	}
	<-j.done
	if j.panic != nil {
		panic(j.panic) // of a caller's function, in the caller's goroutine
	}
	return j.err
}

// writer is the only goroutine that writes. Jobs that wait when it is free go
// into one transaction, each in a savepoint, and share one commit and its fsync.
func (s *Store) writer() {
	defer close(s.ended)
	for {
		select {
		case <-s.quit:
			return
		case j := <-s.jobs:
			group := []*job{j}
		gather:
			for len(group) < maxGroup {
				select {
				case j := <-s.jobs:
					group = append(group, j)
				default:
					break gather
				}
			}
			s.commit(group)
		}
	}
}

// commit carries a group out and tells each of its callers.
func (s *Store) commit(group []*job) {
	if err := s.runGroup(group); err != nil {
		for _, j := range group {
			if j.err == nil {
				j.err = fmt.Errorf("database %s: %w", s.path, err)
			}
		}
	}
	s.mu.Lock()
	listeners := s.onChange
	s.mu.Unlock()
	for _, j := range group {
		if j.err == nil && j.panic == nil {
			for _, c := range j.after {
				for _, f := range listeners {
					f(c.node, c.t)
				}
			}
		}
		close(j.done)
	}
}

func (s *Store) runGroup(group []*job) error {
	// Not a caller's context: its end must not take back what others wrote.
	tx, err := s.write.BeginTx(context.Background(), nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	for _, j := range group {
		if err := j.run(tx); err != nil {
			return errors.Join(err, rollback(tx))
		}
	}
	if err := tx.Commit(); err != nil {
		return errors.Join(fmt.Errorf("commit: %w", err), rollback(tx))
	}
	return nil
}

// run carries one job out in a savepoint. The error is one of the transaction
// as a whole; the job's own is in j.err.
func (j *job) run(tx *sql.Tx) error {
	if j.ctx.Err() != nil {
		j.err = context.Cause(j.ctx)
		return nil
	}
	if _, err := tx.Exec("SAVEPOINT job"); err != nil {
		return fmt.Errorf("savepoint: %w", err)
	}
	func() {
		defer func() { j.panic = recover() }()
		j.err = j.do(tx)
	}()
	if j.err != nil || j.panic != nil {
		if _, err := tx.Exec("ROLLBACK TO job"); err != nil {
			return fmt.Errorf("roll back to savepoint: %w", err)
		}
	}
	if _, err := tx.Exec("RELEASE job"); err != nil {
		return fmt.Errorf("release savepoint: %w", err)
	}
	return nil
}

// rollback undoes the transaction; SQLite may have done so by itself (disk full).
func rollback(tx *sql.Tx) error {
	if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}
