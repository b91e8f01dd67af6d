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
			undo(tx)
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		undo(tx)
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// undo ends a transaction that failed. SQLite may have ended it before, so its
// error says nothing; the one that led here is the one to return.
func undo(tx *sql.Tx) { _ = tx.Rollback() }

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
			// SQLite has undone the whole transaction by itself: no space, I/O
			// error (https://www.sqlite.org/lang_transaction.html, section 3).
			// What made it do so is the news, not the missing savepoint; as a
			// text, since to the others it is not their error.
			return fmt.Errorf("a write of the same group ended the transaction: %s: %w", j.outcome(), err)
		}
	}
	if _, err := tx.Exec("RELEASE job"); err != nil {
		return fmt.Errorf("release savepoint: %w", err)
	}
	return nil
}

// outcome is how a job failed, in words.
func (j *job) outcome() string {
	if j.panic != nil {
		return fmt.Sprint("panic: ", j.panic)
	}
	return j.err.Error()
}
