package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/conductor/store"
)

// bootsKept is how many boots a node keeps; older ones are forgotten.
const bootsKept = 16

// digest is what is stored of a secret that is only ever compared.
func digest(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// CreateBoot stores b; of its nonce and path only digests.
func (s *Store) CreateBoot(ctx context.Context, b *store.Boot) error {
	if b.Nonce == "" || b.Path == "" {
		return fmt.Errorf("create boot of node %s: %w: it needs a nonce and a path", b.NodeUUID, store.ErrInvalid)
	}
	if b.Created.IsZero() {
		b.Created = s.now()
	}
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		if err := nodeExists(tx, b.NodeUUID); err != nil {
			return nil, fmt.Errorf("create boot: %w", err)
		}
		_, err := tx.Exec("INSERT INTO boots (nonce_hash, path_hash, node_uuid, mac, created_at, used_at) VALUES (?, ?, ?, ?, ?, ?)",
			digest(b.Nonce), digest(b.Path), b.NodeUUID, strings.ToLower(b.MAC), nanos(b.Created), nanos(b.Used))
		if err != nil {
			return nil, fmt.Errorf("create boot of node %s: %w", b.NodeUUID, err)
		}
		return nil, prune(tx, "boots", b.NodeUUID, bootsKept)
	})
}

// prune keeps the newest rows of a node in a table.
func prune(tx *sql.Tx, table, node string, keep int) error {
	_, err := tx.Exec("DELETE FROM "+table+" WHERE node_uuid = ?1 AND id <= (SELECT id FROM "+table+
		" WHERE node_uuid = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)", node, keep)
	if err != nil {
		return fmt.Errorf("forget old rows of %s of node %s: %w", table, node, err)
	}
	return nil
}

const selectBoot = "SELECT node_uuid, coalesce(mac, ''), created_at, used_at FROM boots "

// boot reads one boot; what is a word for errors that gives no secret away.
func boot(ctx context.Context, q querier, what, where string, arg any) (*store.Boot, error) {
	b := &store.Boot{}
	err := q.QueryRowContext(ctx, selectBoot+where, arg).Scan(&b.NodeUUID, &b.MAC, stamp{&b.Created}, stamp{&b.Used})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("boot with this %s: %w", what, store.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read boot: %w", err)
	}
	return b, nil
}

// BootByPath finds a boot by the secret of its URLs. Nonce stays empty.
func (s *Store) BootByPath(ctx context.Context, path string) (*store.Boot, error) {
	b, err := boot(ctx, s.read, "path", "WHERE path_hash = ?", digest(path))
	if err != nil {
		return nil, err
	}
	b.Path = path
	return b, nil
}

// SpendNonce marks a boot used, once.
func (s *Store) SpendNonce(ctx context.Context, nonce string, at time.Time) (*store.Boot, error) {
	var b *store.Boot
	err := s.inTx(ctx, func(tx *sql.Tx) (_ []change, err error) {
		if b, err = boot(context.Background(), tx, "nonce", "WHERE nonce_hash = ?", digest(nonce)); err != nil {
			return nil, err
		}
		if !b.Used.IsZero() {
			return nil, fmt.Errorf("the nonce of node %s was used at %s: %w", b.NodeUUID, b.Used.Format(time.RFC3339), store.ErrExists)
		}
		_, err = tx.Exec("UPDATE boots SET used_at = ? WHERE nonce_hash = ?", at.UnixNano(), digest(nonce))
		if err != nil {
			return nil, fmt.Errorf("spend the nonce of node %s: %w", b.NodeUUID, err)
		}
		b.Nonce, b.Used = nonce, at.UTC()
		return nil, nil
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}
