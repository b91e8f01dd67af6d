package proc

import (
	"bytes"
	"slices"
	"strings"
)

const (
	tailLines  = 40   // kept of ordinary output
	panicLines = 60   // kept from the line on that begins a panic
	lineBytes  = 1000 // longer lines are cut
)

// Tail keeps what explains an end: the last lines, or, when a Go program
// panics, the beginning of its report, for the reason stands first and
// hundreds of lines of goroutines follow. It passes whole lines on.
type Tail struct {
	Pass    func(line string)
	partial []byte
	lines   []string
	panicAt int // index of the panic's first line, -1 before
	started bool
}

// Write takes output as it comes.
func (t *Tail) Write(p []byte) (int, error) {
	n := len(p)
	for {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		if room := lineBytes - len(t.partial); len(line) > room {
			line = line[:max(room, 0)]
		}
		t.partial = append(t.partial, line...)
		if !whole {
			return n, nil
		}
		t.add(strings.TrimSuffix(string(t.partial), "\r"))
		t.partial = t.partial[:0]
		p = rest
	}
}

// Lines returns what was kept, with an unfinished last line.
func (t *Tail) Lines() []string {
	if len(t.partial) > 0 {
		t.add(string(t.partial))
		t.partial = nil
	}
	return slices.Clone(t.lines)
}

func (t *Tail) add(line string) {
	if t.Pass != nil {
		t.Pass(line)
	}
	if !t.started && (strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")) {
		t.started = true
		t.lines = t.lines[max(0, len(t.lines)-tailLines/4):]
		t.panicAt = len(t.lines)
	}
	switch {
	case t.started && len(t.lines) >= t.panicAt+panicLines:
		return
	case !t.started && len(t.lines) == tailLines:
		t.lines = append(t.lines[:0], t.lines[1:]...)
	}
	t.lines = append(t.lines, line)
}
