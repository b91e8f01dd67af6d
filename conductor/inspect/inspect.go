// Package inspect finds out what a machine is made of, by its agent.
package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/slipway-metal/slipway/conductor/agentclient"
	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

type payload struct {
	Ramdisk flow.Ramdisk `json:"ramdisk"`
	Begun   time.Time    `json:"begun,omitzero"`
}

// Handler inspects: the agent posts its inventory by itself after a fresh boot;
// one that is up already, or a stock one that was not told to, is asked for it.
func Handler(d *flow.Deps) work.Handler {
	return func(ctx context.Context, j *work.Job) work.Result {
		now := d.Now()
		if flow.Fake(j.Node) {
			return work.Done{Set: func(n *store.Node) error { n.InspectionFinishedAt = now; return nil }}
		}
		var p payload
		if err := flow.Load(j, &p); err != nil {
			return work.Fail{Cause: err, Next: "retry the verb"}
		}
		if p.Begun.IsZero() {
			p.Begun = now
			if err := j.Update(ctx, func(n *store.Node) error {
				n.InspectionStartedAt, n.InspectionFinishedAt = now, time.Time{}
				return nil
			}); err != nil {
				return work.Retry{After: time.Second, Cause: err}
			}
		}
		// continue_inspection stamps the finish.
		if j.Node.InspectionFinishedAt.After(p.Begun) {
			return work.Done{}
		}
		if res := d.Ensure(ctx, j, &p.Ramdisk, &p); res != nil {
			return res
		}
		inv, err := ask(ctx, d, j.Node)
		if err != nil {
			if errors.Is(err, agentclient.ErrUnreachable) || errors.Is(err, agentclient.ErrBusy) {
				return d.AgentFailed(j, err, "during the inspection", &p)
			}
			return work.Fail{Cause: err, Next: "`slipway node logs` has the agent's log; retry `inspect`"}
		}
		d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopInventory, Fact: "inventory received", OK: true})
		return work.Done{Set: func(n *store.Node) error {
			n.InspectionFinishedAt = now
			return d.ApplyInventory(n, agent.Inspection{Inventory: inv})
		}}
	}
}

func ask(ctx context.Context, d *flow.Deps, n *store.Node) (agent.Inventory, error) {
	var inv agent.Inventory
	a, err := d.AgentOf(n)
	if err != nil {
		return inv, err
	}
	defer a.Close()
	c, err := a.Execute(ctx, "poll.get_hardware_info", map[string]any{}, true)
	if err != nil {
		return inv, fmt.Errorf("ask the agent for its inventory: %w", err)
	}
	if c.CommandStatus != agent.Succeeded {
		msg := c.CommandStatus
		if c.CommandError != nil {
			msg = c.CommandError.Message
		}
		return inv, fmt.Errorf("ask the agent for its inventory: %s", msg)
	}
	if err := json.Unmarshal(c.CommandResult, &inv); err != nil {
		return inv, fmt.Errorf("the agent's inventory: %w", err)
	}
	return inv, nil
}
