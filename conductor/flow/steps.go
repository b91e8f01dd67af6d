package flow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-metal/slipway/conductor/agentclient"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// Planned is one step of a plan: data in the work's payload, written before
// each side effect and recognised after a crash.
type Planned struct {
	ID string `json:"id"` // our command id, for agents that deduplicate by it
	// Command is the agent's command ("clean.execute_clean_step", …).
	Command string     `json:"command"`
	Step    agent.Step `json:"step"`
	// Disks are the only ones the step may touch; with any, it carries an order.
	Disks  []agent.DiskIdentity `json:"disks,omitempty"`
	Status string               `json:"status,omitempty"` // "", sending, running, done
	// Before is the id of the agent's last command when this one was about to be
	// sent: a later one is this one, also with agents that ignore our ids.
	Before  string          `json:"before,omitempty"`
	AgentID string          `json:"agent_id,omitempty"`
	Started time.Time       `json:"started,omitzero"`
	Ended   time.Time       `json:"ended,omitzero"`
	Result  json.RawMessage `json:"result,omitempty"`
}

// Step statuses.
const (
	sending = "sending"
	running = "running"
	done    = "done"
)

// NewStep plans a step.
func NewStep(command string, s agent.Step, disks ...agent.DiskIdentity) Planned {
	return Planned{ID: uuid.NewString(), Command: command, Step: s, Disks: disks}
}

// Params builds a command's params at the time of sending; secrets and large
// arguments thus stay out of the payload.
type Params func(s *Planned) (any, error)

// Run carries the plan on. It returns nil when every step is done, else the
// Result the handler must return with payload p (which holds plan).
func (d *Deps) Run(ctx context.Context, j *work.Job, plan []Planned, params Params, p any) work.Result {
	a, err := d.AgentOf(j.Node)
	if err != nil {
		return work.Fail{Cause: err, Next: "retry the verb to boot the ramdisk afresh"}
	}
	defer a.Close()
	for i := range plan {
		s := &plan[i]
		if s.Status == done {
			continue
		}
		if res := d.step(ctx, j, a, s, params, p); res != nil {
			return res
		}
	}
	return nil
}

func (d *Deps) step(ctx context.Context, j *work.Job, a Agent, s *Planned, params Params, p any) work.Result {
	what := "during step " + s.Step.Step
	if s.Status != "" {
		cmds, err := a.Commands(ctx)
		if err != nil {
			return d.AgentFailed(j, err, what, p)
		}
		if c := find(cmds, s); c != nil {
			return d.observe(ctx, j, s, c, p)
		}
		if s.Status == running {
			return d.failed(ctx, j, s, "the agent started anew and does not know the step any more: it was interrupted")
		}
		// It was about to be sent and never arrived: send it now.
	}
	if s.Status == "" {
		cmds, err := a.Commands(ctx)
		if err != nil {
			return d.AgentFailed(j, err, what, p)
		}
		if len(cmds) > 0 {
			s.Before = cmds[len(cmds)-1].ID
		}
		s.Status, s.Started = sending, d.Now()
		if err := j.Save(ctx, p); err != nil {
			return work.Retry{After: time.Second, Cause: err}
		}
	}
	body, err := params(s)
	if err != nil {
		return work.Fail{Cause: fmt.Errorf("step %s: %w", s.Step.Step, err), Next: "correct what the message names, then retry the verb"}
	}
	c, err := a.Execute(ctx, s.Command, body, false)
	if err != nil {
		if errors.Is(err, agentclient.ErrUnreachable) || errors.Is(err, agentclient.ErrBusy) || errors.Is(err, agentclient.ErrToken) {
			return d.AgentFailed(j, err, what, p)
		}
		return d.failed(ctx, j, s, err.Error())
	}
	s.Status, s.AgentID = running, c.ID
	d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopCommand, Fact: "step " + s.Step.Step + " started", OK: true})
	return d.observe(ctx, j, s, c, p)
}

