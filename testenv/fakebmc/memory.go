package fakebmc

import (
	"context"
	"sync"
)

// Memory is a Machine that is a few fields: what tests put behind the service.
type Memory struct {
	mu     sync.Mutex
	on     bool
	next   Override
	boots  []Device
	media  string
	deaf   bool
	failed error
}

var _ MediaMachine = (*Memory)(nil)

// Deaf makes the operating system ignore the power button.
func (m *Memory) Deaf(deaf bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deaf = deaf
}

// Fail makes every call return err; nil ends that.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = err
}

// Boots lists what each start used: None is the firmware's own order.
func (m *Memory) Boots() []Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Device(nil), m.boots...)
}

// Media is the URL of the inserted image.
func (m *Memory) Media() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.media
}

// PowerState implements Machine.
func (m *Memory) PowerState(context.Context) (PowerState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on {
		return On, m.failed
	}
	return Off, m.failed
}

func (m *Memory) do(act func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil {
		act()
	}
	return m.failed
}

func (m *Memory) boot() {
	m.on = true
	d := m.next.Device
	if d == "" {
		d = None
	}
	m.boots = append(m.boots, d)
	if m.next.Once {
		m.next = Override{Device: None}
	}
}

// PowerOn implements Machine.
func (m *Memory) PowerOn(context.Context) error { return m.do(m.boot) }

// ForceOff implements Machine.
func (m *Memory) ForceOff(context.Context) error { return m.do(func() { m.on = false }) }

// GracefulShutdown implements Machine; this operating system is quick.
func (m *Memory) GracefulShutdown(context.Context) error {
	return m.do(func() { m.on = m.on && m.deaf })
}

// Reset implements Machine.
func (m *Memory) Reset(context.Context) error { return m.do(m.boot) }

// SetNextBoot implements Machine.
func (m *Memory) SetNextBoot(_ context.Context, o Override) error {
	return m.do(func() { m.next = o })
}

// InsertMedia implements MediaMachine.
func (m *Memory) InsertMedia(_ context.Context, image string) error {
	return m.do(func() { m.media = image })
}

// EjectMedia implements MediaMachine.
func (m *Memory) EjectMedia(context.Context) error { return m.do(func() { m.media = "" }) }
