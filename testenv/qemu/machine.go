package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/slipway-metal/slipway/testenv/qmp"
)

const (
	binary = "qemu-system-x86_64"
	// startLimit bounds QEMU's start until its protocol answers: well under a
	// second idle, more where many machines start at once on few processors.
	startLimit = 30 * time.Second
	// stopLimit is how long QEMU may take to close its disks before it is killed.
	stopLimit = 5 * time.Second
	// resetLimit bounds the wait for QEMU's word that a reset was done.
	resetLimit = 10 * time.Second
)

// Override is what boots instead of the lasting order: one of BootPXE,
// BootDisk and BootCD, or "" for the lasting order itself.
type Override struct {
	Target string
	Once   bool // forgotten with the first boot that used it
}

// Machine is one virtual machine, on or off. Its methods may be called from
// many goroutines.
type Machine struct {
	cfg Config
	// Booted, if set before the first start, is called when the guest restarts
	// by itself, so that a BMC can forget a boot override that is now spent.
	Booted func()

	mu       sync.Mutex
	running  *process
	override Override
	cd       string // path of the image in the drive
}

// process is one run of QEMU.
type process struct {
	cmd          *exec.Cmd
	monitor      *qmp.Client
	consoleStart int64         // bytes in the console log when it started
	reset        chan struct{} // one token a RESET event seen to the end
	done         chan struct{} // closed when the process has ended
}

// New makes the machine's files, if they are not there yet, and returns the
// machine, which is off.
func New(cfg Config) (*Machine, error) {
	m := &Machine{cfg: cfg}
	if err := m.prepare(); err != nil {
		return nil, fmt.Errorf("machine %s: %w", cfg.Name, err)
	}
	return m, nil
}

// Config returns the machine's description.
func (m *Machine) Config() Config { return m.cfg }

// Status is what a machine does now.
type Status struct {
	On           bool
	PID          int   // of QEMU, 0 when off
	ConsoleStart int64 // offset in the console log where the present run begins, bytes
	Override     Override
	CD           string
}

// Status returns the state of this moment.
func (m *Machine) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{Override: m.override, CD: m.cd}
	if p := m.live(); p != nil {
		s.On, s.PID, s.ConsoleStart = true, p.cmd.Process.Pid, p.consoleStart
	}
	return s
}

// live returns the running process, or nil. The caller holds mu.
func (m *Machine) live() *process {
	if m.running == nil {
		return nil
	}
	select {
	case <-m.running.done:
		m.running = nil
	default:
	}
	return m.running
}

// PowerOn starts the machine; one that is on stays as it is.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live() != nil {
		return nil
	}
	p, err := m.start(ctx)
	if err != nil {
		return fmt.Errorf("machine %s: power on: %w", m.cfg.Name, err)
	}
	m.running = p
	if m.override.Once {
		m.override = Override{}
		// The firmware already holds this start's order; from the next reset
		// on the lasting one is in force.
		if err := m.setBootOrder(ctx, p, m.cfg.Boot); err != nil {
			return fmt.Errorf("machine %s: restore the boot order: %w", m.cfg.Name, err)
		}
	}
	go m.follow(p)
	return nil
}

// PowerOff ends the machine as pulling its plug would.
func (m *Machine) PowerOff(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.live()
	if p == nil {
		return nil
	}
	if err := p.stop(ctx); err != nil {
		return fmt.Errorf("machine %s: power off: %w", m.cfg.Name, err)
	}
	m.running = nil
	return nil
}

// PressPowerButton asks the guest to shut itself down.
func (m *Machine) PressPowerButton(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.live()
	if p == nil {
		return nil
	}
	return p.monitor.Execute(ctx, "system_powerdown", nil, nil)
}

// Reset restarts the machine without cutting its power, and returns when the
// firmware has begun anew. One that is off starts.
func (m *Machine) Reset(ctx context.Context) error {
	m.mu.Lock()
	p := m.live()
	m.mu.Unlock()
	if p == nil {
		return m.PowerOn(ctx)
	}
	select { // a token left by the guest's own reset is not ours
	case <-p.reset:
	default:
	}
	if err := p.monitor.Execute(ctx, "system_reset", nil, nil); err != nil {
		return fmt.Errorf("machine %s: reset: %w", m.cfg.Name, err)
	}
	limit := time.NewTimer(resetLimit)
	defer limit.Stop()
	select {
	case <-p.reset:
		return nil
	case <-p.done:
		return fmt.Errorf("machine %s: reset: QEMU ended: %s", m.cfg.Name, m.complaint())
	case <-limit.C:
		return fmt.Errorf("machine %s: reset: QEMU told of no reset within %s", m.cfg.Name, resetLimit)
	case <-ctx.Done():
		return fmt.Errorf("machine %s: reset: %w", m.cfg.Name, ctx.Err())
	}
}

// SetNextBoot sets or, with the zero Override, clears what boots next. On a
// machine that is on it counts from the next reset.
func (m *Machine) SetNextBoot(ctx context.Context, o Override) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.live(); p != nil {
		if err := m.setBootOrder(ctx, p, m.cfg.order(o.Target)); err != nil {
			return fmt.Errorf("machine %s: set the next boot to %q: %w", m.cfg.Name, o.Target, err)
		}
	}
	m.override = o
	return nil
}

