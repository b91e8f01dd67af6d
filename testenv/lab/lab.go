package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// Lab is a running lab, seen from outside.
type Lab struct {
	dir   string
	spec  *Spec
	owned bool          // Close ends it
	life  *os.File      // closing it ends a tied lab
	ended chan struct{} // closed when the supervisor has ended; nil if it is not ours
}

// stopLimit bounds an orderly end: programs inside have 5 s, QEMU 5 s.
const stopLimit = 30 * time.Second

// Open returns the lab that runs in a directory.
func Open(dir string) (*Lab, error) {
	if !running(dir) {
		return nil, &Error{What: "reach the lab", Why: "no lab is running in " + dir, Next: "start one: slipway-lab up FILE", Err: os.ErrNotExist}
	}
	s, err := readSetup(dir)
	if err != nil {
		return nil, fmt.Errorf("reach the lab in %s: %w", dir, err)
	}
	return &Lab{dir: dir, spec: s.Spec}, nil
}

// Find returns the directories under home, a lab each, in which one is running.
func Find(home string) ([]string, error) {
	locks, err := filepath.Glob(filepath.Join(home, "*", lockFile))
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, lock := range locks {
		if dir := filepath.Dir(lock); running(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// Spec returns what the lab was started with.
func (l *Lab) Spec() *Spec { return l.spec }

// Dir returns the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// Ended is closed when the lab has ended; it is nil for a lab that this
// program did not start.
func (l *Lab) Ended() <-chan struct{} { return l.ended }

// PublicKey returns, in authorized_keys form, the key that SSH uses; put it in
// a machine's config drive.
func (l *Lab) PublicKey() (string, error) {
	data, err := os.ReadFile(filepath.Join(l.dir, sshFolder, sshKeyFile+".pub"))
	return string(data), err
}

// Info asks the lab about itself.
func (l *Lab) Info(ctx context.Context) (Info, error) {
	var info Info
	err := l.call(ctx, http.MethodGet, "/v1/lab", &info)
	return info, err
}

// Close ends a lab that this program started without Options.Detach, and is
// done when nothing of it runs any more. On others it does nothing.
func (l *Lab) Close() error {
	if !l.owned {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if err := l.life.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("end the lab %s: %w", l.spec.Name, err)
	}
	select {
	case <-l.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end the lab %s: its supervisor is still running after %s: see %s", l.spec.Name, stopLimit, filepath.Join(l.dir, logFile))
	}
}

// Down ends a running lab, whoever started it. Disks, logs and the SSH key
// stay unless purge.
func (l *Lab) Down(ctx context.Context, purge bool) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	if err := l.call(ctx, http.MethodPost, "/v1/stop", nil); err != nil {
		return err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for running(l.dir) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("end the lab %s: its supervisor is still running after %s: see %s", l.spec.Name, stopLimit, filepath.Join(l.dir, logFile))
		case <-tick.C:
		}
	}
	if purge {
		return Purge(l.dir)
	}
	return nil
}

// Purge removes all files of a lab that is not running.
func Purge(dir string) error {
	lock, err := lockDir(dir)
	if err != nil {
		return fmt.Errorf("remove the lab's files in %s: %w", dir, err)
	}
	defer func() { _ = lock.Close() }()
	for _, name := range []string{setupFile, controlSocket, logFile, machinesFolder, sshFolder, lockFile} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove the lab's files: %w", err)
		}
	}
	// The directory itself goes when nothing else was put into it.
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		if left, rerr := os.ReadDir(dir); rerr != nil || len(left) == 0 {
			return fmt.Errorf("remove the lab's directory: %w", err)
		}
	}
	return nil
}

// Enter returns the command line that runs argv inside the lab's network. It
// is util-linux's nsenter, which replaces itself by argv: signals, terminal and
// exit status are argv's own.
func (l *Lab) Enter(ctx context.Context, argv ...string) ([]string, error) {
	info, err := l.Info(ctx)
	if err != nil {
		return nil, err
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return nil, &Error{What: "enter the lab's network", Why: "there is no nsenter here", Next: "install Debian's util-linux", Err: err}
	}
	line := []string{nsenter, "--target", strconv.Itoa(info.PID), "--net"}
	if os.Geteuid() != 0 {
		line = append(line, "--user", "--preserve-credentials")
	}
	return append(append(line, "--"), argv...), nil
}

// Command returns a command that runs inside the lab's network; it ends with
// ctx, and with the lab.
func (l *Lab) Command(ctx context.Context, argv ...string) (*exec.Cmd, error) {
	line, err := l.Enter(ctx, argv...)
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, line[0], line[1:]...), nil
}

// Exec runs a command inside the lab's network and returns what it printed.
func (l *Lab) Exec(ctx context.Context, argv ...string) ([]byte, error) {
	cmd, err := l.Command(ctx, argv...)
	if err != nil {
		return nil, err
	}
	return cmd.CombinedOutput()
}

// DialContext connects to an address (a number, not a name) inside the lab's
// network. It has the form that http.Transport and others take.
func (l *Lab) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "tcp" && network != "tcp4" {
		return nil, fmt.Errorf("dial %s inside the lab: only tcp goes there, not %s", address, network)
	}
	conn, err := dialUnix(l.dir, controlSocket)
	if err != nil {
		return nil, fmt.Errorf("dial %s inside the lab: %w", address, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	// One byte at a time up to the answer's end, so that nothing of what
	// follows is read too early.
	if _, err := fmt.Fprintf(conn, "GET /v1/dial/%s HTTP/1.1\r\nHost: lab\r\n\r\n", address); err != nil {
		return nil, errors.Join(fmt.Errorf("dial %s inside the lab: %w", address, err), conn.Close())
	}
	head, err := readHead(conn)
	if err != nil || len(head) < 12 || head[9:12] != "101" {
		return nil, errors.Join(fmt.Errorf("dial %s inside the lab: refused: %q %v", address, head, err), conn.Close()) //nolint:errorlint // err may be nil
	}
	return conn, nil
}

func readHead(r io.Reader) (string, error) {
	var head []byte
	for len(head) < 4096 {
		var b [1]byte
		if _, err := r.Read(b[:]); err != nil {
			return string(head), err
		}
		head = append(head, b[0])
		if n := len(head); n >= 4 && string(head[n-4:]) == "\r\n\r\n" {
			return string(head), nil
		}
	}
	return string(head), errors.New("the answer's head is too long")
}

// call speaks to the supervisor.
func (l *Lab) call(ctx context.Context, method, path string, out any) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return dialUnix(l.dir, controlSocket) },
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return &Error{What: "reach the lab " + l.spec.Name, Why: err.Error(), Next: "see whether it runs: slipway-lab list", Err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		var failed struct{ Error string }
		if err := json.NewDecoder(resp.Body).Decode(&failed); err != nil || failed.Error == "" {
			return fmt.Errorf("the lab %s answers %s to %s", l.spec.Name, resp.Status, path)
		}
		return errors.New(failed.Error)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
