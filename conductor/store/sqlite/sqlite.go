// Package sqlite is the store in one SQLite file: WAL, one writer that commits
// in groups, and a pool of readers that never wait for it.
//
// Durability: synchronous is FULL. In WAL mode NORMAL does not sync the log at a
// commit (https://www.sqlite.org/pragma.html#pragma_synchronous), so a power cut
// could take back a state that the conductor has acted on, and with it the
// memory of an order that has wiped a disk. One fsync a commit is the price, and
// group commit shares it among all who write at that moment.
package sqlite

import (
	"context"
	"crypto/cipher"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/slipway-metal/slipway/conductor/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

// readers is the size of the read pool: connections cost about 2 MB each with
// their page cache, and reads are short.
const readers = 4

// Store implements store.Store.
type Store struct {
	path  string
	now   func() time.Time
	aead  cipher.AEAD
	write *sql.DB // one connection, used by the writer goroutine alone
	read  *sql.DB
	// oneNode, prepared for each.
	readNode, writeNode *sql.Stmt

	jobs   chan *job
	quit   chan struct{} // closed by Close
	ended  chan struct{} // closed when the writer has ended
	closed sync.Once

	mu       sync.Mutex
	onChange []func(*store.Node, *store.Transition)
}

var _ store.Store = (*Store)(nil)

// Open opens or creates the database file at path and brings its schema up to
// date. The key (32 bytes) seals secrets; a database that was made with another
// key is refused. A damaged file is refused too, with what to do in the error.
func Open(path string, key []byte, now func() time.Time) (store.Store, error) {
	s, err := open(path, key, now)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, explain(path, err))
	}
	return s, nil
}

func open(path string, key []byte, now func() time.Time) (_ *Store, err error) {
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	// SQLite would create it with the umask's mode; its -wal and -shm take the file's.
	f, err := os.OpenFile(filepath.Clean(path), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w; make its directory writable for this user, or choose another with --data", err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	s := &Store{
		path: path, now: now, aead: aead,
		jobs: make(chan *job), quit: make(chan struct{}), ended: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeDBs())
		}
	}()
	if s.write, err = sql.Open("sqlite", dsn(path, false)); err != nil {
		return nil, err
	}
	s.write.SetMaxOpenConns(1)
	ctx := context.Background()
	if err := check(ctx, s.write); err != nil {
		return nil, err
	}
	if err := migrate(ctx, s.write); err != nil {
		return nil, err
	}
	if err := s.checkKey(ctx); err != nil {
		return nil, err
	}
	if s.read, err = sql.Open("sqlite", dsn(path, true)); err != nil {
		return nil, err
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	if s.writeNode, err = s.write.PrepareContext(ctx, oneNode); err != nil {
		return nil, err
	}
	if s.readNode, err = s.read.PrepareContext(ctx, oneNode); err != nil {
		return nil, err
	}
	go s.writer()
	return s, nil
}

// dsn is the URI of a connection; see modernc.org/sqlite's Driver.Open.
func dsn(path string, readOnly bool) string {
	q := url.Values{}
	q.Set("_busy_timeout", "10000") // milliseconds; only another process can hold the lock
	q.Set("_foreign_keys", "on")
	q.Set("_dqs", "false")
	if readOnly {
		q.Set("_query_only", "on")
	} else {
		q.Set("_txlock", "immediate")
		q.Set("_journal_mode", "WAL")
		q.Set("_synchronous", "FULL")
		q.Set("_pragma", "journal_size_limit(67108864)") // bytes; a burst must not leave a huge log behind
	}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// damaged is what quick_check found.
type damaged string

func (d damaged) Error() string { return string(d) }

// check reads the whole file once, so that damage is met now and not in the
// middle of a deploy. It takes about 0.1 s for 50 MB.
func check(ctx context.Context, db *sql.DB) error {
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return damaged(verdict)
	}
	return nil
}

// migrate brings the schema up to date by goose's provider (no global state).
func migrate(ctx context.Context, db *sql.DB) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if current > target {
		return fmt.Errorf("its schema has version %d and this Slipway knows up to %d: start the newer Slipway that wrote it, or restore the backup made before the upgrade", current, target)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate the schema from version %d to %d: %w", current, target, err)
	}
	return nil
}

// explain adds what to do to errors that mean damage.
func explain(path string, err error) error {
	var de *driver.Error
	var dm damaged
	bad := errors.As(err, &dm)
	if errors.As(err, &de) {
		code := de.Code() & 0xff
		bad = bad || code == lib.SQLITE_CORRUPT || code == lib.SQLITE_NOTADB
	}
	if !bad {
		return err
	}
	return fmt.Errorf("the file is damaged (%w); nothing was changed: move %[2]s, %[2]s-wal and %[2]s-shm aside and restore a backup, or save what can be read with: sqlite3 %[2]s .recover", err, path)
}

// Close ends the writer after what it has begun, and closes the file.
func (s *Store) Close() error {
	var err error
	s.closed.Do(func() {
		close(s.quit)
		<-s.ended
		err = s.closeDBs()
	})
	return err
}

func (s *Store) closeDBs() error {
	var errs []error
	for _, stmt := range []*sql.Stmt{s.readNode, s.writeNode} {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	for _, db := range []*sql.DB{s.read, s.write} { // the writer last: it checkpoints the log
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// Ping reads from the database.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.read.QueryRowContext(ctx, "SELECT 1 FROM meta").Scan(&one); err != nil {
		return fmt.Errorf("database %s does not answer: %w", s.path, err)
	}
	return nil
}

// OnChange registers f.
func (s *Store) OnChange(f func(*store.Node, *store.Transition)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onChange = append(s.onChange, f)
}
