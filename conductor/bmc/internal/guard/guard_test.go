package guard_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc/internal/guard"
)

var errDown = errors.New("no route to host")

func outcome(o guard.Outcome) func(context.Context) (guard.Outcome, error) {
	return func(context.Context) (guard.Outcome, error) {
		if o == guard.Answered {
			return o, nil
		}
		return o, errDown
	}
}

func TestOneCallAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard.New(3, time.Minute, time.Minute)
		var wg sync.WaitGroup
		busy := 0
		for range 10 {
			wg.Go(func() {
				err := g.Do(t.Context(), "", func(context.Context) (guard.Outcome, error) {
					if busy++; busy != 1 {
						t.Error("two calls at once")
					}
					time.Sleep(time.Second)
					busy--
					return guard.Answered, nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

func TestWaitingEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard.New(3, time.Minute, time.Minute)
		go func() {
			_ = g.Do(context.Background(), "", func(context.Context) (guard.Outcome, error) {
				time.Sleep(time.Hour)
				return guard.Answered, nil
			})
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Do(ctx, "", outcome(guard.Answered)); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		time.Sleep(time.Hour) // let the first one finish
	})
}

func TestBreakerOpensHalfOpensAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard.New(3, time.Minute, time.Hour)
		var open *guard.OpenError
		try := func(o guard.Outcome) error { return g.Do(t.Context(), "", outcome(o)) }

		// An answer in between starts the count again; a caller who left counts for nothing.
		for _, o := range []guard.Outcome{guard.Down, guard.Down, guard.Answered, guard.Down, guard.GaveUp, guard.Down} {
			if err := try(o); errors.As(err, &open) {
				t.Fatal("opened too early")
			}
		}
		if err := try(guard.Down); errors.As(err, &open) {
			t.Fatal("the third failure is still a call")
		}
		if err := try(guard.Answered); !errors.As(err, &open) || !errors.Is(err, errDown) || time.Until(open.RetryAt) != time.Minute {
			t.Fatalf("want an open breaker with its cause for a minute, have %v", err)
		}
		time.Sleep(time.Minute)
		if err := try(guard.Down); errors.As(err, &open) {
			t.Fatal("half-open lets one call through")
		}
		if err := try(guard.Answered); !errors.As(err, &open) {
			t.Fatal("its failure opens again")
		}
		time.Sleep(time.Minute)
		for range 3 {
			if err := try(guard.Answered); err != nil {
				t.Fatalf("an answer closes: %v", err)
			}
		}
	})
}

func TestRefusedCredentialsAreNotTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard.New(3, time.Minute, 5*time.Minute)
		var login *guard.LoginError
		if err := g.Do(t.Context(), "old", outcome(guard.Refused)); errors.As(err, &login) {
			t.Fatal("the first is tried")
		}
		time.Sleep(5*time.Minute - time.Second)
		if err := g.Do(t.Context(), "old", outcome(guard.Answered)); !errors.As(err, &login) || time.Until(login.RetryAt) != time.Second {
			t.Fatalf("within five minutes they are not: %v", err)
		}
		if err := g.Do(t.Context(), "new", outcome(guard.Answered)); err != nil {
			t.Fatalf("others are: %v", err)
		}
		time.Sleep(time.Second)
		if err := g.Do(t.Context(), "old", outcome(guard.Answered)); err != nil {
			t.Fatalf("after five minutes they are: %v", err)
		}
	})
}
