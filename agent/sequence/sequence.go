// Package sequence carries out commands one at a time and keeps what became of
// them, as ironic-python-agent does.
package sequence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-metal/slipway/agent/events"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// keep is how many results are kept; the conductor looks at the newest.
const keep = 128

// Refusals: the command was not begun. The API turns them into its status codes.
var (
	ErrBusy        = errors.New("Agent is busy")              //nolint:staticcheck // IPA's words
	ErrNotFound    = errors.New("Not found")                  //nolint:staticcheck // IPA's words
	ErrCommand     = errors.New("Invalid command")            //nolint:staticcheck // IPA's words
	ErrParams      = errors.New("Invalid command parameters") //nolint:staticcheck // IPA's words
	errInterrupted = errors.New("the agent is ending")
)

// Outcome is what a command that went well leaves.
type Outcome struct {
	Result any         // JSON for command_result
	Halt   host.Action // what to do with the machine once the result is there; 0 for nothing
}

// Run carries a command out.
type Run func(ctx context.Context) (Outcome, error)

// Command is one command of an extension.
type Command struct {
	// Async commands run beside the request that began them.
	Async bool
	// WhileBusy commands change nothing and may run beside another.
	WhileBusy bool
	// Parse checks the parameters, before anything is done. Its error is the
	// caller's mistake.
	Parse func(params json.RawMessage) (Run, error)
}

// Set is all commands, by extension and name.
type Set map[string]map[string]Command

// Failure is an error with IPA's type and code.
type Failure struct {
	Type, Message string
	Code          int
	Err           error
	// VersionMismatch gives the command its own status.
	VersionMismatch bool
}

// Error implements error.
func (f *Failure) Error() string { return f.Message + ": " + f.Err.Error() }

// Unwrap implements errors.Unwrap.
func (f *Failure) Unwrap() error { return f.Err }

// Hooks are told of what happens; each may be nil.
type Hooks struct {
	Emit  func(kind string, data any)
	Done  func() // after every asynchronous command
	Halt  func(host.Action)
	Print func(event.Progress) // for the console
}

// Runner carries out commands.
type Runner struct {
	ctx   context.Context
	set   Set
	hooks Hooks
	log   *slog.Logger

	mu      sync.Mutex
	entries []*entry
	byID    map[string]*entry
	wg      sync.WaitGroup
}

type entry struct {
	result agent.CommandResult
	done   chan struct{}
}

// New makes a Runner; commands end when ctx does.
func New(ctx context.Context, set Set, hooks Hooks, log *slog.Logger) *Runner {
	return &Runner{ctx: ctx, set: set, hooks: hooks, log: log, byID: map[string]*entry{}}
}

// Wait returns when no command runs any more.
func (r *Runner) Wait() { r.wg.Wait() }

// Execute begins a command, and with wait stays until it has ended or ctx has.
// A command that carries the slipway_command_id of an earlier one is that one.
func (r *Runner) Execute(ctx context.Context, name string, params json.RawMessage, wait bool) (agent.CommandResult, error) {
	cmd, short, err := r.find(name)
	if err != nil {
		return agent.CommandResult{}, err
	}
	own := commandID(params)
	if e := r.known(own); e != nil {
		return r.view(ctx, e, wait), nil
	}
	run, err := cmd.Parse(params)
	if err != nil {
		return agent.CommandResult{}, fmt.Errorf("%w: %w", ErrParams, err)
	}
	e, fresh, err := r.begin(short, own, cmd.WhileBusy)
	if err != nil {
		return agent.CommandResult{}, err
	}
	if fresh {
		work := func() { r.run(e, name, run, cmd.Async) }
		if cmd.Async {
			r.wg.Go(work)
		} else {
			r.wg.Add(1)
			func() { defer r.wg.Done(); work() }()
		}
	}
	return r.view(ctx, e, wait), nil
}

func (r *Runner) find(name string) (Command, string, error) {
	ext, short, ok := strings.Cut(name, ".")
	if !ok || ext == "" || short == "" {
		return Command{}, "", fmt.Errorf("%w: Command name must be of the form <extension>.<name>", ErrCommand)
	}
	commands, ok := r.set[ext]
	if !ok {
		return Command{}, "", fmt.Errorf("%w: Extension with id %s not found.", ErrNotFound, ext) //nolint:staticcheck // IPA's words
	}
	cmd, ok := commands[short]
	if !ok {
		return Command{}, "", fmt.Errorf("%w: Unknown command: %s", ErrCommand, short)
	}
	return cmd, short, nil
}

// commandID reads the conductor's own id out of any command's parameters; the
// command's result then has it too. Anything but a UUID is no id.
func commandID(params json.RawMessage) string {
	var p struct {
		ID string `json:"slipway_command_id"`
	}
	if json.Unmarshal(params, &p) != nil {
		return "" // Parse will say what is wrong
	}
	id, err := uuid.Parse(p.ID)
	if err != nil {
		return ""
	}
	return id.String()
}

