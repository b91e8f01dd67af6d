package store

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/slipway-metal/slipway/proto/agent"
)

// Keys of driver_internal_info that describe the node's running agent and what
// the flows keep beside it. Those without the prefix are Ironic's.
const (
	KeyToken     = "agent_secret_token"
	KeyURL       = "agent_url"
	KeyVersion   = "agent_version"
	KeyVerifyCA  = "agent_verify_ca"
	KeyHeartbeat = "agent_last_heartbeat"
	KeyBootID    = "slipway_boot_id"
	KeyBoot      = "slipway_boot"         // when the network boot under way was made
	KeyNonce     = "slipway_nonce_digest" // of the nonce that earned the token
	KeyDeploy    = "slipway_deploy"       // facts of the last deploy, for plan and handoff
	// KeyHalt marks a node whose machine may still run the agent of work that has
	// ended without it: aborted, or failed because the agent was not heard of. Such
	// an agent may go on writing. The mark is set by the transaction that ends the
	// work, so it survives a crash; the flows switch the machine off.
	KeyHalt = "slipway_halt"
)

// ErrNotInspected means that the node's hardware is not known yet.
var ErrNotInspected = errors.New("was never inspected: its disks are unknown")

// Hardware decodes the node's inventory, or ErrNotInspected.
func (n *Node) Hardware() (agent.Inventory, error) {
	var inv agent.Inventory
	if len(n.Inventory) == 0 {
		return inv, fmt.Errorf("node %s %w", n.UUID, ErrNotInspected)
	}
	if err := json.Unmarshal(n.Inventory, &inv); err != nil {
		return inv, fmt.Errorf("node %s: stored inventory: %w", n.UUID, err)
	}
	return inv, nil
}

// RootHints are the node's root device hints: the instance's before the
// machine's. An empty object hints at nothing.
func (n *Node) RootHints() (map[string]any, error) {
	for _, m := range []map[string]any{n.InstanceInfo, n.Properties} {
		v, ok := m["root_device"]
		if !ok || v == nil {
			continue
		}
		hints, ok := v.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("root_device is %T, want an object of hints such as {\"serial\": \"…\"}", v)
		}
		if len(hints) > 0 {
			return hints, nil
		}
	}
	return nil, nil
}
