// Package steps holds what the agent can do to a machine, one file a step. A
// step's arguments are decoded and checked before any disk is touched.
package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/proto/agent"
)

// Kind is when a step may run.
type Kind string

// The kinds, by the names in Ironic's API.
const (
	Clean   Kind = "clean"
	Deploy  Kind = "deploy"
	Service Kind = "service"
)

// Kinds are all of them.
var Kinds = []Kind{Clean, Deploy, Service}

// ErrUnknown: no such step of that kind.
var ErrUnknown = errors.New("no such step")

// Arg describes an argument to people, as Ironic's argsinfo.
type Arg struct {
	Description string `json:"description"`
	Required    bool   `json:"required"`
}

// Meta describes a step. Its JSON is Ironic's step dict.
type Meta struct {
	Name, Interface string
	// Priority by kind; a kind that is not there can't run the step. Zero means
	// that it runs only when asked for.
	Priority map[Kind]int
	// Destructive steps need an order and write to disks.
	Destructive bool
	Args        map[string]Arg
}

// Result is what a step leaves: JSON for clean_result, deploy_result or service_result.
type Result struct{ Value any }

// Node is what steps read of the node: Ironic's dict.
type Node struct {
	UUID               string         `json:"uuid"`
	Properties         map[string]any `json:"properties"`
	InstanceInfo       map[string]any `json:"instance_info"`
	DriverInternalInfo map[string]any `json:"driver_internal_info"`
}

// RootDevice are the node's root device hints; the instance's win over the node's.
func (n Node) RootDevice() map[string]any {
	for _, from := range []map[string]any{n.InstanceInfo, n.Properties} {
		if hints, ok := from["root_device"].(map[string]any); ok && len(hints) > 0 {
			return hints
		}
	}
	return nil
}

// checked are arguments with rules of their own.
type checked interface{ Check() error }

// nodeAware are arguments that need the node beside what the conductor gave.
type nodeAware interface{ SetNode(Node) }

// Run carries a step out, on a host that lets it write where it may.
type Run func(ctx context.Context, h host.Host) (Result, error)

// Step is one step of the registry.
type Step struct {
	Meta
	bind func(args json.RawMessage, node Node) (Run, error)
}

// Bind decodes and checks a step's arguments; nothing is touched yet.
func (s Step) Bind(args json.RawMessage, node Node) (Run, error) {
	run, err := s.bind(args, node)
	if err != nil {
		return nil, fmt.Errorf("step %s: arguments: %w", s.Name, err)
	}
	return run, nil
}

// Validate says what is wrong with arguments, in the words of their own check.
func (s Step) Validate(args json.RawMessage) error {
	_, err := s.bind(args, Node{})
	return err
}

// New makes a step of a function and its arguments' type. Arguments that A does
// not have are refused: a misspelt one must not be taken for its default.
func New[A any](m Meta, run func(ctx context.Context, h host.Host, a A) (Result, error)) Step {
	return Step{Meta: m, bind: func(args json.RawMessage, node Node) (Run, error) {
		var a A
		if len(args) > 0 && string(args) != "null" {
			dec := json.NewDecoder(bytes.NewReader(args))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&a); err != nil {
				return nil, err
			}
		}
		if n, ok := any(&a).(nodeAware); ok {
			n.SetNode(node)
		}
		if c, ok := any(&a).(checked); ok {
			if err := c.Check(); err != nil {
				return nil, err
			}
		}
		return func(ctx context.Context, h host.Host) (Result, error) {
			r, err := run(ctx, h, a)
			if err != nil {
				return Result{}, fmt.Errorf("step %s: %w", m.Name, err)
			}
			return r, nil
		}, nil
	}}
}

// None are the arguments of a step that takes none.
type None struct{}

// Registry is the steps an agent has.
type Registry []Step

// Find gives a step by kind and name.
func (r Registry) Find(kind Kind, name string) (Step, error) {
	for _, s := range r {
		if _, ok := s.Priority[kind]; ok && s.Name == name {
			return s, nil
		}
	}
	return Step{}, fmt.Errorf("%s step %q: %w", kind, name, ErrUnknown)
}

// List describes the steps of a kind as Ironic wants them.
func (r Registry) List(kind Kind) []agent.Step {
	out := []agent.Step{}
	for _, s := range r {
		p, ok := s.Priority[kind]
		if !ok {
			continue
		}
		d := agent.Step{Step: s.Name, Interface: s.Interface, Priority: p, Abortable: kind != Deploy, Destructive: s.Destructive}
		if len(s.Args) > 0 {
			raw, err := json.Marshal(s.Args)
			if err != nil {
				panic(err) // strings and booleans marshal
			}
			d.ArgsInfo = raw
		}
		out = append(out, d)
	}
	slices.SortStableFunc(out, func(a, b agent.Step) int { return b.Priority - a.Priority })
	return out
}

// Names are the steps of all kinds, for errors and tests.
func (r Registry) Names() []string {
	seen := map[string]bool{}
	for _, s := range r {
		seen[s.Name] = true
	}
	return slices.Sorted(maps.Keys(seen))
}
