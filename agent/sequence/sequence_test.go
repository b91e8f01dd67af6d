package sequence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-metal/slipway/agent/events"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

func command(async bool, run Run) Command {
	return Command{Async: async, Parse: func(json.RawMessage) (Run, error) { return run, nil }}
}

var ended = command(false, func(context.Context) (Outcome, error) { return Outcome{Result: 1}, nil })

func runner(ctx context.Context, h Hooks, commands map[string]Command) *Runner {
	return New(ctx, Set{"x": commands}, h, slog.New(slog.DiscardHandler))
}

func TestOneCommandAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kicks atomic.Int32
		logs := ended
		logs.WhileBusy = true
		r := runner(t.Context(), Hooks{Done: func() { kicks.Add(1) }}, map[string]Command{
			"slow": command(true, func(ctx context.Context) (Outcome, error) { time.Sleep(time.Minute); return Outcome{Result: "ok"}, nil }),
			"fast": ended, "logs": logs,
		})
		res, err := r.Execute(t.Context(), "x.slow", json.RawMessage(`{}`), false)
		if err != nil || res.CommandStatus != agent.Running || res.CommandResult != nil {
			t.Fatalf("%+v %v", res, err)
		}
		if _, err := r.Execute(t.Context(), "x.fast", json.RawMessage(`{}`), true); !errors.Is(err, ErrBusy) || err.Error() != "Agent is busy: executing command slow" {
			t.Fatalf("beside another: %v", err)
		}
		if _, err := r.Execute(t.Context(), "x.logs", json.RawMessage(`{}`), true); err != nil {
			t.Fatalf("logs beside another: %v", err)
		}
		if res, err = r.Get(t.Context(), res.ID, true); err != nil || res.CommandStatus != agent.Succeeded || string(res.CommandResult) != `"ok"` {
			t.Fatalf("%+v %v", res, err)
		}
		synctest.Wait()
		if kicks.Load() != 1 {
			t.Fatalf("%d heartbeats were forced, want 1: after the asynchronous command", kicks.Load())
		}
		if _, err := r.Execute(t.Context(), "x.fast", json.RawMessage(`{}`), true); err != nil {
			t.Fatal(err)
		}
		if n := len(r.List()); n != 3 {
			t.Fatalf("%d results", n)
		}
	})
}

// A command that the conductor sends once more, as it died before it noted the
// answer, is the same command.
func TestRepeatedCommandRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		r := runner(t.Context(), Hooks{}, map[string]Command{"step": command(true, func(context.Context) (Outcome, error) {
			runs.Add(1)
			time.Sleep(time.Second)
			return Outcome{}, nil
		})})
		id := uuid.NewString()
		params := json.RawMessage(fmt.Sprintf(`{"slipway_command_id":%q}`, id))
		for range 3 {
			res, err := r.Execute(t.Context(), "x.step", params, false)
			if err != nil || res.ID != id {
				t.Fatalf("%+v %v", res, err)
			}
		}
		r.Wait()
		if res, err := r.Execute(t.Context(), "x.step", params, true); err != nil || res.CommandStatus != agent.Succeeded || runs.Load() != 1 {
			t.Fatalf("%+v %v after %d runs", res, err, runs.Load())
		}
	})
}

func TestFailures(t *testing.T) {
	r := runner(t.Context(), Hooks{}, map[string]Command{
		"panics": command(true, func(context.Context) (Outcome, error) { panic("a step with a defect") }),
		"fails": command(false, func(context.Context) (Outcome, error) {
			return Outcome{}, errors.New("disk wwn 0x5: input/output error")
		}),
		"mismatch": command(false, func(context.Context) (Outcome, error) {
			return Outcome{}, &Failure{Type: "VersionMismatch", Code: 409, Message: "m", Err: errors.New("d"), VersionMismatch: true}
		}),
		"untold": command(false, func(context.Context) (Outcome, error) { return Outcome{Result: func() {}}, nil }),
	})
	for name, want := range map[string]struct{ status, kind, details string }{
		"panics":   {agent.Failed, "CommandExecutionError", "sequence_test.go"}, // the stack
		"fails":    {agent.Failed, "CommandExecutionError", "disk wwn 0x5: input/output error"},
		"mismatch": {agent.CleanVersionMismatch, "VersionMismatch", "d"},
		"untold":   {agent.Failed, "CommandExecutionError", "result can't be told"},
	} {
		res, err := r.Execute(t.Context(), "x."+name, json.RawMessage(`{}`), true)
		if err != nil {
			t.Fatal(err)
		}
		if e := res.CommandError; res.CommandStatus != want.status || e == nil || e.Type != want.kind || !strings.Contains(e.Details, want.details) || res.CommandResult != nil {
			t.Errorf("%s: %+v %+v", name, res, e)
		}
	}
}

// The machine goes only after the result is there, and only when the command went well.
func TestHaltComesLast(t *testing.T) {
	var r *Runner
	var seen string
	r = runner(t.Context(), Hooks{Halt: func(a host.Action) { seen = a.String() + " " + r.List()[0].CommandStatus }},
		map[string]Command{"off": command(false, func(context.Context) (Outcome, error) { return Outcome{Halt: host.PowerOff}, nil })})
	if _, err := r.Execute(t.Context(), "x.off", json.RawMessage(`{}`), true); err != nil || seen != "power off SUCCEEDED" {
		t.Fatalf("%q %v", seen, err)
	}
}

func TestProgressReachesTheHooks(t *testing.T) {
	var kinds []string
	r := runner(t.Context(), Hooks{Emit: func(kind string, _ any) { kinds = append(kinds, kind) }}, map[string]Command{
		"step": command(false, func(ctx context.Context) (Outcome, error) {
			events.Report(ctx, event.Progress{})
			return Outcome{}, nil
		}),
	})
	if _, err := r.Execute(t.Context(), "x.step", json.RawMessage(`{}`), true); err != nil || len(kinds) != 1 || kinds[0] != event.KindProgress {
		t.Fatalf("%v %v", kinds, err)
	}
}

// Old results go, so that a long life does not fill the RAM.
func TestResultsAreBounded(t *testing.T) {
	r := runner(t.Context(), Hooks{}, map[string]Command{"fast": ended})
	for range keep + 10 {
		if _, err := r.Execute(t.Context(), "x.fast", json.RawMessage(`{}`), true); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.List()) != keep || len(r.byID) != keep {
		t.Fatalf("%d results, %d ids", len(r.List()), len(r.byID))
	}
}
