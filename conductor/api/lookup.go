package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
	"github.com/slipway-metal/slipway/proto/ironic"
)

// maxAddresses bounds the MACs of one lookup.
const maxAddresses = 256

// claim is who a machine says it is.
type claim struct {
	uuid   string
	macs   []string
	nonce  string
	bootID string
	peer   string // its address on the network
}

// lookup tells an agent which node it is, and gives it its token once.
//
// A Slipway agent earns the token by the nonce of its boot, which works once.
// A stock agent has none: the first that asks gets the token, later ones see
// the mask, and the node's trust is no better than that.
func (s *server) lookup(w http.ResponseWriter, r *http.Request) {
	c, err := readClaim(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n, err := s.claimed(r.Context(), c)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	token, err := s.admit(r.Context(), n, c)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.writeJSON(w, r, http.StatusOK, s.lookupAnswer(r, n, token))
}

func readClaim(r *http.Request) (*claim, error) {
	q := r.URL.Query()
	c := &claim{
		uuid: q.Get("node_uuid"), nonce: r.Header.Get(agent.HeaderNonce), bootID: clean(r.Header.Get(agent.HeaderBootID), 64), peer: r.RemoteAddr,
	}
	if host, _, err := net.SplitHostPort(c.peer); err == nil {
		c.peer = host
	}
	list := strings.Split(q.Get("addresses"), ",")
	if len(list) > maxAddresses {
		return nil, bad("More than %d addresses", maxAddresses)
	}
	for _, a := range list {
		// Ironic ignores what is no MAC: InfiniBand ports have longer addresses.
		if mac, ok := normalMAC(a); ok {
			c.macs = append(c.macs, mac)
		}
	}
	if c.uuid == "" && len(c.macs) == 0 {
		return nil, bad("At least one of 'addresses' and 'node_uuid' parameters is required")
	}
	if c.uuid != "" && !isUUID(c.uuid) {
		return nil, bad("Expected UUID for node_uuid: %s", clip(c.uuid))
	}
	return c, nil
}

// claimed finds the node that c names. Unknown nodes, ambiguous MACs and states
// in which no agent is expected look the same from outside.
func (s *server) claimed(ctx context.Context, c *claim) (*store.Node, error) {
	owners := map[string]bool{}
	for _, mac := range c.macs {
		p, err := s.store.PortByAddress(ctx, mac)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return nil, fmt.Errorf("lookup of %s: %w", mac, err)
		default:
			owners[p.NodeUUID] = true
		}
	}
	ident := c.uuid
	if ident == "" {
		if len(owners) != 1 {
			return nil, notFound()
		}
		for ident = range owners {
		}
	}
	n, err := s.store.Node(ctx, ident)
	if errors.Is(err, store.ErrNotFound) {
		return nil, notFound()
	}
	if err != nil {
		return nil, fmt.Errorf("lookup of node %s: %w", ident, err)
	}
	allowed := state.LookupAllowed
	if s.cfg.FastTrack {
		allowed = state.FastTrackLookup
	}
	if !slices.Contains(allowed, n.ProvisionState) {
		s.tell(ctx, n.UUID, event.Evidence{Hop: event.HopLookup, Fact: "lookup refused: no agent is expected in state " + string(n.ProvisionState), Detail: map[string]any{"peer": c.peer}})
		return nil, notFound()
	}
	if delete(owners, n.UUID); len(owners) > 0 {
		others := sortedKeys(owners)
		s.alarm(ctx, n, event.HopLookup, "lookup refused: the machine has a MAC of node "+others[0]+" too", c.peer, false)
		return nil, client(http.StatusConflict, "Node %s is claimed by a machine that has MAC addresses of another node, too; correct the ports.", n.UUID)
	}
	return n, nil
}

// admit decides whether the claimant gets the token, and returns it or the mask.
func (s *server) admit(ctx context.Context, n *store.Node, c *claim) (string, error) {
	if c.nonce != "" {
		return s.admitByNonce(ctx, n, c)
	}
	// Without a nonce a token is given only where an agent is expected, and once.
	if info(n, store.KeyToken) != "" || !slices.Contains(state.LookupAllowed, n.ProvisionState) {
		if info(n, store.KeyNonce) != "" {
			s.alarm(ctx, n, event.HopLookup, "lookup without a nonce while another machine holds the token", c.peer, false)
		}
		return ironic.Mask, nil
	}
	return s.issue(ctx, n, c)
}

