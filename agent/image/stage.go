package image

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"
	"time"
)

// Stage is one link of the chain that bytes flow through. Every stage says
// whether what it saw was whole; attempt.finish alone declares success.
type Stage interface {
	Wrap(io.Reader) (io.Reader, error)
	Finish() error
}

// meter counts what one stage did. It is safe for concurrent use.
type meter struct {
	nanos atomic.Int64 // busy
	bytes atomic.Int64
}

func (m *meter) add(d time.Duration, n int) {
	m.nanos.Add(int64(d))
	m.bytes.Add(int64(n))
}

// timed counts the time that reads of r take, its own waiting included.
type timed struct {
	r io.Reader
	m *meter
}

func (t timed) Read(p []byte) (int, error) {
	begin := time.Now()
	n, err := t.r.Read(p)
	t.m.add(time.Since(begin), n)
	return n, err
}

// lengthStage counts the source's bytes and holds them against the length
// that the server gave.
type lengthStage struct {
	want int64 // -1 unknown
	m    *meter
}

func (s *lengthStage) Wrap(r io.Reader) (io.Reader, error) { return timed{r, s.m}, nil }

func (s *lengthStage) Finish() error {
	if got := s.m.bytes.Load(); s.want >= 0 && got != s.want {
		return fmt.Errorf("%w: the source gave %d of %d bytes", ErrCorrupt, got, s.want)
	}
	return nil
}

func newHash(algo string) (hash.Hash, error) {
	switch algo {
	case "sha256":
		return sha256.New(), nil
	case "sha512":
		return sha512.New(), nil
	case "md5":
		return md5.New(), nil
	case "":
		return nil, errors.New("os_hash_algo is missing: want sha256 or sha512")
	}
	return nil, fmt.Errorf("os_hash_algo %q is not known: want sha256 or sha512", algo)
}

// digestStage hashes what passes.
type digestStage struct {
	want Digest
	h    hash.Hash
	m    *meter
	r    io.Reader
}

func (s *digestStage) Wrap(r io.Reader) (io.Reader, error) {
	s.r = r
	return s, nil
}

func (s *digestStage) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	begin := time.Now()
	s.h.Write(p[:n])
	s.m.add(time.Since(begin), n)
	return n, err
}

// sum is the digest of what has passed.
func (s *digestStage) sum() Digest {
	return Digest{Algo: s.want.Algo, Hex: hex.EncodeToString(s.h.Sum(nil))}
}

func (s *digestStage) Finish() error {
	if got := s.sum(); got != s.want {
		return fmt.Errorf("%w: want %s, the bytes at the URL have %s: check which image the digest belongs to", ErrDigest, s.want, got)
	}
	return nil
}

// aheadBlock and aheadDepth bound what a read-ahead holds: 2 MiB.
const (
	aheadBlock = 256 << 10
	aheadDepth = 8
)

// ahead reads r in a goroutine of its own, so that the stages on both sides
// of it run at the same time.
type ahead struct {
	ctx  context.Context
	full chan block
	free chan []byte
	cur  block
	pos  int
	done chan struct{}
}

type block struct {
	b   []byte
	n   int
	err error
}

func newAhead(ctx context.Context, r io.Reader) *ahead {
	a := &ahead{ctx: ctx, full: make(chan block, aheadDepth), free: make(chan []byte, aheadDepth), done: make(chan struct{})}
	for range aheadDepth {
		a.free <- nil // allocated on first use: a small image needs few
	}
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for {
		var b block
		select {
		case b.b = <-a.free:
		case <-a.ctx.Done():
			return
		}
		if b.b == nil {
			b.b = make([]byte, aheadBlock)
		}
		for b.n < len(b.b) && b.err == nil {
			var n int
			n, b.err = r.Read(b.b[b.n:])
			b.n += n
		}
		select {
		case a.full <- b:
		case <-a.ctx.Done():
			return
		}
		if b.err != nil {
			return
		}
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for a.pos == a.cur.n {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.b != nil {
			a.free <- a.cur.b // never blocks: there are aheadDepth blocks in all
		}
		b, ok := <-a.full
		if !ok {
			return 0, context.Cause(a.ctx)
		}
		a.cur, a.pos = b, 0
	}
	n := copy(p, a.cur.b[a.pos:a.cur.n])
	a.pos += n
	return n, nil
}

// wait returns when the goroutine has ended; cancel the context first.
func (a *ahead) wait() { <-a.done }
