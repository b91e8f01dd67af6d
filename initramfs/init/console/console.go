// Package console writes PID 1's progress to every console the kernel uses, so
// that whoever looks, at a screen or over serial-over-LAN, sees the same.
package console

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// queueLines bounds what waits for a slow console. A serial line whose other
// end holds it (flow control) must not stop the machine: lines are dropped.
const queueLines = 512

// Log writes lines to consoles without ever blocking its callers.
type Log struct {
	lines   chan string
	mu      sync.Mutex // guards dropped
	dropped int
	since   time.Time
	flushed chan chan struct{}
}

// New starts a log to w. since is power-on, as near as the kernel knows.
func New(since time.Time, w ...io.Writer) *Log {
	l := &Log{lines: make(chan string, queueLines), since: since, flushed: make(chan chan struct{})}
	go l.write(w)
	return l
}

// Active opens the consoles that the kernel writes to, and /dev/console if it
// names none.
func Active(sys string) []io.Writer {
	var out []io.Writer
	names, err := os.ReadFile(sys + "/class/tty/console/active")
	if err == nil {
		for name := range strings.FieldsSeq(string(names)) {
			if f, err := os.OpenFile("/dev/"+name, os.O_WRONLY|syscall.O_NOCTTY, 0); err == nil {
				out = append(out, f)
			}
		}
	}
	if len(out) == 0 {
		out = append(out, os.Stderr)
	}
	return out
}

// Printf writes a progress line: "slipway: [   1.23] …", seconds since the
// kernel started.
func (l *Log) Printf(format string, args ...any) {
	l.Line(fmt.Sprintf("slipway: [%7.2f] %s", time.Since(l.since).Seconds(), fmt.Sprintf(format, args...)))
}

// Line writes a line as it is.
func (l *Log) Line(line string) {
	select {
	case l.lines <- line:
	default:
		l.mu.Lock()
		l.dropped++
		l.mu.Unlock()
	}
}

// Flush waits until what was written so far is out, at most for patience.
func (l *Log) Flush(patience time.Duration) {
	timeout := time.After(patience)
	done := make(chan struct{})
	select {
	case l.flushed <- done:
	case <-timeout:
		return
	}
	select {
	case <-done:
	case <-timeout:
	}
}

func (l *Log) write(consoles []io.Writer) {
	put := func(line string) {
		l.mu.Lock()
		dropped := l.dropped
		l.dropped = 0
		l.mu.Unlock()
		text := line + "\n"
		if dropped > 0 {
			text = fmt.Sprintf("slipway: %d lines were dropped, the console is too slow\n%s", dropped, text)
		}
		for _, w := range consoles {
			// A console that fails (unplugged) has nobody to tell.
			_, _ = io.WriteString(w, text)
		}
	}
	for {
		select {
		case line := <-l.lines:
			put(line)
		case done := <-l.flushed:
			for len(l.lines) > 0 {
				put(<-l.lines)
			}
			close(done)
		}
	}
}