// setBootOrder gives the running machine's devices their places. Each place
// can be held once, so all are given up first.
func (m *Machine) setBootOrder(ctx context.Context, p *process, order []string) error {
	index := m.cfg.bootIndexes(order)
	for _, free := range []bool{true, false} {
		for id, place := range index {
			if free {
				place = -1
			} else if place < 0 {
				continue
			}
			set := map[string]any{"path": "/machine/peripheral/" + id, "property": "bootindex", "value": place}
			if err := p.monitor.Execute(ctx, "qom-set", set, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// Wait returns when the machine is off.
func (m *Machine) Wait(ctx context.Context) error {
	m.mu.Lock()
	p := m.live()
	m.mu.Unlock()
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Machine) start(ctx context.Context) (*process, error) {
	accel, why, err := accelerator(m.cfg.Accel)
	if err != nil {
		return nil, err
	}
	sockets, err := m.listen(qmpSocket, ConsoleSocket)
	if err != nil {
		return nil, err
	}
	defer closeAll(sockets)
	log, err := os.Create(m.cfg.Path(QEMULog))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	p := &process{reset: make(chan struct{}, 1), done: make(chan struct{}), consoleStart: size(m.cfg.Path(ConsoleLog))}
	p.cmd = exec.Command(binary, m.cfg.args(accel, m.cfg.order(m.override.Target), m.cd)...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.ExtraFiles = sockets
	p.cmd.Dir = m.cfg.Dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := startFromOneThread(p.cmd); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("%w: install Debian's qemu-system-x86", err)
		}
		return nil, err
	}
	m.record("START", map[string]any{"pid": p.cmd.Process.Pid, "accel": accel, "why": why, "override": m.override.Target})
	go func() {
		err := p.cmd.Wait()
		m.record("END", map[string]any{"pid": p.cmd.Process.Pid, "status": fmt.Sprint(p.cmd.ProcessState), "error": errText(err)})
		close(p.done)
	}()
	closeAll(sockets) // so that the connection ends with QEMU if it dies at once
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	path, done, err := shortPath(m.cfg.Dir, qmpSocket)
	if err != nil {
		return nil, errors.Join(err, p.stop(context.Background()))
	}
	defer done()
	p.monitor, err = qmp.Dial(ctx, path)
	if err != nil {
		err = fmt.Errorf("QEMU does not answer: %w", err)
		if complaint := m.complaint(); complaint != "" {
			err = fmt.Errorf("QEMU ended: %s", complaint)
		}
		return nil, errors.Join(err, p.stop(context.Background()))
	}
	return p, nil
}

func (p *process) stop(ctx context.Context) error {
	group := -p.cmd.Process.Pid
	if err := syscall.Kill(group, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end QEMU (process %d): %w", p.cmd.Process.Pid, err)
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-p.done:
		return nil
	case <-limit.C:
	case <-ctx.Done():
	}
	if err := syscall.Kill(group, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill QEMU (process %d): %w", p.cmd.Process.Pid, err)
	}
	<-p.done
	return nil
}

// follow records QEMU's events until it ends.
func (m *Machine) follow(p *process) {
	for event := range p.monitor.Events() {
		m.record(event.Name, event.Data)
		if event.Name == "RESET" {
			m.wasReset(p, event)
		}
	}
	// The other side is gone; closing our half can only say so again.
	_ = p.monitor.Close()
}

// wasReset spends an override that was for once. QEMU has told the firmware
// the order before it sends the event, so the lasting one can take its place.
func (m *Machine) wasReset(p *process, event qmp.Event) {
	m.mu.Lock()
	if m.override.Once {
		m.override = Override{}
		ctx, cancel := context.WithTimeout(context.Background(), resetLimit)
		if err := m.setBootOrder(ctx, p, m.cfg.Boot); err != nil {
			m.record("ERROR", map[string]any{"error": "restore the boot order: " + err.Error()})
		}
		cancel()
	}
	m.mu.Unlock()
	var data struct {
		Guest bool `json:"guest"`
	}
	if err := json.Unmarshal(event.Data, &data); err == nil && data.Guest && m.Booted != nil {
		m.Booted()
	}
	select {
	case p.reset <- struct{}{}:
	default:
	}
}

// record appends to the events' log. A full disk must not stop a machine.
func (m *Machine) record(name string, data any) {
	line, err := json.Marshal(struct {
		Time  time.Time `json:"time"`
		Event string    `json:"event"`
		Data  any       `json:"data,omitempty"`
	}{time.Now().UTC(), name, data})
	if err != nil {
		return
	}
	f, err := os.OpenFile(m.cfg.Path(EventsLog), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	_, _ = f.Write(append(line, '\n'))
	_ = f.Close()
}

// complaint returns the last lines that QEMU wrote.
func (m *Machine) complaint() string {
	data, err := os.ReadFile(m.cfg.Path(QEMULog))
	if err != nil {
		return ""
	}
	data = bytes.TrimSpace(data)
	if len(data) > 500 {
		data = data[len(data)-500:]
	}
	return string(data)
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

var spawner = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go func() {
		// The kernel sends the parent-death signal when the *thread* that
		// started a child ends, so all are started from one that never does.
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

func startFromOneThread(cmd *exec.Cmd) error {
	result := make(chan error)
	spawner() <- func() { result <- cmd.Start() }
	return <-result
}
