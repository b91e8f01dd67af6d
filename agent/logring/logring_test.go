package logring

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	var console bytes.Buffer
	l := New(&console, slog.LevelInfo)
	var tapped []string
	l.Tap(func(level slog.Level, line string) { tapped = append(tapped, level.String()+" "+line) })
	log := slog.New(l).With("node", "n1")
	log.Info("link set up", "nic", "eth0")
	log.Debug("not shown")
	log.Warn("no answer", "error", "a b", "empty", "")
	l.Line("write_image: write 41 %")
	want := "slipway-agent: link set up node=n1 nic=eth0\n" +
		"slipway-agent: warn: no answer node=n1 error=\"a b\" empty=\"\"\n" +
		"slipway-agent: write_image: write 41 %\n"
	if console.String() != want {
		t.Errorf("console:\n%s", console.String())
	}
	if len(tapped) != 1 || tapped[0] != `WARN no answer node=n1 error="a b" empty=""` {
		t.Errorf("tapped %q", tapped)
	}
	if kept := string(l.Bytes()); strings.Count(kept, "\n") != 2 || strings.Contains(kept, "41 %") {
		t.Errorf("kept:\n%s", kept)
	}
}

// The oldest lines go, whole, and the newest stay.
func TestKeptIsBounded(t *testing.T) {
	l := New(&bytes.Buffer{}, slog.LevelInfo)
	log := slog.New(l)
	for i := range 10_000 {
		log.Info(fmt.Sprintf("line %d %s", i, strings.Repeat("x", 80)))
	}
	kept := string(l.Bytes())
	first, _, _ := strings.Cut(kept, "\n")
	if len(kept) > size || !strings.Contains(first, "line ") || !strings.Contains(kept, "line 9999 ") || strings.Contains(kept, "line 1 ") {
		t.Fatalf("%d bytes, first %q", len(kept), first)
	}
}
