package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Crash is what /run/slipway/last-crash holds (JSON): why the agent that ran
// before this one ended. The agent reports it to the conductor.
type Crash struct {
	// Exit is "exit status 2" or "killed by segmentation fault".
	Exit string `json:"exit"`
	// Ran is how long it had run, in seconds.
	Ran float64 `json:"ran_seconds"`
	// Count is how many ends there have been since power-on, this one included.
	Count int `json:"count"`
	// Output is the last of its output, or the beginning of its panic.
	Output []string `json:"output"`
}

// Restart delays double from the first to the longest; a program that has run
// for steady begins anew.
const (
	firstDelay   = 500 * time.Millisecond
	longestDelay = 30 * time.Second
	steady       = time.Minute
)

// Keeper keeps a program running.
type Keeper struct {
	Argv      []string
	Env       []string
	CrashFile string
	// Log takes progress lines.
	Log func(format string, args ...any)
	// Output takes the program's lines.
	Output func(line string)
	// Launch runs the program once; (*Reaper).Launch outside tests.
	Launch func(argv, env []string, out *Tail) (pid int, wait func() string, err error)

	mu  sync.Mutex
	pid int
}

// Run starts the program, and again whenever it has ended, until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	delay := firstDelay
	for n := 1; ctx.Err() == nil; n++ {
		start := time.Now()
		tail := &Tail{Pass: k.Output}
		reason := k.once(tail)
		if ctx.Err() != nil {
			return
		}
		ran := time.Since(start)
		if ran >= steady {
			delay = firstDelay
		}
		k.Log("agent ended (%s) after %.1f s; start %d in %v", reason, ran.Seconds(), n+1, delay)
		crash := Crash{Exit: reason, Ran: ran.Seconds(), Count: n, Output: tail.Lines()}
		if err := crash.save(k.CrashFile); err != nil {
			k.Log("%v", err)
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		delay = min(2*delay, longestDelay)
	}
}

// Signal sends the running program a signal; without one it does nothing.
func (k *Keeper) Signal(sig syscall.Signal) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pid == 0 {
		return nil
	}
	if err := syscall.Kill(k.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s: %w", k.Argv[0], err)
	}
	return nil
}

// WaitGone waits until the program has ended, at most for patience.
func (k *Keeper) WaitGone(patience time.Duration) {
	for end := time.Now().Add(patience); k.running() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

func (k *Keeper) running() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pid != 0
}

func (k *Keeper) once(tail *Tail) (reason string) {
	pid, wait, err := k.Launch(k.Argv, k.Env, tail)
	if err != nil {
		return err.Error()
	}
	k.setPID(pid)
	defer k.setPID(0)
	k.Log("agent started, process %d", pid)
	return wait()
}

func (k *Keeper) setPID(pid int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pid = pid
}

func (c Crash) save(file string) error {
	text, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("note why the agent ended: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("note why the agent ended: %w", err)
	}
	if err := os.WriteFile(file+".new", append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("note why the agent ended: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("note why the agent ended: %w", err)
	}
	return nil
}

// drain is how long output is still read after the program has ended: something
// it left running may hold the pipe open.
const drain = time.Second

// Launch starts a program with its output going to out.
func (r *Reaper) Launch(argv, env []string, out *Tail) (pid int, wait func() string, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	defer null.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	defer write.Close()
	pid, done, err := r.Start(argv, &syscall.ProcAttr{
		Dir: "/", Env: env,
		Files: []uintptr{null.Fd(), write.Fd(), write.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, nil, errors.Join(err, read.Close())
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		// The pipe's end, or the deadline below; nothing else can come.
		_, _ = read.WriteTo(out)
	}()
	return pid, func() string {
		status := <-done
		_ = read.SetReadDeadline(time.Now().Add(drain))
		<-copied
		if err := read.Close(); err != nil {
			return fmt.Sprintf("%s (%v)", Reason(status), err)
		}
		return Reason(status)
	}, nil
}
