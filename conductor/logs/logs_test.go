package logs

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/proto/event"
)

const node = "5cb1a8f0-0000-4000-8000-000000000001"

func line(i int) event.Event {
	return event.New(node, event.KindLog, time.Unix(int64(i), 0), event.Log{Level: "info", Source: "agent", Message: fmt.Sprint("line ", i, " ", strings.Repeat("x", 200))})
}

func keeper(t *testing.T) *Keeper {
	t.Helper()
	k, err := New(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestLogsOutliveTheConductorAndStayBounded(t *testing.T) {
	k := keeper(t)
	ch := make(chan event.Event)
	done := make(chan error)
	go func() { done <- k.Run(t.Context(), ch) }()
	const n = 20000
	for i := range n {
		ch <- line(i)
		ch <- event.New(node, event.KindProgress, time.Now(), event.Progress{})
	}
	close(ch)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	again, err := New(k.dir, k.log)
	if err != nil {
		t.Fatal(err)
	}
	got, err := again.Tail(node, 100)
	if err != nil || len(got) != 100 || !strings.Contains(string(got[99].Data), fmt.Sprint("line ", n-1, " ")) {
		t.Fatalf("%d lines, %v: want the last 100", len(got), err)
	}
	files, err := filepath.Glob(filepath.Join(k.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > fileLimit+1000 {
			t.Errorf("%s has %d bytes (%v)", f, st.Size(), err)
		}
	}
	if len(files) != 2 {
		t.Errorf("%d files, want the present and one old", len(files))
	}
	k.Forget(node)
	if got, err := k.Tail(node, 1); err != nil || len(got) != 0 {
		t.Errorf("a forgotten node has %d lines, %v", len(got), err)
	}
}

func TestALineCutShortIsLeftOut(t *testing.T) {
	k := keeper(t)
	if err := k.keep(line(1)); err != nil {
		t.Fatal(err)
	}
	path, err := k.path(node)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"id":1,"no`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got, err := k.Tail(node, 10); err != nil || len(got) != 1 {
		t.Errorf("%d lines, %v", len(got), err)
	}
}

func TestNamesStayInTheDirectory(t *testing.T) {
	k := keeper(t)
	for _, name := range []string{"", "../../etc/passwd", "x", strings.Repeat("a", 36) + "/"} {
		if _, err := k.Tail(name, 1); err == nil {
			t.Errorf("%q is taken for a node", name)
		}
	}
}
