package sqlite

import (
	"testing"

	"github.com/slipway-metal/slipway/conductor/store"
)

// Exec runs SQL on the store's file, to damage it.
func Exec(t testing.TB, s store.Store, query string) {
	t.Helper()
	if _, err := s.(*Store).write.Exec(query); err != nil {
		t.Fatal(err)
	}
}

// Pragma is the value of a PRAGMA on the writer's connection, or on a reader's.
func Pragma(t testing.TB, s store.Store, name string, reader bool) string {
	t.Helper()
	db := s.(*Store).write
	if reader {
		db = s.(*Store).read
	}
	var v string
	if err := db.QueryRow("PRAGMA " + name).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}