// find recognises s among the agent's commands.
func find(cmds []agent.CommandResult, s *Planned) *agent.CommandResult {
	for i := range cmds {
		if cmds[i].ID == s.AgentID || cmds[i].ID == s.ID {
			return &cmds[i]
		}
	}
	if s.Status != sending || len(cmds) == 0 {
		return nil
	}
	last := &cmds[len(cmds)-1]
	if last.ID != s.Before && "."+last.CommandName == suffix(s.Command) {
		return last
	}
	return nil
}

func suffix(command string) string {
	for i := range command {
		if command[i] == '.' {
			return command[i:]
		}
	}
	return command
}

func (d *Deps) observe(ctx context.Context, j *work.Job, s *Planned, c *agent.CommandResult, p any) work.Result {
	s.AgentID = c.ID
	switch c.CommandStatus {
	case agent.Running:
		s.Status = running
		// It answered just now, whenever its last heartbeat was.
		return work.Wait{Until: d.Now().Add(d.Config.Silence), For: "step " + s.Step.Step + " to end", Poll: d.Config.Poll, Payload: p}
	case agent.Succeeded:
		s.Status, s.Ended, s.Result = done, d.Now(), c.CommandResult
		d.Record(ctx, j.Node.UUID, event.Evidence{
			Hop: event.HopCommand, Fact: "step " + s.Step.Step + " ended", OK: true,
			Detail: map[string]any{"seconds": s.Ended.Sub(s.Started).Seconds()},
		})
		if err := j.Save(ctx, p); err != nil {
			return work.Retry{After: time.Second, Cause: err}
		}
		return nil
	}
	return d.failed(ctx, j, s, strings.TrimPrefix(reason(c.CommandError), "step "+s.Step.Step+": "))
}

// executionFailed is what IPA says of every failure; the reason is in the details.
const executionFailed = "Command execution failed"

// reason is the agent's error in one line.
func reason(e *agent.CommandError) string {
	switch {
	case e == nil || e.Message == "" && e.Details == "":
		return "the agent gave no reason"
	case e.Details == "" || e.Details == e.Message:
		return e.Message
	case e.Message == executionFailed || e.Message == "":
		return strings.TrimPrefix(e.Details, executionFailed+": ")
	}
	return e.Message + ": " + e.Details
}

func (d *Deps) failed(ctx context.Context, j *work.Job, s *Planned, msg string) work.Result {
	d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopCommand, Fact: "step " + s.Step.Step + " failed", Detail: map[string]any{"error": msg}})
	return work.Fail{
		Cause: fmt.Errorf("step %s: %s", s.Step.Step, msg),
		Next:  "mend what the message names, then retry the verb; `slipway node logs` has the agent's log",
	}
}

// CommandID is s's id where the node's agent is one of ours, else "". A stock
// ironic-python-agent takes every parameter that it does not know for an argument
// of the step, which then fails (seen with 13.0.0): it must get none of ours.
func CommandID(n *store.Node, s *Planned) string {
	if str(n.DriverInternalInfo, store.KeyBootID) == "" { // only ours tells its boot id
		return ""
	}
	return s.ID
}

// orderLife is how long an order may wait for its agent.
const orderLife = 10 * time.Minute

// StepParams are the params of an execute_*_step command: the step, the node
// and, for a destructive step, a signed order.
func (d *Deps) StepParams(ctx context.Context, n *store.Node, s *Planned, args map[string]any) (agent.StepParams, error) {
	node, err := json.Marshal(NodeDict(n))
	if err != nil {
		return agent.StepParams{}, err
	}
	dicts, err := d.PortDicts(ctx, n)
	if err != nil {
		return agent.StepParams{}, err
	}
	ports, err := json.Marshal(dicts)
	if err != nil {
		return agent.StepParams{}, err
	}
	step := s.Step
	if args != nil {
		step.Args = args
	}
	out := agent.StepParams{Step: step, Node: node, Ports: ports, CommandID: CommandID(n, s)}
	if bootID := str(n.DriverInternalInfo, store.KeyBootID); len(s.Disks) > 0 && bootID != "" {
		order := agent.Order{
			Node: n.UUID, BootID: bootID, Disks: s.Disks, Action: step.Step,
			Generation: s.Started.UnixNano(), Expiry: d.Now().Add(orderLife),
		}.Sign(str(n.DriverInternalInfo, store.KeyToken))
		out.Order = &order
	}
	return out, nil
}
