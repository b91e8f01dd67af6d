package sqlite_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/store/sqlite"
	"github.com/slipway-metal/slipway/conductor/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = bytes.Repeat([]byte{7}, 32)

func openAt(t testing.TB, path string, now func() time.Time) store.Store {
	t.Helper()
	s, err := sqlite.Open(path, key, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// copyDB copies the database's files as they are on disk at this moment.
func copyDB(t testing.TB, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "crashed.db")
	for _, suffix := range []string{"", "-wal"} {
		raw, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+suffix, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestSuite(t *testing.T) {
	storetest.Run(t, func(t testing.TB, now func() time.Time) (store.Store, func() store.Store) {
		path := filepath.Join(t.TempDir(), "slipway.db")
		return openAt(t, path, now), func() store.Store { return openAt(t, copyDB(t, path), now) }
	})
}

func TestNoSecretIsReadableInTheFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slipway.db")
	s := openAt(t, path, time.Now)
	const canary = "c4n4ry"
	n := &store.Node{
		DriverInfo:         map[string]any{"redfish_password": canary + "1", "nested": map[string]any{"auth_key": canary + "2"}},
		DriverInternalInfo: map[string]any{"agent_secret_token": canary + "3"},
		InstanceInfo:       map[string]any{"configdrive": canary + "4"},
	}
	if err := s.CreateNode(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateNode(t.Context(), n.UUID, 0, func(n *store.Node) error { n.DriverInfo["ipmi_password"] = canary + "5"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateBoot(t.Context(), &store.Boot{Nonce: canary + "6", Path: canary + "7", NodeUUID: n.UUID}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Node(t.Context(), n.UUID)
	if err != nil {
		t.Fatal(err)
	}
	if got.DriverInfo["redfish_password"] != canary+"1" || got.DriverInfo["ipmi_password"] != canary+"5" {
		t.Errorf("the store reads %v", got.DriverInfo)
	}
	search := func(when string) {
		files, err := filepath.Glob(path + "*")
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, f := range files {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if i := bytes.Index(raw, []byte(canary)); i >= 0 {
				t.Errorf("%s: %s has a secret at byte %d", when, filepath.Base(f), i)
			}
			info, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %s has mode %v", when, filepath.Base(f), info.Mode())
			}
		}
	}
	search("while open")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	search("after closing")
}

func TestASealedBoxMovedToAnotherNodeDoesNotOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slipway.db")
	s := openAt(t, path, time.Now)
	for _, name := range []string{"a", "b"} {
		if err := s.CreateNode(t.Context(), &store.Node{Name: name, DriverInfo: map[string]any{"password": name}}); err != nil {
			t.Fatal(err)
		}
	}
	sqlite.Exec(t, s, "UPDATE nodes SET secrets = (SELECT secrets FROM nodes WHERE name = 'a') WHERE name = 'b'")
	if n, err := s.Node(t.Context(), "b"); err == nil {
		t.Errorf("read %v", n.DriverInfo)
	}
}

func TestAnotherKeyIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slipway.db")
	if err := openAt(t, path, time.Now).Close(); err != nil {
		t.Fatal(err)
	}
	for _, k := range [][]byte{bytes.Repeat([]byte{8}, 32), key[:16], nil} {
		if s, err := sqlite.Open(path, k, time.Now); err == nil || !strings.Contains(err.Error(), "key") {
			t.Errorf("opened %v with %d bytes of another key: %v", s, len(k), err)
		}
	}
	openAt(t, path, time.Now)
}

// A damaged file is refused with its name and what to do (faults.md, F10).
func TestADamagedFileIsRefused(t *testing.T) {
	good := filepath.Join(t.TempDir(), "slipway.db")
	s := openAt(t, good, time.Now)
	for range 200 {
		if err := s.CreateNode(t.Context(), &store.Node{Description: strings.Repeat("x", 2000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	middle := bytes.Clone(whole)
	copy(middle[len(middle)/2:], bytes.Repeat([]byte{0xa5}, 8192))
	for name, damaged := range map[string][]byte{
		"truncated": whole[:len(whole)/2], "overwritten": middle, "not a database": []byte(strings.Repeat("hello ", 1000)),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "slipway.db")
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := sqlite.Open(path, key, time.Now)
			if err == nil {
				t.Fatal("opened", s, s.Close())
			}
			for _, want := range []string{path, "damaged", "backup", ".recover"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, damaged) {
				t.Error("the damaged file was changed", err)
			}
		})
	}
}

func TestAFileOfANewerSlipwayIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slipway.db")
	s := openAt(t, path, time.Now)
	sqlite.Exec(t, s, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := sqlite.Open(path, key, time.Now); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("opened %v: %v", s, err)
	}
}

func TestAMissingDirectoryIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "slipway.db")
	if s, err := sqlite.Open(path, key, time.Now); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("opened %v: %v", s, err)
	}
}

