// Package source reads one object over HTTP as if the network never failed:
// a lost connection, a stall or a server error is answered by a range request
// that continues at the same byte. Every request of an Object is bound to the
// content that the first one saw (strong ETag, or Last-Modified, and length);
// bytes of two versions are never joined.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// Options of a source. The zero value works.
type Options struct {
	// Client's Transport carries TLS settings and proxies. Its redirect policy,
	// timeout and cookie jar are not used. Nil means one with sane timeouts.
	Client *http.Client
	// Header goes with every request to the URL's own host and to no other.
	Header http.Header
	// Connections above 1 read a ranged object by as many range requests at a
	// time, 1 MiB each: for servers far away or that pace each connection.
	Connections int
	// Stall is how long no byte may arrive before the connection counts as lost; 0 means 30 s.
	Stall time.Duration
	// Attempts is how many times in a row a request may fail without progress; 0 means 8.
	Attempts int
	// Backoff is the first pause between attempts; it doubles up to 16 s. 0 means 500 ms.
	Backoff time.Duration
	// MaxRetryAfter bounds what a server's Retry-After may ask for; 0 means 2 minutes.
	MaxRetryAfter time.Duration
	Log           *slog.Logger
}

// progress is how many bytes must arrive before failures count from zero again.
const progress = 64 << 10

func (o Options) withDefaults() Options {
	if o.Client == nil {
		o.Client = defaultClient
	}
	def(&o.Stall, 30*time.Second)
	def(&o.Attempts, 8)
	def(&o.Backoff, 500*time.Millisecond)
	def(&o.MaxRetryAfter, 2*time.Minute)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// defaultClient is shared, so that connections are kept between requests.
var defaultClient = func() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ReadBufferSize = 64 << 10
	t.DisableCompression = true
	t.MaxIdleConnsPerHost = 16
	return &http.Client{Transport: t}
}()

// Object is one URL's content as the first response described it.
type Object struct {
	ctx  context.Context
	opts Options

	url      *url.URL // as given, with everything secret in it
	resolved *url.URL // after redirects
	size     int64    // bytes; -1 unknown
	ranges   bool
	etag     string // strong only
	modified string

	first   *conn // body of the first response, at offset 0, until it is used
	resumes atomic.Int64
}

