// Package logring writes the agent's log for people on the serial console and
// keeps the last of it for the conductor.
package logring

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// size is how much of the log is kept, bytes.
const size = 256 << 10

// Log is a slog.Handler. Lines look like
// "slipway-agent: link set up nic=eth0 mac=52:54:00:…": short, as a serial
// console gives 11 kB/s and its reader one line.
type Log struct {
	shared *shared
	level  slog.Leveler
	attrs  []slog.Attr
	prefix string
}

type shared struct {
	mu      sync.Mutex
	console io.Writer
	kept    []byte
	tap     func(level slog.Level, line string)
}

// New makes a handler that writes to console.
func New(console io.Writer, level slog.Leveler) *Log {
	return &Log{shared: &shared{console: console}, level: level}
}

// Tap gives every line of level Warn and above to f as well; f must not log.
func (l *Log) Tap(f func(level slog.Level, line string)) {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	l.shared.tap = f
}

// Bytes is the log that is kept, oldest line first.
func (l *Log) Bytes() []byte {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	return slices.Clone(l.shared.kept)
}

// Line writes a line to the console alone; progress uses it.
func (l *Log) Line(text string) {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	fmt.Fprintf(l.shared.console, "slipway-agent: %s\n", text) //nolint:errcheck // there is nowhere else to say it
}

// Enabled implements slog.Handler.
func (l *Log) Enabled(_ context.Context, level slog.Level) bool { return level >= l.level.Level() }

// Handle implements slog.Handler.
func (l *Log) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	mark := 0
	if r.Level >= slog.LevelWarn || r.Level < slog.LevelInfo {
		b.WriteString(strings.ToLower(r.Level.String()) + ": ")
		mark = b.Len()
	}
	b.WriteString(r.Message)
	for _, a := range l.attrs {
		write(&b, l.prefix, a)
	}
	r.Attrs(func(a slog.Attr) bool { write(&b, l.prefix, a); return true })
	line := b.String()

	s := l.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = append(s.kept, r.Time.UTC().Format(time.RFC3339)+" "+line+"\n"...)
	if over := len(s.kept) - size; over > 0 {
		if cut := bytes.IndexByte(s.kept[over:], '\n'); cut >= 0 {
			over += cut + 1
		}
		s.kept = slices.Clone(s.kept[over:])
	}
	if s.tap != nil && r.Level >= slog.LevelWarn {
		s.tap(r.Level, line[mark:])
	}
	_, err := fmt.Fprintf(s.console, "slipway-agent: %s\n", line)
	return err
}

func write(b *strings.Builder, prefix string, a slog.Attr) {
	v := a.Value.Resolve().String()
	if strings.ContainsAny(v, " \t\n\"=") || v == "" {
		v = fmt.Sprintf("%q", v)
	}
	fmt.Fprintf(b, " %s%s=%s", prefix, a.Key, v)
}

// WithAttrs implements slog.Handler.
func (l *Log) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *l
	c.attrs = append(slices.Clone(l.attrs), attrs...)
	return &c
}

// WithGroup implements slog.Handler.
func (l *Log) WithGroup(name string) slog.Handler {
	c := *l
	c.prefix = l.prefix + name + "."
	return &c
}
