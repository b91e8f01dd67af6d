package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/slipway-metal/slipway/testenv/fakebmc"
	"github.com/slipway-metal/slipway/testenv/netns"
	"github.com/slipway-metal/slipway/testenv/qemu"
)

// Reexec turns this process into a lab's supervisor if Start started it as
// one, and then never returns. Call it first in main or TestMain.
func Reexec() {
	if len(os.Args) != 2 || os.Args[0] != supervisorName {
		return
	}
	if err := supervise(os.Args[1]); err != nil {
		slog.Error("the lab's supervisor failed", "error", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// supervisor is a running lab, seen from inside.
type supervisor struct {
	dir      string
	setup    *setup
	machines map[string]*member
	cancel   context.CancelFunc
	servers  []*http.Server
	jobs     sync.WaitGroup
}

// member is one machine and its BMC.
type member struct {
	spec Machine
	vm   *qemu.Machine
	bmc  *fakebmc.BMC
}

// supervise builds the lab in this process's namespace and keeps it up until
// it is told to end.
func supervise(dir string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	s := &supervisor{dir: dir, machines: make(map[string]*member), cancel: cancel}
	ready := os.NewFile(fdReady, "ready")
	// The lock is held by the open descriptor; nothing else is done with it.
	lock := os.NewFile(fdLock, "lock")
	syscall.CloseOnExec(fdReady)
	syscall.CloseOnExec(fdLock)
	syscall.CloseOnExec(fdLife)
	err := s.build()
	if werr := sayReady(ready, err); err == nil {
		err = werr
	}
	if err == nil {
		slog.Info("the lab is up", "lab", s.setup.Spec.Name, "machines", len(s.machines), "process", os.Getpid())
		if s.setup.Tied {
			go func() {
				_, _ = io.Copy(io.Discard, os.NewFile(fdLife, "life"))
				slog.Info("the program that started the lab has ended")
				cancel()
			}()
		}
		<-ctx.Done()
	}
	s.end()
	slog.Info("the lab has ended")
	return errors.Join(err, sweep(dir), lock.Close())
}

// sayReady tells Start how it went.
func sayReady(ready *os.File, cause error) error {
	var word struct{ Error *Error }
	if cause != nil {
		word.Error = &Error{What: "build the lab", Why: cause.Error(), Next: "see the lab's " + logFile}
		var refusal *netns.Refusal
		if errors.As(cause, &refusal) {
			word.Error = &Error{What: "build the lab: " + refusal.What, Why: refusal.Why, Next: refusal.Next, Refused: true}
		}
		var known *Error
		if errors.As(cause, &known) {
			word.Error = known
		}
	}
	return errors.Join(json.NewEncoder(ready).Encode(word), ready.Close())
}

func (s *supervisor) build() error {
	var err error
	if s.setup, err = readSetup(s.dir); err != nil {
		return err
	}
	spec := s.setup.Spec
	if err := netns.Loopback(); err != nil {
		return err
	}
	for _, n := range spec.Networks {
		if err := netns.Bridge(n.Bridge, netip.PrefixFrom(n.Host, n.CIDR.Bits())); err != nil {
			return err
		}
	}
	for i := range spec.Machines {
		if err := s.addMachine(spec, i); err != nil {
			return err
		}
	}
	for i, f := range s.setup.Forwards {
		if err := s.forward(os.NewFile(uintptr(fdForwards+i), f.Listen.String()), f.To); err != nil {
			return fmt.Errorf("forward %s: %w", f.Listen, err)
		}
	}
	control, err := listenUnix(s.dir, controlSocket)
	if err != nil {
		return fmt.Errorf("listen on the control socket: %w", err)
	}
	s.serve(control, s.control())
	return nil
}

// tapName is at most 15 characters, as the kernel wants.
func tapName(machine, nic int) string {
	return "tap" + strconv.Itoa(machine) + "." + strconv.Itoa(nic)
}

func (s *supervisor) addMachine(spec *Spec, i int) error {
	m := spec.Machines[i]
	for j, nic := range m.NICs {
		network, _ := spec.Network(nic.Network) // the lab file was checked for it
		if err := netns.Tap(tapName(i, j), network.Bridge, uint64(network.Rate)); err != nil {
			return err
		}
	}
	vm, err := qemu.New(machineConfig(s.dir, spec, i))
	if err != nil {
		return err
	}
	member := &member{spec: m, vm: vm, bmc: fakebmc.New(bmcConfig(m), redfishMachine{vm})}
	vm.Booted = member.bmc.Booted
	listener, err := net.Listen("tcp", m.BMC.Address.String())
	if err != nil {
		return fmt.Errorf("machine %s: the BMC's address: %w", m.Name, err)
	}
	s.serve(listener, member.bmc)
	s.machines[m.Name] = member
	return nil
}

// machineConfig turns the lab file's words into QEMU's.
func machineConfig(dir string, spec *Spec, i int) qemu.Config {
	m := spec.Machines[i]
	cfg := qemu.Config{
		Name: m.Name, UUID: m.UUID, Serial: m.Serial, Firmware: m.Firmware,
		Memory: int64(m.Memory), CPUs: m.CPUs, Boot: m.Boot,
		Direct: qemu.Direct(m.Direct), Accel: spec.Accel, Dir: machineDir(dir, m.Name),
	}
	for j, d := range m.Disks {
		// An empty or checked WWN; ParseUint's error would be a wrong check.
		wwn, _ := strconv.ParseUint(d.WWN, 0, 64)
		cfg.Disks = append(cfg.Disks, qemu.Disk{Path: diskPath(dir, m.Name, j), Bus: d.Bus, Serial: d.Serial, WWN: wwn, Sector: d.Sector})
	}
	for j, n := range m.NICs {
		cfg.NICs = append(cfg.NICs, qemu.NIC{Tap: tapName(i, j), MAC: n.MAC, Model: n.Model, ROM: n.ROM == "ipxe"})
	}
	return cfg
}

func (s *supervisor) serve(l net.Listener, h http.Handler) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	s.servers = append(s.servers, server)
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("a server of the lab ended", "address", l.Addr().String(), "error", err)
			s.cancel()
		}
	}()
}

// forward carries connections from a listener in the host's network inside.
func (s *supervisor) forward(file *os.File, to netip.AddrPort) error {
	l, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				slog.Error("forwarding ended", "to", to.String(), "error", err)
				return
			}
			go func() {
				inside, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
				if err != nil {
					slog.Info("nobody answers a forwarded connection", "to", to.String(), "error", err)
					_ = conn.Close()
					return
				}
				join(conn, inside)
			}()
		}
	}()
	return nil
}

// join copies both ways until both sides are done.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	oneWay := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // either side may leave at any time
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		} else {
			_ = to.Close()
		}
	}
	both.Go(func() { oneWay(a, b) })
	both.Go(func() { oneWay(b, a) })
	both.Wait()
	_ = a.Close()
	_ = b.Close()
}

// end stops everything, machines first.
func (s *supervisor) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	endGuests(ctx)
	for _, m := range s.machines {
		s.jobs.Go(func() {
			if err := m.vm.PowerOff(ctx); err != nil {
				slog.Error("power off at the lab's end", "machine", m.spec.Name, "error", err)
			}
			m.bmc.Close()
		})
	}
	s.jobs.Wait()
	for _, server := range s.servers {
		// A short grace lets the answer to a stop request leave.
		grace, done := context.WithTimeout(ctx, time.Second)
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
		done()
	}
	_ = os.Remove(filepath.Join(s.dir, controlSocket))
}