// Open asks for the object and keeps the response for Stream. It retries what
// may pass and fails at once on what will not (404, a bad certificate). ctx
// bounds the whole life of the Object.
func Open(ctx context.Context, rawURL string, opts Options) (*Object, error) {
	u, err := url.Parse(rawURL)
	if err != nil { // the parser's error quotes the URL
		return nil, &Error{URL: "(unreadable URL)", Err: errBadURL, Permanent: true}
	}
	o := &Object{ctx: ctx, opts: opts.withDefaults(), url: u, size: -1}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, o.fail(0, fmt.Errorf("scheme %q is not allowed: serve the image over http or https", u.Scheme), true, 0)
	}
	o.resolved = u
	err = o.retry(0, 0, func() error {
		c, err := o.dial(0, -1)
		if err != nil {
			return err
		}
		o.describe(c)
		o.first = c
		return nil
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Size is the length in bytes, -1 when the server does not say.
func (o *Object) Size() int64 { return o.size }

// Ranged says whether the object can be read at any offset and resumed.
func (o *Object) Ranged() bool { return o.ranges && o.size >= 0 && o.validator() != "" }

// Resumes counts how often a connection was lost and continued.
func (o *Object) Resumes() int { return int(o.resumes.Load()) }

// String is the URL without user, query and fragment.
func (o *Object) String() string { return Redact(o.url) }

// Close drops the first response if nobody used it.
func (o *Object) Close() error {
	if o.first == nil {
		return nil
	}
	err := o.first.Close()
	o.first = nil
	return err
}

// Stream reads the object from its first byte to its last. Reading returns
// io.EOF only after the whole of it; anything less is an *Error.
func (o *Object) Stream() io.ReadCloser {
	first := o.first
	o.first = nil
	if o.opts.Connections > 1 && o.Ranged() && o.size > partSize {
		if first != nil {
			_ = first.Close() // given up, not read
		}
		return newParallel(o)
	}
	return &stream{o: o, end: o.size, body: first}
}

// ReadAt reads len(p) bytes at off by one range request, resumed as needed.
func (o *Object) ReadAt(p []byte, off int64) (int, error) {
	if !o.Ranged() {
		return 0, o.fail(0, ErrNoRanges, true, off)
	}
	if off >= o.size {
		return 0, io.EOF
	}
	end := min(off+int64(len(p)), o.size)
	s := &stream{o: o, off: off, end: end, part: true}
	defer func() { _ = s.Close() }() // a response that was read to its end has nothing to report
	n := 0
	for n < int(end-off) {
		m, err := s.Read(p[n : end-off])
		n += m
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// stream reads [off, end) in order and reconnects where it stopped.
type stream struct {
	o    *Object
	off  int64
	end  int64 // exclusive; -1 unknown
	part bool  // ask for exactly this range
	body *conn
	err  error

	failures int   // in a row without progress
	since    int64 // offset of the last failure
}

func (s *stream) Read(p []byte) (int, error) {
	for s.err == nil {
		if s.end >= 0 && s.off >= s.end {
			s.err = io.EOF
			break
		}
		if s.body == nil {
			s.reconnect()
			continue
		}
		if s.end >= 0 {
			p = p[:min(int64(len(p)), s.end-s.off)]
		}
		n, err := s.body.Read(p)
		s.off += int64(n)
		ended := err == io.EOF //nolint:errorlint // a wrapped EOF is not an end
		switch {
		case err == nil:
		case ended && (s.end < 0 || s.off == s.end): // of unknown length: the server said that this is the end
			s.err = io.EOF
		default:
			if ended {
				err = io.ErrUnexpectedEOF
			}
			s.lost(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, s.err
}

// lost drops the connection; the next Read continues or fails.
func (s *stream) lost(cause error) {
	_ = s.body.Close() // already broken
	s.body = nil
	if s.off-s.since >= progress {
		s.failures = 0
	}
	s.failures++
	s.since = s.off
	err := s.o.cause(cause)
	if s.failures >= s.o.opts.Attempts || s.o.ctx.Err() != nil || permanent(err) {
		s.err = s.o.fail(s.failures, err, false, s.off)
		return
	}
	if !s.o.Ranged() {
		s.err = s.o.fail(s.failures, fmt.Errorf("%w (%w)", err, ErrNoRanges), false, s.off)
		return
	}
	s.o.opts.Log.Warn("image source: connection lost, resuming", "url", s.o.String(), "offset", s.off, "attempt", s.failures, "error", err)
	if err := s.o.pause(s.failures, err); err != nil {
		s.err = s.o.fail(s.failures, err, false, s.off)
	}
}

func (s *stream) reconnect() {
	resumed := s.off > 0 && !s.part || s.failures > 0
	s.err = s.o.retry(s.failures, s.off, func() error {
		end := int64(-1)
		if s.part {
			end = s.end
		}
		c, err := s.o.dial(s.off, end)
		if err != nil {
			return err
		}
		if err := s.o.same(c, s.off); err != nil {
			_ = c.Close()
			return err
		}
		s.body = c
		return nil
	})
	if s.err == nil && resumed {
		s.o.resumes.Add(1)
	}
}

func (s *stream) Close() error {
	if s.body == nil {
		return nil
	}
	err := s.body.Close()
	s.body = nil
	return err
}

// retry runs f until it succeeds, fails for good, or failed too often.
func (o *Object) retry(failures int, off int64, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		failures++
		err = o.cause(err)
		if permanent(err) || failures >= o.opts.Attempts || o.ctx.Err() != nil {
			return o.fail(failures, err, permanent(err), off)
		}
		o.opts.Log.Warn("image source: request failed, trying again", "url", o.String(), "attempt", failures, "error", err)
		if err := o.pause(failures, err); err != nil {
			return o.fail(failures, err, false, off)
		}
	}
}

// pause waits before attempt n+1: the server's Retry-After, or a doubling
// back-off with jitter (half to all of it).
func (o *Object) pause(n int, err error) error {
	d := min(o.opts.Backoff<<min(n-1, 5), 16*time.Second)
	d = d/2 + rand.N(d/2+1)
	if after := retryAfter(err); after > 0 {
		if after > o.opts.MaxRetryAfter {
			return fmt.Errorf("%w; it asks to wait %s, more than the %s allowed", err, after, o.opts.MaxRetryAfter)
		}
		d = after
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-o.ctx.Done():
		return context.Cause(o.ctx)
	}
}
