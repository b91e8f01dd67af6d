package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/slipway-metal/slipway/testenv/qemu"
)

// pollEvery is how often a console's log is looked at for more.
const pollEvery = 50 * time.Millisecond

// Handle is one machine of a running lab.
type Handle struct {
	lab  *Lab
	name string
}

// Machine returns a handle on a machine; a wrong name is told by its methods.
func (l *Lab) Machine(name string) *Handle { return &Handle{l, name} }

// Status asks what the machine does now.
func (h *Handle) Status(ctx context.Context) (Status, error) {
	info, err := h.lab.Info(ctx)
	if err != nil {
		return Status{}, err
	}
	for _, st := range info.Machines {
		if st.Name == h.name {
			return st, nil
		}
	}
	return Status{}, h.unknown()
}

func (h *Handle) unknown() error {
	names := ""
	for _, m := range h.lab.spec.Machines {
		names += " " + m.Name
	}
	return &Error{What: "find the machine " + h.name, Why: "the lab " + h.lab.spec.Name + " has no machine of that name",
		Next: "use one of:" + names, Err: os.ErrNotExist}
}

// Power does one of the power actions and returns when it is done (ActionSoft:
// when the button is pressed).
func (h *Handle) Power(ctx context.Context, action string) error {
	if _, ok := h.lab.spec.Machine(h.name); !ok {
		return h.unknown()
	}
	return h.lab.call(ctx, http.MethodPost, "/v1/machines/"+h.name+"/power/"+action, nil)
}

// PowerOn starts the machine, past its BMC.
func (h *Handle) PowerOn(ctx context.Context) error { return h.Power(ctx, ActionOn) }

// PowerOff cuts the machine's power, past its BMC.
func (h *Handle) PowerOff(ctx context.Context) error { return h.Power(ctx, ActionOff) }

// WaitOff returns when the machine is off.
func (h *Handle) WaitOff(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		st, err := h.Status(ctx)
		if err != nil {
			return err
		}
		if !st.On {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("machine %s is still on: %w", h.name, ctx.Err())
		case <-tick.C:
		}
	}
}

// Dir is where the machine's files are: disk0.raw and on, console.log,
// events.jsonl, qemu.log.
func (h *Handle) Dir() string { return machineDir(h.lab.dir, h.name) }

// DiskPath is the raw file of one of the machine's disks.
func (h *Handle) DiskPath(disk int) string { return diskPath(h.lab.dir, h.name, disk) }

func (h *Handle) consolePath() string { return filepath.Join(h.Dir(), qemu.ConsoleLog) }

// Console returns everything that the machine's serial port ever said.
func (h *Handle) Console() (string, error) {
	data, err := os.ReadFile(h.consolePath())
	if errors.Is(err, os.ErrNotExist) {
		return "", nil // never powered on
	}
	return string(data), err
}

// FollowConsole writes what the serial port said and says to w until ctx ends.
func (h *Handle) FollowConsole(ctx context.Context, w io.Writer) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	at := int64(0)
	for {
		more, err := h.consoleFrom(at)
		if err != nil {
			return err
		}
		if len(more) > 0 {
			if _, err := w.Write(more); err != nil {
				return err
			}
			at += int64(len(more))
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// WaitConsole waits until a line of the serial port's output matches, and
// returns the match and its groups. It looks from the present run's start on;
// on a machine that is off, from its next start on. The end of ctx is an error
// that quotes the last lines seen.
func (h *Handle) WaitConsole(ctx context.Context, pattern *regexp.Regexp) ([]string, error) {
	st, err := h.Status(ctx)
	if err != nil {
		return nil, err
	}
	from := st.ConsoleStart
	if !st.On {
		if from, err = fileSize(h.consolePath()); err != nil {
			return nil, err
		}
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		seen, err := h.consoleFrom(from)
		if err != nil {
			return nil, err
		}
		if m := pattern.FindStringSubmatch(string(seen)); m != nil {
			return m, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("machine %s: its console never said %q: %w; it ends with:\n%s", h.name, pattern, ctx.Err(), lastLines(seen, 20))
		case <-tick.C:
		}
	}
}

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// consoleFrom reads the log from an offset in bytes on.
func (h *Handle) consoleFrom(at int64) ([]byte, error) {
	f, err := os.Open(h.consolePath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

// DialConsole connects to the serial port itself; one connection at a time.
func (h *Handle) DialConsole() (net.Conn, error) { return qemu.DialConsole(h.Dir()) }

func lastLines(data []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}
