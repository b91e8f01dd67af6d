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
