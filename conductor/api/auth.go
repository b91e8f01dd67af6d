package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	"golang.org/x/crypto/bcrypt"
)

type userKey struct{}

// WithUser returns r on behalf of the named caller; an Auth middleware calls it.
func WithUser(r *http.Request, user string) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), userKey{}, user))
}

// user is the caller's name for a node's history, "" without authentication.
func (s *server) user(r *http.Request) string {
	u, _ := r.Context().Value(userKey{}).(string)
	return u
}

// maxVerified bounds the memory of passwords that were right.
const maxVerified = 1024

// basic checks http_basic against a file of bcrypt hashes.
type basic struct {
	hashes map[string][]byte // user → hash
	nobody []byte            // a hash to compare with for users that are not there
	mu     sync.Mutex
	// verified are digests of pairs that bcrypt found right: it takes 50 ms a
	// time, and clients send the pair with every request.
	verified map[[sha256.Size]byte]bool
}

// BasicAuth reads an htpasswd file (htpasswd -nB, one user a line) and returns
// the middleware that asks for one of its users. A file without users is an
// error: it would admit nobody, or by a mistake elsewhere everybody.
func BasicAuth(file string) (func(http.Handler) http.Handler, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read password file: %w", err)
	}
	b := &basic{hashes: map[string][]byte{}, verified: map[[sha256.Size]byte]bool{}}
	for i, line := range strings.Split(string(raw), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		user, hash, ok := strings.Cut(line, ":")
		if _, err := bcrypt.Cost([]byte(hash)); !ok || user == "" || err != nil {
			return nil, fmt.Errorf("password file %s, line %d: want user:bcrypt-hash, as `htpasswd -nB USER` prints", file, i+1)
		}
		b.hashes[user] = []byte(hash)
	}
	if len(b.hashes) == 0 {
		return nil, fmt.Errorf("password file %s has no users; add one with `htpasswd -nB USER`", file)
	}
	if b.nobody, err = bcrypt.GenerateFromPassword([]byte(newToken()), bcrypt.DefaultCost); err != nil {
		return nil, fmt.Errorf("prepare password check: %w", err)
	}
	return b.middleware, nil
}

func (b *basic) middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if !ok || b.check(user, password) != nil {
			w.Header().Set("WWW-Authenticate", `Basic realm="Baremetal API"`)
			writeFault(w, edge(http.StatusUnauthorized, "Authorization required"))
			return
		}
		next.ServeHTTP(w, WithUser(r, user))
	})
}

var errWrongPassword = errors.New("wrong user or password")

func (b *basic) check(user, password string) error {
	key := sha256.Sum256([]byte(fmt.Sprintf("%d:%s%s", len(user), user, password)))
	b.mu.Lock()
	known := b.verified[key]
	b.mu.Unlock()
	if known {
		return nil
	}
	hash, exists := b.hashes[user]
	if !exists {
		hash = b.nobody // the same time for users that are not there
	}
	if bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil || !exists {
		return errWrongPassword
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.verified) >= maxVerified {
		clear(b.verified)
	}
	b.verified[key] = true
	return nil
}
