// Package safehttp is an HTTP client for peers that are not trusted: every
// exchange has a time limit, every answer a size limit, and a redirect to
// another host is refused, for it would carry credentials there.
package safehttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Errors that callers tell apart.
var (
	ErrTooLarge = errors.New("answer too large")
	ErrRedirect = errors.New("redirect refused")
	// ErrSlow means that the exchange's own limit passed, not the caller's.
	ErrSlow = errors.New("no answer in time")
)

// Client makes bounded exchanges. Its Transport reads the whole answer before it
// returns, so that a limit covers the body too.
type Client struct {
	// Exchange is the limit of one request and its answer.
	Exchange time.Duration
	// MaxBytes bounds an answer's body.
	MaxBytes int64
	// Rewrite, when set, changes a request before it is sent.
	Rewrite func(*http.Request)

	base *http.Transport
	ctx  context.Context // of the caller whose turn it is; see Use
}

// New returns a client. Proxies of the environment are not used: they would see
// credentials.
func New(exchange time.Duration, maxBytes int64, tlsConfig *tls.Config) *Client {
	return &Client{
		Exchange: exchange, MaxBytes: maxBytes, ctx: context.Background(),
		base: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: min(exchange, 10*time.Second)}).DialContext,
			TLSClientConfig:     tlsConfig,
			TLSHandshakeTimeout: exchange,
			MaxConnsPerHost:     1,
			MaxIdleConns:        1,
			IdleConnTimeout:     30 * time.Second,
			DisableCompression:  true, // BMCs weaken their ETags for compressed answers
		},
	}
}

// Use makes ctx govern the requests that follow, for libraries that take no
// context with a call. Callers serialise.
func (c *Client) Use(ctx context.Context) { c.ctx = ctx }

// HTTP returns an http.Client over c.
func (c *Client) HTTP() *http.Client {
	return &http.Client{Transport: c, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		first := via[0]
		switch {
		case r.URL.Host != first.URL.Host || r.URL.Scheme != first.URL.Scheme:
			return fmt.Errorf("%w: %s sends to %s://%s", ErrRedirect, first.URL.Host, r.URL.Scheme, r.URL.Host)
		case len(via) >= 3:
			return fmt.Errorf("%w: more than 3", ErrRedirect)
		}
		return nil
	}}
}

// CloseIdle closes kept connections.
func (c *Client) CloseIdle() { c.base.CloseIdleConnections() }

// RoundTrip implements http.RoundTripper.
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeoutCause(c.ctx, c.Exchange, ErrSlow)
	defer cancel()
	stop := context.AfterFunc(r.Context(), cancel) // the request's own context still counts
	defer stop()
	out := r.Clone(ctx)
	out.Close = false // gofish closes each connection; BMCs are slow to open new ones
	out.Header.Del("Connection")
	if c.Rewrite != nil {
		c.Rewrite(out)
	}
	resp, err := c.base.RoundTrip(out)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, c.MaxBytes+1))
	switch {
	case err != nil:
		return nil, c.explain(ctx, fmt.Errorf("reading the answer: %w", err))
	case int64(len(body)) > c.MaxBytes:
		return nil, fmt.Errorf("%w: more than %d bytes from %s %s", ErrTooLarge, c.MaxBytes, out.Method, out.URL.Path)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.Request = r
	return resp, nil
}

func (c *Client) explain(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), ErrSlow) {
		return fmt.Errorf("%w (%s)", ErrSlow, c.Exchange)
	}
	if e := c.ctx.Err(); e != nil {
		return e
	}
	return err
}
