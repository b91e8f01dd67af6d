package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/agent/sequence"
	"github.com/slipway-metal/slipway/agent/steps"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// managers are the versions the conductor pins between get and execute.
var managers = map[string]string{agent.HardwareManagerName: agent.HardwareManagerVersion}

// listParams are the parameters of get_*_steps.
type listParams struct {
	Node  json.RawMessage `json:"node"`
	Ports json.RawMessage `json:"ports"`
}

// stepParams are the parameters of execute_*_step. The step stays raw: a
// malformed one is a failed command, not a bad request (recorded).
type stepParams struct {
	Step           json.RawMessage   `json:"step"`
	Node           json.RawMessage   `json:"node"`
	Ports          json.RawMessage   `json:"ports"`
	CleanVersion   map[string]string `json:"clean_version"`
	DeployVersion  map[string]string `json:"deploy_version"`
	ServiceVersion map[string]string `json:"service_version"`
}

func (d Deps) stepCommands(kind steps.Kind) map[string]sequence.Command {
	return map[string]sequence.Command{
		"get_" + string(kind) + "_steps": sync(func(context.Context, listParams) (any, error) {
			return map[string]any{
				string(kind) + "_steps":    map[string][]agent.Step{agent.HardwareManagerName: d.Registry.List(kind)},
				"hardware_manager_version": managers,
			}, nil
		}),
		"execute_" + string(kind) + "_step": async(func(ctx context.Context, p stepParams, t tracked) (sequence.Outcome, error) {
			return d.execute(ctx, kind, p, t.Order)
		}),
	}
}

// execute resolves, checks and runs one step.
func (d Deps) execute(ctx context.Context, kind steps.Kind, p stepParams, order *agent.Order) (sequence.Outcome, error) {
	for _, v := range []map[string]string{p.CleanVersion, p.DeployVersion, p.ServiceVersion} {
		if v != nil && !maps.Equal(v, managers) {
			return sequence.Outcome{}, &sequence.Failure{
				Type: "VersionMismatch", Code: 409, VersionMismatch: true,
				Message: "Hardware managers version mismatch, reload agent with correct version",
				Err:     fmt.Errorf("Current versions: %v, versions used by ironic: %v", managers, v), //nolint:staticcheck // IPA's words
			}
		}
	}
	var dict struct {
		Step string          `json:"step"`
		Args json.RawMessage `json:"args"`
	}
	if err := json.Unmarshal(p.Step, &dict); err != nil || dict.Step == "" {
		return sequence.Outcome{}, failed(fmt.Errorf("Malformed %s_step, no \"step\" key: %s", kind, p.Step)) //nolint:staticcheck // IPA's words
	}
	step, err := d.Registry.Find(kind, dict.Step)
	if err != nil {
		return sequence.Outcome{}, &sequence.Failure{
			Type: "HardwareManagerMethodNotFound", Code: 500, Message: "No HardwareManager found to handle method",
			Err: fmt.Errorf("Could not find method: %s", dict.Step), //nolint:staticcheck // IPA's words
		}
	}
	result, err := d.run(ctx, step, dict.Args, p.Node, order)
	if err != nil {
		return sequence.Outcome{}, failed(err)
	}
	return sequence.Outcome{Result: map[string]any{
		string(kind) + "_result": result.Value,
		string(kind) + "_step":   d.echo(p.Step),
	}}, nil
}

// echo is the step as the result repeats it. A stock Ironic compares it with the
// step it sent; ours knows commands by their id, and gets no config drive, with
// its secrets, back at every look.
func (d Deps) echo(step json.RawMessage) json.RawMessage {
	if d.Slipway == nil || !d.Slipway() {
		return step
	}
	var dict map[string]json.RawMessage
	if json.Unmarshal(step, &dict) != nil {
		return step
	}
	delete(dict, "args")
	short, err := json.Marshal(dict)
	if err != nil {
		return step
	}
	return short
}

func failed(err error) error {
	return &sequence.Failure{Type: "CommandExecutionError", Code: 500, Message: "Command execution failed", Err: err}
}

// run binds the arguments before the order is used up, and uses the order up
// before the first disk is touched.
func (d Deps) run(ctx context.Context, step steps.Step, args, rawNode json.RawMessage, order *agent.Order) (steps.Result, error) {
	var node steps.Node
	if len(rawNode) > 0 {
		if err := json.Unmarshal(rawNode, &node); err != nil {
			return steps.Result{}, fmt.Errorf("step %s: node: %w", step.Name, err)
		}
	}
	run, err := step.Bind(args, node)
	if err != nil {
		return steps.Result{}, err
	}
	var permit orders.Permit
	if step.Destructive {
		if permit, err = d.Orders.Take(order, step.Name); err != nil {
			return steps.Result{}, err
		}
	}
	start := time.Now()
	d.emit(event.Step{Step: step.Name, Status: "started"})
	// A step that panics must still be seen to end.
	end := event.Step{Step: step.Name, Status: "failed", Error: "panic"}
	defer func() {
		end.Seconds = time.Since(start).Seconds()
		d.emit(end)
	}()
	res, err := run(ctx, permit.Guard(d.Host))
	if err != nil {
		end.Error = err.Error()
		return steps.Result{}, errors.Join(err, ctx.Err())
	}
	end.Status, end.Error = "succeeded", ""
	return res, nil
}

func (d Deps) emit(e event.Step) {
	if d.Emit != nil {
		d.Emit(event.KindStep, e)
	}
}
