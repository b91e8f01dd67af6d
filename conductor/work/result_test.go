package work_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
)

func TestDoneEndsTheWorkByTheDoneVerb(t *testing.T) {
	set := func(n *store.Node) error { n.PowerState = "power off"; return nil }
	s := inTurn(work.Done{Set: set})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Manageable, state.VerbInspect)
		b.in(id, state.Manageable)
		b.moved("manageable>inspecting", "inspecting>manageable")
		if got := b.node(id).PowerState; got != "power off" {
			b.Errorf("Set did not count: %q", got)
		}
		if _, err := b.WorkOf(b.Context(), id); !errors.Is(err, store.ErrNotFound) {
			b.Errorf("work is left: %v", err)
		}
	})
}

func TestDoneByAnotherVerbStartsTheFollowingWorkWithItsTarget(t *testing.T) {
	s := inTurn(work.Done{Verb: "clean", Target: "manageable"}, work.Done{Verb: "manage"})
	inBubble(t, s.handle, func(b *bench) {
		var target state.State
		b.OnChange(func(n *store.Node, _ *store.Transition) {
			if n != nil && n.ProvisionState == state.Cleaning {
				target = n.TargetProvisionState
			}
		})
		id := b.begin(state.Active, state.VerbDelete)
		b.in(id, state.Manageable)
		b.moved("active>deleting", "deleting>cleaning", "cleaning>manageable")
		if target != state.Manageable {
			b.Errorf("the target while cleaning was %q", target)
		}
	})
}

func TestWaitingMovesOnceAndStaysWithoutFlapping(t *testing.T) {
	type payload struct{ Step int }
	s := &script{results: []func() work.Result{
		func() work.Result {
			return work.Wait{Until: time.Now().Add(time.Hour), For: "the first call", Payload: payload{1}}
		},
		func() work.Result { return work.Wait{Until: time.Now().Add(time.Hour), For: "the step"} },
		func() work.Result { return work.Done{} },
	}}
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.in(id, state.WaitCallback)
		if got := b.node(id).Reservation; got != "" {
			b.Errorf("%q holds a node that waits", got)
		}
		sleep(30 * time.Minute)
		b.wake(id)
		b.in(id, state.WaitCallback)
		b.wake(id)
		b.in(id, state.Active)
		b.moved("available>deploying", "deploying>wait call-back", "wait call-back>active")
		jobs, _ := s.seen()
		if got := string(jobs[2].Payload); got != `{"Step":1}` {
			b.Errorf("the payload became %s", got)
		}
		if jobs[1].Overdue {
			b.Error("overdue before the deadline")
		}
	})
}

func TestAStateWithoutAWaitingTwinWaitsWhereItIs(t *testing.T) {
	s := inTurn(work.Wait{For: "power"}, work.Done{})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Enroll, state.VerbManage)
		b.in(id, state.Verifying)
		b.wake(id)
		b.in(id, state.Manageable)
	})
}

func TestPollRunsAgainAndKeepsTheDeadline(t *testing.T) {
	s := &script{results: []func() work.Result{
		func() work.Result {
			return work.Wait{Until: time.Now().Add(25 * time.Second), Poll: 10 * time.Second, For: "power off"}
		},
		func() work.Result { return work.Wait{Poll: 10 * time.Second, For: "power off"} },
	}}
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		sleep(time.Minute)
		jobs, at := s.seen()
		var overdue []bool
		for _, j := range jobs {
			overdue = append(overdue, j.Overdue)
		}
		if d := cmp.Diff([]time.Duration{0, 10 * time.Second, 20 * time.Second, 25 * time.Second}, at); d != "" {
			b.Errorf("ran at (-want +got):\n%s", d)
		}
		if d := cmp.Diff([]bool{false, false, false, true}, overdue); d != "" {
			b.Errorf("overdue (-want +got):\n%s", d)
		}
		// It waited on past the deadline: that is a failure, not a loop.
		b.in(id, state.DeployFailed)
		if got := b.node(id).LastError; !strings.HasPrefix(got, "timed out waiting for power off. ") {
			b.Errorf("last error %q", got)
		}
	})
}

