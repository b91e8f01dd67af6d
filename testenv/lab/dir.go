package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// Error is what went wrong, why, and what to do next: three lines to a person.
type Error struct {
	What string `json:"what"`
	Why  string `json:"why"`
	Next string `json:"next"`
	Err  error  `json:"-"`
	// Refused means that this host does not allow what a lab needs, so that a
	// test can say so and be skipped.
	Refused bool `json:"refused,omitempty"`
}

func (e *Error) Error() string { return e.What + ": " + e.Why + " (" + e.Next + ")" }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Names in a lab's directory.
const (
	setupFile      = "lab.json"
	controlSocket  = "control.sock"
	lockFile       = "lock"
	logFile        = "supervisor.log"
	machinesFolder = "machines"
	sshFolder      = "ssh"
	sshKeyFile     = "id_ed25519"
)

// setup is what Start tells the supervisor, and what a command finds out
// about a lab from its directory.
type setup struct {
	Spec     *Spec     `json:"spec"`
	Forwards []Forward `json:"forwards"`
	Tied     bool      `json:"tied"` // ends with the program that started it
}

// machineDir is where one machine's files are.
func machineDir(dir, machine string) string { return filepath.Join(dir, machinesFolder, machine) }

// diskPath is where one disk's bytes are.
func diskPath(dir, machine string, disk int) string {
	return filepath.Join(machineDir(dir, machine), "disk"+strconv.Itoa(disk)+".raw")
}

func readSetup(dir string) (*setup, error) {
	data, err := os.ReadFile(filepath.Join(dir, setupFile))
	if err != nil {
		return nil, err
	}
	var s setup
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, setupFile), err)
	}
	return &s, nil
}

func writeSetup(dir string, s *setup) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, setupFile), append(data, '\n'), 0o600)
}

// errRunning means that a supervisor holds the directory.
var errRunning = errors.New("a lab is running in this directory")

// lockDir takes the directory for one lab. The lock belongs to the open file,
// which the supervisor inherits; the kernel drops it with the last holder, so
// none is left after a crash.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errRunning
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// running tells whether a supervisor holds the directory.
func running(dir string) bool {
	if _, err := os.Stat(filepath.Join(dir, lockFile)); err != nil {
		return false
	}
	f, err := lockDir(dir)
	if err != nil {
		return errors.Is(err, errRunning)
	}
	_ = f.Close()
	return false
}

// sweep removes what only a running lab has: an unclean end leaves it behind.
func sweep(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, machinesFolder, "*", "*.sock"))
	if err != nil {
		return err
	}
	for _, path := range append(old, filepath.Join(dir, controlSocket), filepath.Join(dir, setupFile)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// unixPath gives a socket in a directory of any depth a path that fits into a
// socket's address (107 bytes). done ends its use.
func unixPath(dir, name string) (path string, done func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(d.Fd())), name), func() { _ = d.Close() }, nil
}

func listenUnix(dir, name string) (net.Listener, error) {
	path, done, err := unixPath(dir, name)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the path is gone by then; sweep removes the file
	return l, nil
}

func dialUnix(dir, name string) (net.Conn, error) {
	path, done, err := unixPath(dir, name)
	if err != nil {
		return nil, err
	}
	defer done()
	return net.Dial("unix", path)
}
