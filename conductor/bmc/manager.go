package bmc

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Manager keeps a BMC open for every node that was asked for, so that sessions
// are reused, and one guard for every BMC address: its turn, its breaker, its
// login verdicts. One Manager serves a conductor.
type Manager struct {
	registry *Registry
	opt      Options
	power    func(nodeUUID string) PowerRecord

	mu      sync.Mutex
	nodes   map[string]opened
	closing sync.WaitGroup
}

type opened struct {
	info  [32]byte // hash of driver and driver_info: secrets are not kept twice
	bmc   BMC
	power PowerRecord
}

// closeLimit bounds a log-out that nobody waits for.
const closeLimit = 10 * time.Second

// NewManager returns a manager of registry's drivers. power, unless nil, gives
// each node's PowerRecord.
func NewManager(registry *Registry, opt Options, power func(nodeUUID string) PowerRecord) *Manager {
	return &Manager{registry: registry, opt: opt.withDefaults(), power: power, nodes: map[string]opened{}}
}

// Registry returns the drivers.
func (m *Manager) Registry() *Registry { return m.registry }

// For returns the node's BMC, opened anew when driver or driver_info changed. It
// sends nothing; an error is about the driver or driver_info.
func (m *Manager) For(nodeUUID, driver string, info map[string]any) (BMC, error) {
	text, err := json.Marshal([]any{driver, info}) // maps are marshalled in key order
	if err != nil {
		return nil, fmt.Errorf("%w: driver_info of node %s: %w", ErrInvalid, nodeUUID, err)
	}
	hash := sha256.Sum256(text)
	m.mu.Lock()
	defer m.mu.Unlock()
	old, known := m.nodes[nodeUUID]
	if known && old.info == hash {
		return old.bmc, nil
	}
	opt := m.opt
	opt.name = nodeUUID
	switch {
	case m.power != nil:
		opt.Power = m.power(nodeUUID)
	case known:
		opt.Power = old.power
	default:
		opt.Power = &memoryRecord{}
	}
	b, err := m.registry.Open(driver, info, opt)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", nodeUUID, err)
	}
	m.nodes[nodeUUID] = opened{hash, b, opt.Power}
	if known {
		m.release(old.bmc)
	}
	return b, nil
}

// Forget closes the BMC of a node that is gone.
func (m *Manager) Forget(nodeUUID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.nodes[nodeUUID]; ok {
		delete(m.nodes, nodeUUID)
		m.release(old.bmc)
	}
}

// release logs out in the background: a dead BMC must not hold up its replacement.
func (m *Manager) release(b BMC) {
	m.closing.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			m.opt.Logger.Warn("BMC session left behind", "bmc", b.Address(), "error", err)
		}
	})
}

// Close logs out everywhere, all BMCs at once, and waits until ctx ends.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	nodes := m.nodes
	m.nodes = map[string]opened{}
	m.mu.Unlock()
	for _, o := range nodes {
		m.release(o.bmc)
	}
	done := make(chan struct{})
	go func() { m.closing.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("some BMC sessions were left behind"), ctx.Err())
	}
}