// admitByNonce lets the boot that spent a nonce ask again with it as long as the
// token it got was never used: the answer was lost on the way.
func (s *server) admitByNonce(ctx context.Context, n *store.Node, c *claim) (string, error) {
	now := s.now()
	b, err := s.store.SpendNonce(ctx, c.nonce, now)
	switch {
	case err == nil && b.NodeUUID == n.UUID && (b.MAC == "" || len(c.macs) == 0 || slices.Contains(c.macs, b.MAC)):
		return s.issue(ctx, n, c)
	case err == nil:
		return "", s.refuseClaim(ctx, n, c, "lookup with a nonce made for another machine")
	case errors.Is(err, store.ErrExists):
		again := info(n, store.KeyNonce) == digest(c.nonce) && c.bootID != "" && info(n, store.KeyBootID) == c.bootID
		if again && s.live.LastHeartbeat(n.UUID).IsZero() {
			return s.issue(ctx, n, c)
		}
		return "", s.refuseClaim(ctx, n, c, "lookup with a nonce that was spent already")
	case errors.Is(err, store.ErrNotFound):
		return "", s.refuseClaim(ctx, n, c, "lookup with an unknown nonce")
	}
	return "", fmt.Errorf("lookup of node %s: spend nonce: %w", n.UUID, err)
}

// refuseClaim answers a second claimant. When the holder of the token is alive,
// two machines are one node: quarantine.
func (s *server) refuseClaim(ctx context.Context, n *store.Node, c *claim, fact string) error {
	alive := info(n, store.KeyToken) != "" && s.now().Sub(s.live.LastHeartbeat(n.UUID)) < holderAlive
	s.alarm(ctx, n, event.HopLookup, fact, c.peer, alive)
	return client(http.StatusForbidden, "The boot nonce does not admit this machine as node %s. Boot it afresh through the conductor.", n.UUID)
}

// holderAlive is how fresh a heartbeat shows that the token's holder still runs.
const holderAlive = 2 * time.Minute

// issue makes a new token and stores it: the old one is worth nothing from here on.
func (s *server) issue(ctx context.Context, n *store.Node, c *claim) (string, error) {
	token, old := newToken(), ""
	_, err := s.store.UpdateNode(ctx, n.UUID, 0, func(n *store.Node) error {
		old = info(n, store.KeyToken)
		if old != "" && c.nonce == "" { // another stock agent was first
			token = ironic.Mask
			return nil
		}
		m := map[string]any{}
		for k, v := range n.DriverInternalInfo {
			m[k] = v
		}
		for _, k := range []string{store.KeyURL, store.KeyVersion, store.KeyVerifyCA, store.KeyHeartbeat, store.KeyBootID, store.KeyNonce} {
			delete(m, k)
		}
		m[store.KeyToken] = token
		if c.nonce != "" {
			m[store.KeyNonce] = digest(c.nonce)
		}
		if c.bootID != "" {
			m[store.KeyBootID] = c.bootID
		}
		n.DriverInternalInfo = m
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("lookup of node %s: store the token: %w", n.UUID, err)
	}
	if token == ironic.Mask {
		return token, nil
	}
	s.live.tokenReplaced(n.UUID, old, s.now())
	trust := "mac"
	if c.nonce != "" {
		trust = "nonce"
	}
	s.tell(ctx, n.UUID, event.Evidence{Hop: event.HopLookup, Fact: "agent looked itself up", OK: true, Detail: map[string]any{"peer": c.peer, "trust": trust, "boot_id": c.bootID}})
	return token, nil
}

// lookupInfo is what an agent sees of driver_internal_info: its settings, nothing else.
func lookupInfo(n *store.Node) map[string]any {
	out := map[string]any{}
	for k, v := range n.DriverInternalInfo {
		if strings.HasPrefix(k, "agent_") || k == "disk_erasure_concurrency" {
			out[k] = v
		}
	}
	for _, k := range []string{store.KeyURL, store.KeyVerifyCA, store.KeyVersion, store.KeyHeartbeat} {
		delete(out, k)
	}
	out[store.KeyToken] = ironic.Mask
	return out
}

func (s *server) lookupAnswer(r *http.Request, n *store.Node, token string) *agent.Lookup {
	v := s.view(r)
	links, err := json.Marshal(v.link("nodes/" + n.UUID))
	if err != nil { // two strings always marshal
		links = nil
	}
	inspecting := n.ProvisionState == state.Inspecting || n.ProvisionState == state.InspectWait
	return &agent.Lookup{
		Node: agent.LookupNode{
			UUID: n.UUID, Properties: maskSecrets(n.Properties), InstanceInfo: map[string]any{}, DriverInternalInfo: lookupInfo(n), Links: links,
		},
		Config: agent.LookupConfig{
			Metrics:               map[string]any{"backend": "noop", "prepend_host": false, "prepend_uuid": false, "prepend_host_reverse": true, "global_prefix": nil},
			MetricsStatsd:         map[string]any{"statsd_host": "localhost", "statsd_port": 8125},
			HeartbeatTimeout:      int(s.cfg.HeartbeatTimeout / time.Second),
			AgentToken:            token,
			AgentTokenRequired:    true,
			PermittedImageFormats: []string{"raw", "gpt", "qcow2", "iso"},
			TLSMinVersion:         "1.3",
			Slipway: &agent.SlipwayConfig{
				EventsPath: fmt.Sprintf(agent.EventsPathFormat, n.UUID), OrdersRequired: true,
				HeartbeatSeconds: s.cfg.HeartbeatEvery.Seconds(), Inspect: inspecting, InspectPath: agent.InspectionCallbackPath, Time: s.now().UTC(),
			},
		},
	}
}
