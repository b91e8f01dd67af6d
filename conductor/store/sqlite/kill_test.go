package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/store/sqlite"
)

// victimEnv makes the test binary the process that is killed, on this file.
const victimEnv = "SLIPWAY_TEST_VICTIM"

// What a conductor was told is committed is there after kill -9, and nothing of
// a move is there without the rest of it (faults.md, F07).
func TestWhatWasAcknowledgedSurvivesKillNine(t *testing.T) {
	if path := os.Getenv(victimEnv); path != "" {
		beVictim(t, path)
		return
	}
	path := filepath.Join(t.TempDir(), "slipway.db")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestWhatWasAcknowledgedSurvivesKillNine$")
	cmd.Env = append(os.Environ(), victimEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acknowledged []int
	for lines := bufio.NewScanner(out); lines.Scan(); {
		i, err := strconv.Atoi(lines.Text())
		if err != nil {
			continue // go test's own words
		}
		if acknowledged = append(acknowledged, i); len(acknowledged) == 100 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the victim was not killed")
	}
	s := openAt(t, path, time.Now)
	for _, i := range acknowledged {
		if n, err := s.Node(t.Context(), fmt.Sprint("n", i)); err != nil || n.ProvisionState != state.Verifying {
			t.Errorf("acknowledged node n%d: %+v, %v", i, n, err)
		}
	}
	nodes, err := s.Nodes(t.Context(), store.NodeFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		_, err := s.WorkOf(t.Context(), n.UUID)
		h, herr := s.Histories(t.Context(), n.UUID, 0)
		moved := n.ProvisionState == state.Verifying
		if moved != (err == nil) || herr != nil || moved != (len(h) == 1) {
			t.Errorf("node %s is in %q with work %v and history %v, %v", n.Name, n.ProvisionState, err, h, herr)
		}
	}
	t.Logf("%d acknowledged, %d stored", len(acknowledged), len(nodes))
}

// beVictim moves nodes from many goroutines and says which moves returned.
func beVictim(t *testing.T, path string) {
	s, err := sqlite.Open(path, key, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < 100_000; i += 8 {
				n := &store.Node{Name: fmt.Sprint("n", i)}
				if err := s.CreateNode(t.Context(), n); err != nil {
					t.Error(err)
					return
				}
				_, err := s.Advance(t.Context(), store.Transition{Node: n.UUID, From: state.Enroll, Verbs: []state.Verb{state.VerbManage}})
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Println(i)
			}
		})
	}
	wg.Wait()
}