func (r *Runner) known(own string) *entry {
	if own == "" {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[own]
}

// begin makes the entry; fresh is false when the same command was begun meanwhile.
func (r *Runner) begin(short, own string, whileBusy bool) (e *entry, fresh bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if own != "" && r.byID[own] != nil {
		return r.byID[own], false, nil
	}
	if !whileBusy {
		for _, e := range r.entries {
			if e.result.CommandStatus == agent.Running {
				return nil, false, fmt.Errorf("%w: executing command %s", ErrBusy, e.result.CommandName)
			}
		}
	}
	if r.ctx.Err() != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrBusy, errInterrupted)
	}
	id := own
	if id == "" {
		id = uuid.NewString()
	}
	e = &entry{done: make(chan struct{}), result: agent.CommandResult{ID: id, CommandName: short, CommandStatus: agent.Running}}
	r.entries = append(r.entries, e)
	r.byID[id] = e
	for i := 0; len(r.entries) > keep && i < len(r.entries); {
		old := r.entries[i]
		if old.result.CommandStatus == agent.Running {
			i++
			continue
		}
		r.entries = append(r.entries[:i], r.entries[i+1:]...)
		delete(r.byID, old.result.ID)
	}
	return e, true, nil
}

func (r *Runner) run(e *entry, name string, run Run, async bool) {
	start := time.Now()
	if async {
		r.log.Info("command begins", "command", name, "id", e.result.ID)
	}
	ctx := events.WithReporter(r.ctx, func(p event.Progress) {
		if r.hooks.Emit != nil {
			r.hooks.Emit(event.KindProgress, p)
		}
		if r.hooks.Print != nil {
			r.hooks.Print(p)
		}
	})
	out, err := guarded(ctx, run)
	res := result(out, err)
	r.mu.Lock()
	e.result.CommandStatus, e.result.CommandError, e.result.CommandResult = res.CommandStatus, res.CommandError, res.CommandResult
	r.mu.Unlock()
	close(e.done)
	took := time.Since(start).Round(time.Millisecond)
	switch {
	case err != nil:
		r.log.Error("command failed", "command", name, "id", e.result.ID, "took", took.String(), "error", err)
	case async:
		r.log.Info("command done", "command", name, "id", e.result.ID, "took", took.String())
	}
	if async && r.hooks.Done != nil {
		r.hooks.Done()
	}
	if err == nil && out.Halt != 0 && r.hooks.Halt != nil {
		r.hooks.Halt(out.Halt)
	}
}

// guarded turns a panic into an error that carries its stack: one step's defect
// must not end the agent.
func guarded(ctx context.Context, run Run) (out Outcome, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &Failure{Type: "CommandExecutionError", Message: "Command execution failed", Code: 500,
				Err: fmt.Errorf("panic: %v\n%s", v, debug.Stack())}
		}
	}()
	return run(ctx)
}

func result(out Outcome, err error) agent.CommandResult {
	res := agent.CommandResult{CommandStatus: agent.Succeeded}
	if err == nil {
		raw, merr := json.Marshal(out.Result)
		if merr != nil {
			err = fmt.Errorf("result can't be told: %w", merr)
		} else if string(raw) != "null" {
			res.CommandResult = raw
		}
	}
	if err != nil {
		res.CommandStatus = agent.Failed
		res.CommandError = &agent.CommandError{Type: "CommandExecutionError", Code: 500, Message: "Command execution failed", Details: err.Error()}
		var f *Failure
		if errors.As(err, &f) {
			res.CommandError.Type, res.CommandError.Code, res.CommandError.Message = f.Type, f.Code, f.Message
			// What was added around the failure (the step, the disk) must not be lost.
			res.CommandError.Details = strings.Replace(err.Error(), f.Message+": ", "", 1)
			if f.VersionMismatch {
				res.CommandStatus = agent.CleanVersionMismatch
			}
		}
	}
	return res
}

// Get gives one command's result; with wait, after its end.
func (r *Runner) Get(ctx context.Context, id string, wait bool) (agent.CommandResult, error) {
	r.mu.Lock()
	e := r.byID[id]
	r.mu.Unlock()
	if e == nil {
		return agent.CommandResult{}, fmt.Errorf("%w: Command Result with id %s not found.", ErrNotFound, id) //nolint:staticcheck // IPA's words
	}
	return r.view(ctx, e, wait), nil
}

// view copies an entry's result as it stands.
func (r *Runner) view(ctx context.Context, e *entry, wait bool) agent.CommandResult {
	if wait {
		select {
		case <-e.done:
		case <-ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return e.result
}

// List gives all results that are kept, oldest first.
func (r *Runner) List() []agent.CommandResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]agent.CommandResult, len(r.entries))
	for i, e := range r.entries {
		out[i] = e.result
	}
	return out
}