func TestAnOverdueHandlerMayGoOnWaitingUntilANewDeadline(t *testing.T) {
	s := &script{results: []func() work.Result{func() work.Result { return work.Wait{Until: time.Now().Add(time.Minute), For: "x"} }}}
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		sleep(150 * time.Second)
		b.in(id, state.WaitCallback)
		if jobs, _ := s.seen(); len(jobs) != 3 || !jobs[2].Overdue {
			b.Errorf("ran %d times", len(jobs))
		}
	})
}

func TestAWaitWithoutDeadlineEndsAllTheSame(t *testing.T) {
	s := inTurn(work.Wait{For: "nothing in particular"})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		sleep(work.DefaultWait + time.Second)
		b.in(id, state.DeployFailed)
	})
}

func TestRetryCountsAttemptsAndBacksOff(t *testing.T) {
	boom := errors.New("BMC busy")
	s := inTurn(work.Retry{Cause: boom}, work.Retry{Cause: boom}, work.Retry{Cause: boom, After: 10 * time.Second, Payload: 7}, work.Wait{For: "x"}, work.Done{})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		w, err := b.WorkOf(b.Context(), id)
		b.must(err)
		if w.Cause != "BMC busy" || w.Attempt != 1 {
			b.Errorf("parked as %+v", w)
		}
		b.in(id, state.Deploying)
		sleep(time.Minute)
		b.wake(id)
		b.in(id, state.Active)
		var got []string
		jobs, at := s.seen()
		for i, j := range jobs {
			got = append(got, fmt.Sprint(j.Attempt, " ", at[i], " ", string(j.Payload)))
		}
		if d := cmp.Diff([]string{"0 0s ", "1 1s ", "2 3s ", "3 13s 7", "0 1m0s 7"}, got); d != "" {
			b.Errorf("attempt, time, payload (-want +got):\n%s", d)
		}
	})
}

func TestFailNamesCauseAndNextStep(t *testing.T) {
	set := func(n *store.Node) error { n.DriverInternalInfo["agent_url"] = nil; return nil }
	s := inTurn(work.Fail{Cause: errors.New("disk wwn-1: no space."), Next: "Give it another disk.", Set: set})
	inBubble(t, s.handle, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.in(id, state.DeployFailed)
		n := b.node(id)
		if n.LastError != "disk wwn-1: no space. Give it another disk." {
			b.Errorf("last error %q", n.LastError)
		}
		if _, ok := n.DriverInternalInfo["agent_url"]; !ok {
			b.Error("Set did not count")
		}
		if !strings.Contains(b.log.String(), "node="+id) {
			b.Errorf("log %q", b.log)
		}
	})
}

func TestWhatCanNotBeAppliedFailsTheWorkAndSaysWhy(t *testing.T) {
	for name, r := range map[string]work.Result{
		"a verb that the state does not take": work.Done{Verb: "rescue"},
		"an error of Set":                     work.Done{Set: func(*store.Node) error { return errors.New("set broke") }},
		"a changed state in Set":              work.Done{Set: func(n *store.Node) error { n.ProvisionState = state.Active; return nil }},
		"a payload that is no JSON":           work.Wait{Payload: func() {}},
		"no result":                           nil,
	} {
		t.Run(name, func(t *testing.T) {
			s := inTurn(r)
			inBubble(t, s.handle, func(b *bench) {
				id := b.begin(state.Available, state.VerbDeploy)
				b.in(id, state.DeployFailed)
				if b.node(id).LastError == "" {
					b.Error("no last error")
				}
			})
		})
	}
}

func TestAPanicIsAFailureWithItsStackInTheLog(t *testing.T) {
	inBubble(t, func(context.Context, *work.Job) work.Result { panic("boom") }, func(b *bench) {
		id := b.begin(state.Available, state.VerbDeploy)
		b.in(id, state.DeployFailed)
		if got := b.node(id).LastError; !strings.Contains(got, "deploy work panicked: boom") {
			b.Errorf("last error %q", got)
		}
		if !strings.Contains(b.log.String(), "result_test.go") {
			b.Errorf("no stack in the log: %s", b.log)
		}
	})
}

func TestWorkOfAnUnknownKindFails(t *testing.T) {
	inBubble(t, nil, func(b *bench) {
		id := b.begin(state.Active, state.VerbRescue)
		b.in(id, state.RescueFailed)
	})
}
