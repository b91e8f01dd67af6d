// Package guard keeps calls to one controller civil: one at a time, a pause
// after many failures in a row, and no second try of refused credentials.
package guard

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"sync"
	"time"
)

// Outcome is what a call says about the controller.
type Outcome int

// The outcomes.
const (
	Answered Outcome = iota // any answer of the protocol, an error too
	Down                    // no answer, or none in time
	Refused                 // these credentials are wrong
	GaveUp                  // the caller left: nothing was learnt
)

// OpenError means that the controller is left alone until RetryAt.
type OpenError struct {
	Failures int
	Last     error
	RetryAt  time.Time
}

func (e *OpenError) Error() string {
	return fmt.Sprintf("not tried, the last %d calls failed (%v); next try at %s", e.Failures, e.Last, e.RetryAt.UTC().Format(time.TimeOnly+"Z"))
}

func (e *OpenError) Unwrap() error { return e.Last }

// LoginError means that these credentials were refused and are not tried again before RetryAt.
type LoginError struct {
	Last    error
	RetryAt time.Time
}

func (e *LoginError) Error() string {
	return fmt.Sprintf("not tried, these credentials were refused already (%v); next try at %s, or at once with changed credentials", e.Last, e.RetryAt.UTC().Format(time.TimeOnly+"Z"))
}

func (e *LoginError) Unwrap() error { return e.Last }

// Guard is the state of one controller. Make it with New.
type Guard struct {
	failures int
	open     time.Duration
	login    time.Duration

	turn chan struct{} // holds the token of the one caller

	mu      sync.Mutex
	inRow   int
	last    error
	until   time.Time // the breaker is open
	verdict map[[32]byte]LoginError
}

// New returns a guard that pauses for open after failures in a row, and that
// keeps a refused login's verdict for login.
func New(failures int, open, login time.Duration) *Guard {
	return &Guard{
		failures: failures, open: open, login: login,
		turn: make(chan struct{}, 1), verdict: map[[32]byte]LoginError{},
	}
}

// Do waits for its turn and runs call, unless the guard forbids it: then the
// error is *OpenError or *LoginError. credentials (any string that changes with
// them) is kept as a hash only. After a pause one call is let through; its
// outcome decides whether the pause goes on (half-open).
func (g *Guard) Do(ctx context.Context, credentials string, call func(context.Context) (Outcome, error)) error {
	select {
	case g.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting for earlier calls to this BMC: %w", ctx.Err())
	}
	defer func() { <-g.turn }()
	key := sha256.Sum256([]byte(credentials))
	if err := g.check(key); err != nil {
		return err
	}
	outcome, err := call(ctx)
	g.note(key, outcome, err)
	return err
}

func (g *Guard) check(key [32]byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if v, ok := g.verdict[key]; ok {
		if now.Before(v.RetryAt) {
			return &v
		}
		delete(g.verdict, key)
	}
	if now.Before(g.until) {
		return &OpenError{Failures: g.inRow, Last: g.last, RetryAt: g.until}
	}
	return nil
}

func (g *Guard) note(key [32]byte, outcome Outcome, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch outcome {
	case Answered:
		g.inRow, g.last = 0, nil
	case Refused:
		g.inRow, g.last = 0, nil
		now := time.Now()
		maps.DeleteFunc(g.verdict, func(_ [32]byte, v LoginError) bool { return !now.Before(v.RetryAt) })
		g.verdict[key] = LoginError{Last: err, RetryAt: now.Add(g.login)}
	case Down:
		g.inRow++
		g.last = err
		if g.inRow >= g.failures {
			g.until = time.Now().Add(g.open)
		}
	}
}
