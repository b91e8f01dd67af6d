package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestOutputIsKeptFromItsEnd(t *testing.T) {
	var passed int
	tail := &Tail{Pass: func(string) { passed++ }}
	for i := range 100 {
		if _, err := fmt.Fprintf(tail, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fmt.Fprint(tail, "unfinished"); err != nil {
		t.Fatal(err)
	}
	lines := tail.Lines()
	if len(lines) != tailLines || lines[0] != "line 61" || lines[len(lines)-1] != "unfinished" {
		t.Errorf("kept %d lines, %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
	if passed != 101 {
		t.Errorf("passed %d lines on, want 101", passed)
	}
}

// A panic with hundreds of goroutines must not push its own reason out.
func TestAPanicIsKeptFromItsBeginning(t *testing.T) {
	tail := &Tail{}
	var text strings.Builder
	for i := range 50 {
		fmt.Fprintf(&text, "before %d\n", i)
	}
	text.WriteString("panic: runtime error: index out of range [3] with length 3\n")
	for i := range 500 {
		fmt.Fprintf(&text, "goroutine %d [running]:\n", i)
	}
	if _, err := tail.Write([]byte(text.String())); err != nil {
		t.Fatal(err)
	}
	lines := strings.Join(tail.Lines(), "\n")
	for _, want := range []string{"before 49", "panic: runtime error: index out of range", "goroutine 0 "} {
		if !strings.Contains(lines, want) {
			t.Errorf("%q was not kept", want)
		}
	}
	if strings.Contains(lines, "goroutine 499") {
		t.Error("all goroutines were kept")
	}
}

func TestALineWithoutEndDoesNotGrow(t *testing.T) {
	tail := &Tail{}
	for range 1000 {
		if _, err := tail.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if lines := tail.Lines(); len(lines) != 1 || len(lines[0]) != lineBytes {
		t.Errorf("kept %d lines of %d bytes", len(lines), len(lines[0]))
	}
}

func TestAProgramThatEndsIsStartedAgainEverMoreSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var starts []time.Duration
		begin := time.Now()
		lives := []time.Duration{0, 0, 0, 0, 0, 0, 0, 0, 2 * time.Minute, 0}
		k := &Keeper{
			Argv: []string{"agent"}, CrashFile: filepath.Join(t.TempDir(), "run", "last-crash"),
			Log: func(string, ...any) {}, Output: func(string) {},
			Launch: func(_, _ []string, out *Tail) (int, func() string, error) {
				starts = append(starts, time.Since(begin))
				if len(starts) == len(lives) {
					cancel()
				}
				return 1, func() string {
					fmt.Fprintln(out, "panic: out of luck")
					time.Sleep(lives[len(starts)-1])
					return "exit status 2"
				}, nil
			},
		}
		k.Run(ctx)
		var gaps []string
		for i := 1; i < len(starts); i++ {
			gaps = append(gaps, (starts[i] - starts[i-1] - lives[i-1]).String())
		}
		if got, want := strings.Join(gaps, " "), "500ms 1s 2s 4s 8s 16s 30s 30s 500ms"; got != want {
			t.Errorf("delays %s\nwant   %s", got, want)
		}
		text, err := os.ReadFile(k.CrashFile)
		if err != nil {
			t.Fatal(err)
		}
		var crash Crash
		if err := json.Unmarshal(text, &crash); err != nil {
			t.Fatal(err)
		}
		if crash.Exit != "exit status 2" || crash.Count != 9 || len(crash.Output) != 1 || crash.Output[0] != "panic: out of luck" {
			t.Errorf("crash file: %+v", crash)
		}
	})
}

func TestAProgramThatCannotStartIsReportedToo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var said []string
	k := &Keeper{
		Argv: []string{"agent"}, CrashFile: filepath.Join(t.TempDir(), "last-crash"),
		Log:    func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)); cancel() },
		Output: func(string) {},
		Launch: func(_, _ []string, _ *Tail) (int, func() string, error) {
			return 0, nil, errors.New("exec format error")
		},
	}
	k.Run(ctx)
	if len(said) == 0 || !strings.Contains(said[0], "exec format error") {
		t.Errorf("said %q", said)
	}
}

// The reaper takes every child of its process, so these run in one test, with
// no other child about.
func TestRealProcessesAreReapedAndTheirOutputKept(t *testing.T) {
	r := NewReaper()
	for _, c := range []struct{ script, reason, output string }{
		{"echo out; echo err >&2; exit 3", "exit status 3", "out\nerr"},
		{"kill -SEGV $$", "killed by segmentation fault", ""},
		{"exit 0", "exit status 0", ""},
		{"(sleep 1 >/dev/null 2>&1 &) ; echo left an orphan", "exit status 0", "left an orphan"},
	} {
		tail := &Tail{}
		pid, wait, err := r.Launch([]string{"/bin/sh", "-c", c.script}, []string{"PATH=/bin:/usr/bin"}, tail)
		if err != nil {
			t.Fatal(err)
		}
		if got := wait(); !strings.HasPrefix(got, c.reason) { // ", core dumped" may follow
			t.Errorf("%s: ended with %q, want %q", c.script, got, c.reason)
		}
		if got := strings.Join(tail.Lines(), "\n"); got != c.output {
			t.Errorf("%s: output %q, want %q", c.script, got, c.output)
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s: process %d is still there: %v", c.script, pid, err)
		}
	}
	if _, _, err := r.Launch([]string{"/no/such/program"}, nil, &Tail{}); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("error %v does not name the program", err)
	}
}
