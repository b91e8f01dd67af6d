package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/testenv/qmp"
)

// qemu is a peer that speaks as QEMU 7.2 was recorded to.
type qemu struct {
	t    *testing.T
	path string
	ln   net.Listener
}

func start(t *testing.T, path string, serve func(conn net.Conn, lines *bufio.Scanner)) *qemu {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	q := &qemu{t, path, ln}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`)
			serve(conn, bufio.NewScanner(conn))
			conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return q
}

func answer(t *testing.T, conn net.Conn, line []byte, known map[string]string) (command string) {
	var in struct {
		Execute string
		ID      uint64
	}
	if err := json.Unmarshal(line, &in); err != nil {
		t.Errorf("request %s: %v", line, err)
	}
	if in.Execute == "qmp_capabilities" {
		fmt.Fprintf(conn, `{"return": {}, "id": %d}`+"\n", in.ID)
	} else if a, ok := known[in.Execute]; ok {
		fmt.Fprintf(conn, `{"return": %s, "id": %d}`+"\n", a, in.ID)
	} else {
		fmt.Fprintf(conn, `{"id": %d, "error": {"class": "CommandNotFound", "desc": "The command %s has not been found"}}`+"\n", in.ID, in.Execute)
	}
	return in.Execute
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return c
}

func TestExecuteReturnsAnswersAndRefusals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	start(t, path, func(conn net.Conn, lines *bufio.Scanner) {
		for lines.Scan() {
			// An event between command and answer must not be taken for the answer.
			fmt.Fprintln(conn, `{"timestamp": {"seconds": 1700000000, "microseconds": 5}, "event": "RESET", "data": {"guest": true}}`)
			answer(t, conn, lines.Bytes(), map[string]string{"query-status": `{"status": "running", "running": true}`})
		}
	})
	c, err := qmp.Dial(ctx(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var status struct{ Running bool }
	if err := c.Execute(ctx(t), "query-status", nil, &status); err != nil || !status.Running {
		t.Fatalf("running %v, error %v", status.Running, err)
	}
	var refused *qmp.Error
	if err := c.Execute(ctx(t), "frobnicate", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Fatalf("want CommandNotFound, have %v", err)
	}
	if e := <-c.Events(); e.Name != "RESET" || e.Time.Unix() != 1700000000 {
		t.Fatalf("event %+v", e)
	}
}

func TestDialWaitsForASocketThatAppearsLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	dialled := make(chan error, 1)
	go func() {
		c, err := qmp.Dial(ctx(t), path)
		if err == nil {
			err = c.Close()
		}
		dialled <- err
	}()
	start(t, path, func(conn net.Conn, lines *bufio.Scanner) {
		for lines.Scan() {
			answer(t, conn, lines.Bytes(), nil)
		}
	})
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
}

func TestDialGivesUpWithTheLastCause(t *testing.T) {
	c, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := qmp.Dial(c, filepath.Join(t.TempDir(), "nobody"))
	if !errors.Is(err, context.DeadlineExceeded) || err == nil {
		t.Fatal(err)
	}
}

func TestADeadQEMUEndsCallsAndEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	start(t, path, func(conn net.Conn, lines *bufio.Scanner) {
		for lines.Scan() {
			if answer(t, conn, lines.Bytes(), map[string]string{}) == "quit" {
				return
			}
		}
	})
	c, err := qmp.Dial(ctx(t), path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Execute(ctx(t), "quit", nil, nil) // answered or cut: both are QEMU's habit
	<-c.Done()
	for range c.Events() {
	}
	if err := c.Execute(ctx(t), "query-status", nil, nil); !errors.Is(err, qmp.ErrClosed) {
		t.Fatalf("want ErrClosed, have %v", err)
	}
	// The next QEMU at the same path is a new client.
	c2, err := qmp.Dial(ctx(t), path)
	if err != nil {
		t.Fatal(err)
	}
	c2.Close()
}

func TestEventsDropTheOldestWhenNobodyReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	start(t, path, func(conn net.Conn, lines *bufio.Scanner) {
		for lines.Scan() {
			if answer(t, conn, lines.Bytes(), map[string]string{"stop": "{}"}) == "stop" {
				for i := range 1000 {
					fmt.Fprintf(conn, `{"event": "E%d"}`+"\n", i)
				}
				return
			}
		}
	})
	c, err := qmp.Dial(ctx(t), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Execute(ctx(t), "stop", nil, nil); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	var last string
	n := 0
	for e := range c.Events() {
		last = e.Name
		n++
	}
	if last != "E999" || n > 64 {
		t.Fatalf("last %s of %d kept", last, n)
	}
}