func TestAPathWithOddCharacters(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b%20?c#d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sl&ip=way.db")
	if err := openAt(t, path, time.Now).Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		t.Errorf("the database is not where it was asked for: %v", err)
	}
}

func TestWritesAfterCloseAndUnderAnEndedContextFail(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "slipway.db"), time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.CreateNode(ctx, &store.Node{}); err == nil {
		t.Error("a write under an ended context succeeded")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateNode(t.Context(), &store.Node{}); err == nil {
		t.Error("a write after Close succeeded")
	}
	if err := s.Ping(t.Context()); err == nil {
		t.Error("it answers after Close")
	}
}

// Writers that meet share commits; one that fails takes nobody along.
func TestAFailingWriteInAGroupHurtsNobody(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "slipway.db"), time.Now)
	taken := &store.Node{Name: "taken"}
	if err := s.CreateNode(t.Context(), taken); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			n := &store.Node{ProvisionState: state.Available}
			if i%3 == 0 {
				n.Name = "taken"
			}
			if err := s.CreateNode(t.Context(), n); (err != nil) != (i%3 == 0) {
				t.Errorf("write %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	nodes, err := s.Nodes(t.Context(), store.NodeFilter{})
	if err != nil || len(nodes) != 1+133 {
		t.Errorf("%d nodes, %v", len(nodes), err)
	}
}

// A power cut must not take a committed state back: see the package's comment.
func TestTheWriterSyncsEveryCommitAndReadersCanNotWrite(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "slipway.db"), time.Now)
	for name, want := range map[string]string{"synchronous": "2", "journal_mode": "wal", "foreign_keys": "1"} {
		if got := sqlite.Pragma(t, s, name, false); got != want {
			t.Errorf("the writer's %s is %s, want %s", name, got, want)
		}
	}
	if got := sqlite.Pragma(t, s, "query_only", true); got != "1" {
		t.Errorf("a reader's query_only is %s", got)
	}
}

// A full disk refuses writes with the file's name, keeps what was, and is over
// when there is space again (faults.md, F09).
func TestAFullDiskRefusesWritesAndLosesNothing(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "slipway.db"), time.Now)
	n := &store.Node{Name: "a"}
	if err := s.CreateNode(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	pages := sqlite.Pragma(t, s, "page_count", false)
	sqlite.Exec(t, s, "PRAGMA max_page_count = "+pages)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			err := s.CreateNode(t.Context(), &store.Node{Description: strings.Repeat("x", 100_000)})
			if err == nil || !strings.Contains(err.Error(), "full") {
				t.Errorf("a write to a full disk: %v", err)
			}
		})
	}
	wg.Wait()
	if got, err := s.Node(t.Context(), "a"); err != nil || got.Version != 1 {
		t.Errorf("reads %+v, %v", got, err)
	}
	sqlite.Exec(t, s, "PRAGMA max_page_count = 1000000")
	if err := s.CreateNode(t.Context(), &store.Node{Description: strings.Repeat("x", 100_000)}); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if nodes, err := s.Nodes(t.Context(), store.NodeFilter{}); err != nil || len(nodes) != 2 {
		t.Errorf("%d nodes, %v", len(nodes), err)
	}
}

// The design's budget: 10,000 nodes on one conductor.
func BenchmarkTenThousandNodes(b *testing.B) {
	path := filepath.Join(b.TempDir(), "slipway.db")
	s := openAt(b, path, time.Now)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for range 100 {
				n := &store.Node{
					Driver: "redfish", DriverInfo: map[string]any{"redfish_address": "https://10.0.0.1", "redfish_username": "u", "redfish_password": "p"},
					Properties: map[string]any{"cpus": 4, "memory_mb": 1024}, ProvisionState: state.Available, Inventory: bytes.Repeat([]byte(`"x" `), 5000),
				}
				if err := s.CreateNode(b.Context(), n); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			if err := openAt(b, path, time.Now).Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	s = openAt(b, path, time.Now)
	b.Run("list all", func(b *testing.B) {
		for b.Loop() {
			if nodes, err := s.Nodes(b.Context(), store.NodeFilter{}); err != nil || len(nodes) != 10_000 {
				b.Fatal(len(nodes), err)
			}
		}
	})
	b.Run("list a page", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Nodes(b.Context(), store.NodeFilter{Limit: 100, SortKey: "name"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("claim nothing", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.ClaimWork(b.Context(), "c", time.Second); err == nil {
				b.Fatal("claimed")
			}
		}
	})
}

func BenchmarkUpdateNode(b *testing.B) {
	s := openAt(b, filepath.Join(b.TempDir(), "slipway.db"), time.Now)
	n := &store.Node{DriverInfo: map[string]any{"password": "p"}}
	if err := s.CreateNode(b.Context(), n); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			_, err := s.UpdateNode(b.Context(), n.UUID, 0, func(n *store.Node) error { n.Extra["t"] = float64(time.Now().UnixNano()); return nil })
			if err != nil {
				b.Error(err)
			}
		}
	})
}
