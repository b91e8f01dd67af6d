// Package commands is the agent's extensions: what the conductor may ask for by
// name, with ironic-python-agent's names, parameters and results.
package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/agent/sequence"
	"github.com/slipway-metal/slipway/agent/steps"
	"github.com/slipway-metal/slipway/proto/agent"
)

// Deps are what the commands act on.
type Deps struct {
	Host     host.Host
	Registry steps.Registry
	Orders   *orders.Book
	// Slipway says whether the conductor is ours; may be nil for no.
	Slipway func() bool
	// AgentLog is the agent's own log so far.
	AgentLog func() []byte
	// Emit tells of steps' begin and end; may be nil.
	Emit func(kind string, data any)
}

// New makes all commands.
func New(d Deps) sequence.Set {
	set := sequence.Set{
		"poll": {
			"get_hardware_info": sync(func(ctx context.Context, _ none) (any, error) { return d.Host.Inventory(ctx) }),
			"set_node_info":     sync(func(context.Context, nodeInfo) (any, error) { return nil, nil }),
		},
		"clean":   d.stepCommands(steps.Clean),
		"deploy":  d.stepCommands(steps.Deploy),
		"service": d.stepCommands(steps.Service),
		"standby": d.standby(),
		"image":   {"install_bootloader": d.installBootloader()},
		"log":     {"collect_system_logs": d.collectLogs()},
		"rescue":  {"finalize_rescue": finalizeRescue()},
		"system":  {"lockdown": halt[none](host.Lockdown)},
	}
	set["flow"] = map[string]sequence.Command{"start_flow": flow(set)}
	return set
}

// none are the parameters of a command that takes none.
type none struct{}

type nodeInfo struct {
	NodeUUID string          `json:"node_uuid"`
	Node     json.RawMessage `json:"node"`
	Ports    json.RawMessage `json:"ports"`
}

// tracked are the parameters that any command may carry for the conductor.
type tracked struct {
	CommandID string       `json:"slipway_command_id"`
	Order     *agent.Order `json:"slipway_order"`
}

// decode reads a command's parameters into p and the conductor's own into
// tracked; a parameter that p does not have is the caller's mistake.
func decode[P any](raw json.RawMessage) (P, tracked, error) {
	var p P
	var t tracked
	if err := json.Unmarshal(raw, &t); err != nil {
		return p, t, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return p, t, err
	}
	delete(all, "slipway_command_id")
	delete(all, "slipway_order")
	rest, err := json.Marshal(all)
	if err != nil {
		return p, t, err
	}
	dec := json.NewDecoder(bytes.NewReader(rest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return p, t, err
	}
	if c, ok := any(&p).(interface{ check() error }); ok {
		return p, t, c.check()
	}
	return p, t, nil
}

// sync makes a command that runs while its caller waits.
func sync[P any](run func(ctx context.Context, p P) (any, error)) sequence.Command {
	return sequence.Command{Parse: func(raw json.RawMessage) (sequence.Run, error) {
		p, _, err := decode[P](raw)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (sequence.Outcome, error) {
			v, err := run(ctx, p)
			return sequence.Outcome{Result: v}, err
		}, nil
	}}
}

// async makes a command that runs beside its caller.
func async[P any](run func(ctx context.Context, p P, t tracked) (sequence.Outcome, error)) sequence.Command {
	return sequence.Command{Async: true, Parse: func(raw json.RawMessage) (sequence.Run, error) {
		p, t, err := decode[P](raw)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (sequence.Outcome, error) { return run(ctx, p, t) }, nil
	}}
}

// halt makes a command whose result is there before the machine goes.
func halt[P any](a host.Action) sequence.Command {
	return async(func(context.Context, P, tracked) (sequence.Outcome, error) {
		return sequence.Outcome{Halt: a}, nil
	})
}

// flow runs commands one after the other and stops at the first that fails.
func flow(set sequence.Set) sequence.Command {
	type params struct {
		Flow []map[string]json.RawMessage `json:"flow"`
	}
	return sequence.Command{Async: true, Parse: func(raw json.RawMessage) (sequence.Run, error) {
		p, _, err := decode[params](raw)
		if err != nil {
			return nil, err
		}
		type bound struct {
			name string
			run  sequence.Run
		}
		var all []bound
		for _, one := range p.Flow {
			for name, params := range one {
				ext, short, _ := cut(name)
				cmd, ok := set[ext][short]
				if !ok || ext == "flow" {
					return nil, fmt.Errorf("unknown command: %s", name)
				}
				run, err := cmd.Parse(params)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				all = append(all, bound{name, run})
			}
		}
		return func(ctx context.Context) (sequence.Outcome, error) {
			var results []any
			for _, b := range all {
				out, err := b.run(ctx)
				if err != nil {
					return sequence.Outcome{}, fmt.Errorf("%s: %w", b.name, err)
				}
				results = append(results, map[string]any{"command_name": b.name, "command_result": out.Result})
				if out.Halt != 0 {
					return sequence.Outcome{Result: results, Halt: out.Halt}, nil
				}
			}
			return sequence.Outcome{Result: results}, nil
		}, nil
	}}
}

type rescueParams struct {
	Password *string `json:"rescue_password"`
	Hashed   bool    `json:"hashed"`
}

func (p *rescueParams) check() error {
	if p.Password == nil || *p.Password == "" {
		return errors.New("rescue_password is missing")
	}
	return nil
}

// finalizeRescue fails with a reason: this ramdisk has no login to give the
// password to, and saying yes would leave the user outside.
func finalizeRescue() sequence.Command {
	return sync(func(context.Context, rescueParams) (any, error) {
		return nil, errors.New("this ramdisk has no SSH server, so no rescue login: boot a rescue ramdisk of your own (driver_info rescue_ramdisk)")
	})
}
