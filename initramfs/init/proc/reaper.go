// Package proc is the part of PID 1 that deals with processes: it reaps every
// child, its own and the orphans it inherits, and keeps one program running.
package proc

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Reaper waits for all children of this process. Only it may wait: os/exec,
// which waits for its own, must not be used beside it.
type Reaper struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

// NewReaper returns a Reaper at work.
func NewReaper() *Reaper {
	r := &Reaper{waiting: make(map[int]chan syscall.WaitStatus)}
	died := make(chan os.Signal, 1) // one pending signal stands for many deaths
	signal.Notify(died, syscall.SIGCHLD)
	go func() {
		for range died {
			r.reap()
		}
	}()
	return r
}

// Start starts a program. Its status comes on the channel when it has ended.
func (r *Reaper) Start(argv []string, attr *syscall.ProcAttr) (pid int, done <-chan syscall.WaitStatus, err error) {
	r.mu.Lock() // a child that dies at once is not reaped before it is known
	defer r.mu.Unlock()
	pid, err = syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	ch := make(chan syscall.WaitStatus, 1)
	r.waiting[pid] = ch
	return pid, ch, nil
}

func (r *Reaper) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return // no child has ended, or there is none
		}
		r.mu.Lock()
		if ch := r.waiting[pid]; ch != nil {
			ch <- status
			delete(r.waiting, pid)
		}
		r.mu.Unlock()
	}
}

// Reason says in words how a process ended.
func Reason(s syscall.WaitStatus) string {
	switch {
	case s.Signaled() && s.CoreDump():
		return fmt.Sprintf("killed by %s, core dumped", s.Signal())
	case s.Signaled():
		return fmt.Sprintf("killed by %s", s.Signal())
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}
