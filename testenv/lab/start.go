package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/slipway-metal/slipway/testenv/netns"
)

// Options says how to start a lab. Dir is required.
type Options struct {
	Dir string // the lab's directory; made if it is not there
	// Detach leaves the lab running when the program that started it ends.
	Detach bool
	// Forwards are addresses on the host that lead into the lab's network.
	Forwards []Forward
	// Fresh throws away the disks, UEFI variables and logs of an earlier run.
	Fresh bool
	// Supervisor is the program to run as the supervisor; it must call Reexec.
	// Default: this program.
	Supervisor string
}

// Forward leads connections to Listen, on the host, to To, inside the lab.
type Forward struct {
	Listen netip.AddrPort `json:"listen"`
	To     netip.AddrPort `json:"to"`
}

// ParseForward reads 127.0.0.1:6385=10.77.0.1:6385.
func ParseForward(text string) (Forward, error) {
	left, right, ok := strings.Cut(text, "=")
	listen, err1 := netip.ParseAddrPort(left)
	to, err2 := netip.ParseAddrPort(right)
	if !ok || err1 != nil || err2 != nil {
		return Forward{}, fmt.Errorf("%q is no forwarding: write HOST:PORT=INSIDE:PORT, as in 127.0.0.1:6385=10.77.0.1:6385", text)
	}
	return Forward{listen, to}, nil
}

// supervisorName is the supervisor's argv[0], by which Reexec knows it.
const supervisorName = "slipway-lab-supervisor"

// Descriptors that the supervisor inherits; forwards' listeners follow.
const (
	fdReady = 3 + iota // one line of JSON goes out here when the lab is up, or is not
	fdLock             // holds the directory's lock
	fdLife             // ends when the program that started the lab does, if tied
	fdForwards
)

// Start runs a lab and returns when its network is up and its BMCs answer; all
// machines are off. The lab ends by Close, and by the end of this program
// unless Options.Detach.
func Start(ctx context.Context, spec *Spec, opts Options) (*Lab, error) {
	what := "start the lab " + spec.Name
	lock, err := claim(opts)
	if err != nil {
		if errors.Is(err, errRunning) {
			return nil, &Error{What: what, Why: "a lab is already running in " + opts.Dir, Next: "end it with `slipway-lab down`, or use another --state directory", Err: err}
		}
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer func() { _ = lock.Close() }()
	if err := lay(spec, opts); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return launch(ctx, spec, opts, lock)
}

// claim makes and locks the directory and clears what an earlier lab left.
func claim(opts Options) (*os.File, error) {
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, err
	}
	err = sweep(opts.Dir)
	if err == nil && opts.Fresh {
		err = os.RemoveAll(filepath.Join(opts.Dir, machinesFolder))
	}
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	return lock, nil
}

// lay makes the files that machines keep between runs: disks and the SSH key.
func lay(spec *Spec, opts Options) error {
	for _, m := range spec.Machines {
		if err := os.MkdirAll(machineDir(opts.Dir, m.Name), 0o700); err != nil {
			return err
		}
		for i, d := range m.Disks {
			if err := layDisk(diskPath(opts.Dir, m.Name, i), d); err != nil {
				return fmt.Errorf("machine %s: disk %s: %w", m.Name, d.Serial, err)
			}
		}
	}
	if err := layKey(filepath.Join(opts.Dir, sshFolder)); err != nil {
		return err
	}
	return writeSetup(opts.Dir, &setup{Spec: spec, Forwards: opts.Forwards, Tied: !opts.Detach})
}

// layDisk makes a sparse file of the disk's size. One of another size is from
// another lab file and is not silently thrown away.
func layDisk(path string, d Disk) error {
	info, err := os.Stat(path)
	if err == nil {
		if info.Size() != int64(d.Size) {
			return fmt.Errorf("%s holds %d bytes and the lab file says %d: start with --fresh to throw it away", path, info.Size(), d.Size)
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = fill(f, d)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func fill(f *os.File, d Disk) error {
	if d.Image != "" {
		in, err := os.Open(d.Image)
		if err != nil {
			return err
		}
		defer func() { _ = in.Close() }()
		n, err := io.Copy(f, in)
		if err != nil {
			return err
		}
		if n > int64(d.Size) {
			return fmt.Errorf("the image %s has %d bytes, more than the disk's %d", d.Image, n, d.Size)
		}
	}
	return f.Truncate(int64(d.Size))
}

// launch starts the supervisor and waits for its word.
func launch(ctx context.Context, spec *Spec, opts Options, lock *os.File) (*Lab, error) {
	files, life, ready, err := inherit(opts, lock)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ready.Close() }()
	defer closeFiles(files)
	log, err := os.OpenFile(filepath.Join(opts.Dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, errors.Join(err, life.Close())
	}
	defer func() { _ = log.Close() }()
	program := opts.Supervisor
	if program == "" {
		program = "/proc/self/exe"
	}
	cmd := exec.Command(program)
	cmd.Args = []string{supervisorName, opts.Dir}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = files
	cmd.SysProcAttr = netns.Attributes()
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		err = errors.Join(netns.Explain(err), life.Close())
		var refusal *netns.Refusal
		if errors.As(err, &refusal) {
			return nil, &Error{What: "start the lab " + spec.Name, Why: refusal.Error(), Next: refusal.Next, Err: err, Refused: true}
		}
		return nil, fmt.Errorf("start the lab %s: run the supervisor: %w", spec.Name, err)
	}
	closeFiles(files)
	l := &Lab{dir: opts.Dir, spec: spec, owned: !opts.Detach, life: life, ended: make(chan struct{})}
	go func() {
		// Its exit status says nothing that the log does not.
		_ = cmd.Wait()
		close(l.ended)
	}()
	if err := await(ctx, ready, filepath.Join(opts.Dir, logFile)); err != nil {
		_ = cmd.Process.Kill()
		<-l.ended
		return nil, errors.Join(err, life.Close())
	}
	if opts.Detach {
		return l, life.Close()
	}
	return l, nil
}

// inherit makes the supervisor's descriptors. life is this program's end of
// the pipe that ties the two together, ready where the supervisor's word comes.
func inherit(opts Options, lock *os.File) (files []*os.File, life, ready *os.File, err error) {
	ready, readyW, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	lifeR, life, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, errors.Join(err, ready.Close(), readyW.Close())
	}
	files = []*os.File{readyW, lock, lifeR}
	for _, f := range opts.Forwards {
		file, err := listenFile(f.Listen)
		if err != nil {
			closeFiles(append(files, life, ready))
			return nil, nil, nil, &Error{What: "forward " + f.Listen.String() + " into the lab", Why: err.Error(), Next: "choose another port of the host for it", Err: err}
		}
		files = append(files, file)
	}
	return files, life, ready, nil
}

// listenFile listens in the host's network; the socket stays there whoever
// holds its descriptor.
func listenFile(addr netip.AddrPort) (*os.File, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	return l.File()
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // a second close of one is harmless
	}
}

// await reads the supervisor's one line.
func await(ctx context.Context, ready *os.File, log string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ready.Close() })
	defer stop()
	var word struct{ Error *Error }
	if err := json.NewDecoder(ready).Decode(&word); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("the lab's supervisor did not get ready: %w", context.Cause(ctx))
		}
		return &Error{What: "start the lab", Why: "its supervisor ended before it was ready", Next: "read " + log, Err: err}
	}
	if word.Error != nil {
		return word.Error
	}
	return nil
}
