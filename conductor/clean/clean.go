// Package clean runs clean steps on a node: the automated ones on its way to
// available, or those a user chose on a manageable node.
package clean

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/slipway-metal/slipway/conductor/agentclient"
	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/agent"
)

// Start is the payload with which the API starts the work.
type Start struct {
	// Steps are the user's; nil asks for the automated ones.
	Steps []agent.Step `json:"clean_steps,omitempty"`
}

type payload struct {
	Start
	Ramdisk flow.Ramdisk   `json:"ramdisk"`
	Plan    []flow.Planned `json:"plan,omitempty"`
	Planned bool           `json:"planned,omitempty"`
}

const execute = "clean.execute_clean_step"

// Handler cleans.
func Handler(d *flow.Deps) work.Handler {
	return func(ctx context.Context, j *work.Job) work.Result {
		var p payload
		if err := flow.Load(j, &p); err != nil {
			return work.Fail{Cause: err, Next: "retry the verb"}
		}
		manual := j.Node.TargetProvisionState == state.Manageable
		if flow.Fake(j.Node) || !manual && j.Node.AutomatedClean != nil && !*j.Node.AutomatedClean {
			return ended(manual)
		}
		if res := d.Ensure(ctx, j, &p.Ramdisk, &p); res != nil {
			return res
		}
		if !p.Planned {
			if res := plan(ctx, d, j, &p, manual); res != nil {
				return res
			}
		}
		params := func(s *flow.Planned) (any, error) { return d.StepParams(ctx, j.Node, s, nil) }
		if res := d.Run(ctx, j, p.Plan, params, &p); res != nil {
			return res
		}
		return ended(manual)
	}
}

// ended keeps the ramdisk up: what follows takes it over (fast track).
func ended(manual bool) work.Result {
	verb := ""
	if manual {
		verb = string(state.VerbManage)
	}
	return work.Done{Verb: verb, Set: func(n *store.Node) error {
		n.CleanStep = map[string]any{}
		return nil
	}}
}

func plan(ctx context.Context, d *flow.Deps, j *work.Job, p *payload, manual bool) work.Result {
	offered, err := offeredSteps(ctx, d, j)
	if err != nil {
		if errors.Is(err, agentclient.ErrUnreachable) {
			return d.AgentFailed(j, err, "before the first step", p)
		}
		return work.Fail{Cause: fmt.Errorf("ask the agent for its clean steps: %w", err), Next: "retry the verb to boot the ramdisk afresh"}
	}
	chosen := automated(offered)
	if manual {
		if chosen, err = pick(p.Steps, offered); err != nil {
			return work.Fail{Cause: err, Next: "name steps that the agent offers"}
		}
	}
	disks, err := Disks(j.Node)
	if err != nil {
		return work.Fail{Cause: err, Next: "inspect the node again, then retry the verb"}
	}
	p.Plan = make([]flow.Planned, 0, len(chosen))
	for _, s := range chosen {
		var may []agent.DiskIdentity
		if s.Destructive || destructive[s.Step] {
			may = disks
		}
		p.Plan = append(p.Plan, flow.NewStep(execute, s, may...))
	}
	p.Planned = true
	if err := j.Save(ctx, p); err != nil {
		return work.Retry{After: time.Second, Cause: err}
	}
	return nil
}

// destructive are the steps by Ironic's names that need an order.
var destructive = map[string]bool{"erase_devices": true, "erase_devices_metadata": true, "erase_devices_express": true}

func offeredSteps(ctx context.Context, d *flow.Deps, j *work.Job) ([]agent.Step, error) {
	a, err := d.AgentOf(j.Node)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	ports, err := d.PortDicts(ctx, j.Node)
	if err != nil {
		return nil, err
	}
	c, err := a.Execute(ctx, "clean.get_clean_steps", map[string]any{"node": flow.NodeDict(j.Node), "ports": ports}, true)
	if err != nil {
		return nil, err
	}
	if c.CommandStatus != agent.Succeeded {
		if c.CommandError != nil {
			return nil, fmt.Errorf("%s", c.CommandError.Message)
		}
		return nil, fmt.Errorf("the command ended as %s", c.CommandStatus)
	}
	var res agent.StepsResult
	if err := json.Unmarshal(c.CommandResult, &res); err != nil {
		return nil, fmt.Errorf("the agent's list of steps: %w", err)
	}
	var out []agent.Step
	for _, steps := range res.CleanSteps {
		out = append(out, steps...)
	}
	return out, nil
}

// automated are the steps with a priority, the highest first; equal ones by name.
func automated(offered []agent.Step) []agent.Step {
	out := slices.DeleteFunc(slices.Clone(offered), func(s agent.Step) bool { return s.Priority <= 0 })
	slices.SortFunc(out, func(a, b agent.Step) int {
		if a.Priority != b.Priority {
			return b.Priority - a.Priority
		}
		if a.Step < b.Step {
			return -1
		}
		return 1
	})
	return out
}

// pick checks the user's steps against the offered ones before any of them runs.
func pick(wanted, offered []agent.Step) ([]agent.Step, error) {
	out := make([]agent.Step, 0, len(wanted))
	for _, w := range wanted {
		i := slices.IndexFunc(offered, func(o agent.Step) bool { return o.Step == w.Step && o.Interface == w.Interface })
		if i < 0 {
			names := make([]string, len(offered))
			for k, o := range offered {
				names[k] = o.Interface + "." + o.Step
			}
			slices.Sort(names)
			return nil, fmt.Errorf("the agent has no clean step %s.%s; it has %v", w.Interface, w.Step, names)
		}
		s := offered[i]
		s.Args = w.Args
		out = append(out, s)
	}
	return out, nil
}

// Disks are the identities of the node's inspected disks.
func Disks(n *store.Node) ([]agent.DiskIdentity, error) {
	inv, err := n.Hardware()
	if err != nil {
		return nil, err
	}
	out := make([]agent.DiskIdentity, len(inv.Disks))
	for i, disk := range inv.Disks {
		out[i] = disk.Identity()
	}
	return out, nil
}
