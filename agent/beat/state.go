package beat

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/proto/agent"
)

// State is who this agent is. It lies in a file of the ramdisk's RAM, so that an
// agent that /init started again after a crash is still the same one: its token
// was given once and will not be given again.
type State struct {
	path string
	mu   sync.Mutex
	s    saved
}

type saved struct {
	Node      string               `json:"node"`
	Token     string               `json:"token"`
	LastOrder int64                `json:"last_order"`
	Heartbeat int                  `json:"heartbeat_timeout"` // seconds
	MD5       bool                 `json:"md5,omitempty"`
	Slipway   *agent.SlipwayConfig `json:"slipway,omitempty"`
	Root      *agent.DiskIdentity  `json:"root,omitempty"`
}

// LoadState reads the state of an agent that ran before in this boot; path ""
// keeps none.
func LoadState(path string) (*State, error) {
	st := &State{path: path}
	if path == "" {
		return st, nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return nil, fmt.Errorf("agent state: %w", err)
	}
	if err := json.Unmarshal(raw, &st.s); err != nil {
		return nil, fmt.Errorf("agent state %s: %w", path, err)
	}
	return st, nil
}

// Identity implements orders.Keeper.
func (s *State) Identity() orders.Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return orders.Identity{Node: s.s.Node, Token: s.s.Token, LastOrder: s.s.LastOrder,
		Required: s.s.Slipway != nil && s.s.Slipway.OrdersRequired}
}

// Node is the node's UUID, "" before the lookup.
func (s *State) Node() string { return s.get().Node }

// Token is the agent's token, "" before the lookup.
func (s *State) Token() string { return s.get().Token }

// Slipway is the conductor's own configuration, nil under a stock Ironic.
func (s *State) Slipway() *agent.SlipwayConfig { return s.get().Slipway }

func (s *State) get() saved {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.s
}

// SetLastOrder implements orders.Keeper.
func (s *State) SetLastOrder(generation int64) error {
	return s.change(func(v *saved) { v.LastOrder = generation })
}

// MD5 says whether the conductor allows MD5 as an image's digest. Ours does not.
func (s *State) MD5() bool {
	v := s.get()
	return v.MD5 && v.Slipway == nil
}

// SetRoot keeps which disk the image was written to.
func (s *State) SetRoot(d agent.DiskIdentity) error {
	return s.change(func(v *saved) { v.Root = &d })
}

// Root is the disk that the image was written to in this boot; false when none was.
func (s *State) Root() (agent.DiskIdentity, bool) {
	if r := s.get().Root; r != nil {
		return *r, true
	}
	return agent.DiskIdentity{}, false
}

// change writes the file first: what was not kept did not happen.
func (s *State) change(f func(*saved)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.s
	f(&next)
	if s.path != "" {
		if err := writeFile(s.path, next); err != nil {
			return fmt.Errorf("agent state: %w", err)
		}
	}
	s.s = next
	return nil
}

func writeFile(path string, v saved) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
