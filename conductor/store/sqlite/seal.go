package sqlite

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/slipway-metal/slipway/conductor/store"
)

// keyBytes is the length of the key: AES-256.
const keyBytes = 32

func newAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) != keyBytes {
		return nil, fmt.Errorf("the key for secrets has %d bytes and needs %d", len(key), keyBytes)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// seal encrypts plain for the object that bound names: a box moved to another
// row does not open. The random nonce of 96 bits goes in front.
func (s *Store) seal(plain []byte, bound string) []byte {
	nonce := make([]byte, s.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails: crypto/rand
	return s.aead.Seal(nonce, nonce, plain, []byte(bound))
}

func (s *Store) unseal(box []byte, bound string) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(box) < n {
		return nil, errors.New("a sealed value is cut short")
	}
	return s.aead.Open(nil, box[:n], box[n:], []byte(bound))
}

// keyProof is a known text in table meta, sealed with the database's key.
var keyProof = []byte("slipway")

// checkKey refuses a key other than the one the database was made with.
func (s *Store) checkKey(ctx context.Context) error {
	const row = "key_proof"
	var box []byte
	err := s.write.QueryRowContext(ctx, "SELECT value FROM meta WHERE name = ?", row).Scan(&box)
	if errors.Is(err, sql.ErrNoRows) {
		if _, err := s.write.ExecContext(ctx, "INSERT INTO meta (name, value) VALUES (?, ?)", row, s.seal(keyProof, row)); err != nil {
			return fmt.Errorf("store the key's proof: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the key's proof: %w", err)
	}
	if plain, err := s.unseal(box, row); err != nil || !bytes.Equal(plain, keyProof) {
		return errors.New("the key does not open its secrets: give the key file that was in use when the database was made")
	}
	return nil
}

// secrets are the parts of a node's dictionaries that are sealed, by dictionary.
type secrets struct {
	DriverInfo         map[string]any `json:"driver_info,omitempty"`
	DriverInternalInfo map[string]any `json:"driver_internal_info,omitempty"`
	InstanceInfo       map[string]any `json:"instance_info,omitempty"`
}

// split parts m into what is stored in the open and what is sealed.
func split(m map[string]any) (open, secret map[string]any) {
	open = make(map[string]any, len(m))
	for k, v := range m {
		if !store.IsSecret(k) && !store.HasSecret(v) {
			open[k] = v
			continue
		}
		if secret == nil {
			secret = map[string]any{}
		}
		secret[k] = v
	}
	return open, secret
}

// join adds the unsealed parts to the open ones.
func join(open *map[string]any, secret map[string]any) {
	for k, v := range secret {
		if *open == nil {
			*open = map[string]any{}
		}
		(*open)[k] = v
	}
}

// pack marshals the secrets of n, nil when there are none.
func pack(n *store.Node) ([]byte, error) {
	_, di := split(n.DriverInfo)
	_, dii := split(n.DriverInternalInfo)
	_, ii := split(n.InstanceInfo)
	if di == nil && dii == nil && ii == nil {
		return nil, nil
	}
	return json.Marshal(secrets{di, dii, ii})
}

// unpack opens a node's box and puts the secrets back.
func (s *Store) unpack(n *store.Node, box []byte) error {
	if box == nil {
		return nil
	}
	plain, err := s.unseal(box, n.UUID)
	if err != nil {
		return fmt.Errorf("node %s: its secrets do not open: %w", n.UUID, err)
	}
	var sec secrets
	if err := json.Unmarshal(plain, &sec); err != nil {
		return fmt.Errorf("node %s: secrets: %w", n.UUID, err)
	}
	join(&n.DriverInfo, sec.DriverInfo)
	join(&n.DriverInternalInfo, sec.DriverInternalInfo)
	join(&n.InstanceInfo, sec.InstanceInfo)
	return nil
}
