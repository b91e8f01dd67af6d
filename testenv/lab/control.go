package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/testenv/netns"
)

// Power actions.
const (
	ActionOn    = "on"
	ActionOff   = "off"   // as pulling the plug
	ActionSoft  = "soft"  // press the power button
	ActionReset = "reset" // without cutting the power
)

// Info is what a lab says about itself.
type Info struct {
	Name     string    `json:"name"`
	Dir      string    `json:"dir"`
	PID      int       `json:"pid"` // of the supervisor, whose network namespace is the lab's
	Forwards []Forward `json:"forwards"`
	Machines []Status  `json:"machines"`
}

// Status is what a lab says about one machine.
type Status struct {
	Name         string   `json:"name"`
	On           bool     `json:"on"`
	PID          int      `json:"pid"` // of QEMU, 0 when off
	Firmware     string   `json:"firmware"`
	Redfish      string   `json:"redfish"`
	MACs         []string `json:"macs"`
	NextBoot     string   `json:"next_boot"` // "" is the lasting order
	ConsoleStart int64    `json:"console_start"`
	Address      string   `json:"address"` // of the deployed system, when known
}

// control is the API on the lab's unix socket.
func (s *supervisor) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/lab", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.info(), nil) })
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, struct{}{}, nil)
		s.cancel()
	})
	mux.HandleFunc("POST /v1/machines/{name}/power/{action}", func(w http.ResponseWriter, r *http.Request) {
		err := s.power(r.Context(), r.PathValue("name"), r.PathValue("action"))
		answer(w, struct{}{}, err)
	})
	mux.HandleFunc("GET /v1/dial/{address}", s.dial)
	return mux
}

func answer(w http.ResponseWriter, value any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		value = map[string]string{"error": err.Error()}
	}
	// The reader may have gone; there is nobody to tell.
	_ = json.NewEncoder(w).Encode(value)
}

func (s *supervisor) info() Info {
	info := Info{Name: s.setup.Spec.Name, Dir: s.dir, PID: os.Getpid(), Forwards: s.setup.Forwards}
	for _, m := range s.setup.Spec.Machines {
		info.Machines = append(info.Machines, s.machines[m.Name].status())
	}
	return info
}

func (m *member) status() Status {
	vm := m.vm.Status()
	st := Status{
		Name: m.spec.Name, On: vm.On, PID: vm.PID, Firmware: m.spec.Firmware,
		Redfish: m.spec.RedfishURL(), NextBoot: vm.Override.Target, ConsoleStart: vm.ConsoleStart,
	}
	for _, n := range m.spec.NICs {
		st.MACs = append(st.MACs, n.MAC)
	}
	st.Address = m.address()
	return st
}

// address is the lab file's, or the last one that the machine's first network
// cards were seen to use.
func (m *member) address() string {
	if m.spec.Address.IsValid() {
		return m.spec.Address.String()
	}
	for _, n := range m.spec.NICs {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil {
			continue
		}
		if addr, ok := netns.Neighbour(mac); ok {
			return addr.String()
		}
	}
	return ""
}

func (s *supervisor) power(ctx context.Context, name, action string) error {
	m, ok := s.machines[name]
	if !ok {
		return fmt.Errorf("the lab has no machine %q", name)
	}
	switch action {
	case ActionOn:
		return m.vm.PowerOn(ctx)
	case ActionOff:
		return m.vm.PowerOff(ctx)
	case ActionSoft:
		return m.vm.PressPowerButton(ctx)
	case ActionReset:
		return m.vm.Reset(ctx)
	default:
		return fmt.Errorf("%q is no power action: use on, off, soft or reset", action)
	}
}

// dial turns the connection of this request into one to an address inside.
func (s *supervisor) dial(w http.ResponseWriter, r *http.Request) {
	to, err := netip.ParseAddrPort(r.PathValue("address"))
	if err != nil {
		answer(w, nil, err)
		return
	}
	var dialer net.Dialer
	inside, err := dialer.DialContext(r.Context(), "tcp", to.String())
	if err != nil {
		answer(w, nil, err)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = inside.Close()
		answer(w, nil, err)
		return
	}
	_, err = buffered.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	if err := errors.Join(err, buffered.Flush()); err != nil {
		_ = inside.Close()
		_ = conn.Close()
		return
	}
	join(conn, inside)
}

// guestGrace is how long programs inside the lab (a conductor) may take to end.
const guestGrace = 5 * time.Second

// endGuests ends every other process in this process's network namespace,
// except QEMU, whose machine is powered off in its own way.
func endGuests(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, guestGrace)
	defer cancel()
	signalGuests(unix.SIGTERM)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for signalGuests(0) > 0 {
		select {
		case <-ctx.Done():
			signalGuests(unix.SIGKILL)
			return
		case <-tick.C:
		}
	}
}

// signalGuests sends a signal and returns how many processes it went to. A
// process is named by a descriptor, so that a number used again hits nobody.
func signalGuests(sig unix.Signal) int {
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		slog.Error("find the lab's own namespace", "error", err)
		return 0
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0
	}
	hit := 0
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has just ended
		}
		// Another user's process has no readable namespace and is not ours.
		ns, err := os.Readlink(filepath.Join(dir, "ns", "net"))
		if err == nil && ns == ours && !isQEMU(dir) && unix.PidfdSendSignal(fd, sig, nil, 0) == nil {
			hit++
		}
		_ = unix.Close(fd)
	}
	return hit
}

func isQEMU(dir string) bool {
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	return err == nil && strings.HasPrefix(filepath.Base(exe), "qemu-system-")
}
