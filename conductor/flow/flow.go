// Package flow holds what the flows (verify, inspect, clean, deploy, …) share:
// their dependencies, bringing a node's agent up, and running agent steps so
// that a conductor killed at any instruction finds its place again.
package flow

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/slipway-metal/slipway/conductor/agentclient"
	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// Agent is what flows need of agentclient.Client.
type Agent interface {
	Execute(ctx context.Context, name string, params any, wait bool) (*agent.CommandResult, error)
	Commands(ctx context.Context) ([]agent.CommandResult, error)
	Close()
}

// Config are the deadlines of the flows.
type Config struct {
	// Callback is how long a machine has from power-on to its agent's first heartbeat.
	Callback time.Duration
	// Silence is how long a working agent may not be heard of.
	Silence time.Duration
	// FastTrack is the age of a last heartbeat up to which the ramdisk is taken to be up still.
	FastTrack time.Duration
	// PowerOff is how long a machine has to switch itself off.
	PowerOff time.Duration
	// Poll is how often a running command is asked about when no heartbeat comes.
	Poll time.Duration
}

// Defaults are Ironic's callback timeout and, for the rest, a few heartbeats.
var Defaults = Config{
	Callback:  30 * time.Minute,
	Silence:   2 * time.Minute,
	FastTrack: 90 * time.Second,
	PowerOff:  time.Minute,
	Poll:      5 * time.Second,
}

// Deps are the edges that flows act through.
type Deps struct {
	Store store.Store
	// BMC opens the node's BMC.
	BMC func(n *store.Node) (bmc.BMC, error)
	// Dial makes a client to the node's agent.
	Dial func(callbackURL, token, verifyCA string) (Agent, error)
	// LastHeartbeat says when the node's agent was last heard of; zero when never.
	LastHeartbeat func(nodeUUID string) time.Time
	// Record keeps a fact about a hop.
	Record func(ctx context.Context, nodeUUID string, e event.Evidence)
	// ApplyInventory stores what an inspection found on the node.
	ApplyInventory func(n *store.Node, inv agent.Inspection) error
	Secrets        Secrets
	Now            func() time.Time
	Log            *slog.Logger
	Config         Config

	machines machines
}

// DialAgent is the Deps.Dial of production.
func DialAgent(callbackURL, token, verifyCA string) (Agent, error) {
	return agentclient.New(callbackURL, token, verifyCA)
}

func str(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}

// AgentOf dials the node's agent.
func (d *Deps) AgentOf(n *store.Node) (Agent, error) {
	info := n.DriverInternalInfo
	if str(info, store.KeyURL) == "" || str(info, store.KeyToken) == "" {
		return nil, fmt.Errorf("node %s has no agent that called back", n.UUID)
	}
	return d.Dial(str(info, store.KeyURL), str(info, store.KeyToken), str(info, store.KeyVerifyCA))
}

// Fake says whether the node is Ironic's fake-hardware, whose flows touch no
// machine: every interface answers as if all went well.
func Fake(n *store.Node) bool { return n.Driver == "fake-hardware" }

// Load decodes a handler's payload into p; an empty one leaves p as it is.
func Load(j *work.Job, p any) error {
	if len(j.Payload) == 0 {
		return nil
	}
	if err := json.Unmarshal(j.Payload, p); err != nil {
		return fmt.Errorf("node %s: payload of its work: %w", j.Node.UUID, err)
	}
	return nil
}

// NodeDict is the node as agent commands carry it: Ironic's fields, the token masked.
func NodeDict(n *store.Node) map[string]any {
	info := make(map[string]any, len(n.DriverInternalInfo))
	for k, v := range n.DriverInternalInfo {
		if k == store.KeyToken {
			v = "******"
		}
		info[k] = v
	}
	// The config drive travels as an argument of its step, once.
	instance := make(map[string]any, len(n.InstanceInfo))
	for k, v := range n.InstanceInfo {
		if k != "configdrive" {
			instance[k] = v
		}
	}
	return map[string]any{
		"uuid": n.UUID, "name": n.Name, "driver": n.Driver, "properties": n.Properties,
		"instance_info": instance, "driver_internal_info": info, "provision_state": string(n.ProvisionState),
		"target_provision_state": string(n.TargetProvisionState), "driver_info": map[string]any{},
		"resource_class": n.ResourceClass, "extra": n.Extra, "instance_uuid": n.InstanceUUID,
		"traits": n.Traits, "raid_config": n.RaidConfig, "target_raid_config": n.TargetRaidConfig,
	}
}

// PortDicts are the node's ports as agent commands carry them.
func (d *Deps) PortDicts(ctx context.Context, n *store.Node) ([]map[string]any, error) {
	ports, err := d.Store.Ports(ctx, store.PortFilter{NodeUUID: n.UUID})
	if err != nil {
		return nil, fmt.Errorf("node %s: ports: %w", n.UUID, err)
	}
	out := make([]map[string]any, len(ports))
	for i, p := range ports {
		out[i] = map[string]any{"uuid": p.UUID, "address": p.Address, "pxe_enabled": p.PXEEnabled, "extra": p.Extra}
	}
	return out, nil
}
