package source

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxRedirects is how many hops a request may take.
const maxRedirects = 5

// conn is one response body with a watchdog: a Read that waits longer than
// Options.Stall ends the request. Time between Reads does not count, for a
// slow disk is not a stalled server.
type conn struct {
	resp  *http.Response
	url   *url.URL // that answered
	timer *time.Timer
	stall time.Duration
	ctx   context.Context
	end   context.CancelCauseFunc
}

func (c *conn) Read(p []byte) (int, error) {
	c.timer.Reset(c.stall)
	n, err := c.resp.Body.Read(p)
	c.timer.Stop()
	if err != nil && err != io.EOF { //nolint:errorlint // a wrapped EOF is not an end
		if cause := context.Cause(c.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (c *conn) Close() error {
	c.timer.Stop()
	c.end(context.Canceled)
	return c.resp.Body.Close()
}

// dial requests [off, end) (end -1: to the last byte) and follows redirects.
// A resume goes to where the first request was sent on to, and once more to
// the URL as given when that address no longer works.
func (o *Object) dial(off, end int64) (*conn, error) {
	c, err := o.dialFrom(o.resolved, off, end)
	if err != nil && o.resolved != o.url && permanent(err) {
		return o.dialFrom(o.url, off, end)
	}
	return c, err
}

func (o *Object) dialFrom(u *url.URL, off, end int64) (*conn, error) {
	ctx, cancel := context.WithCancelCause(o.ctx)
	stalled := fmt.Errorf("%w for %s", errStalled, o.opts.Stall)
	timer := time.AfterFunc(o.opts.Stall, func() { cancel(stalled) })
	c, err := o.follow(ctx, u, off, end)
	timer.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(context.Canceled)
		return nil, err
	}
	c.timer, c.stall, c.ctx, c.end = timer, o.opts.Stall, ctx, cancel
	return c, nil
}

func (o *Object) follow(ctx context.Context, u *url.URL, off, end int64) (*conn, error) {
	// The transport alone, not the client: redirects and what goes with them are
	// decided here, and a client's timeout would bound the whole transfer.
	rt := o.opts.Client.Transport
	if rt == nil {
		rt = defaultClient.Transport
	}
	for range maxRedirects + 1 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, errBadURL
		}
		o.dress(req, off, end)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusOK, http.StatusPartialContent:
			return &conn{resp: resp, url: u}, nil
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			_ = resp.Body.Close()
			next, err := redirect(u, resp.Header.Get("Location"))
			if err != nil {
				return nil, err
			}
			u = next
		default:
			_ = resp.Body.Close()
			return nil, statusError(resp)
		}
	}
	return nil, &policyError{fmt.Sprintf("more than %d redirects", maxRedirects)}
}

// dress sets the request's headers. What the operator gave (tokens) and the
// URL's own user and password stay with the host they were given for.
func (o *Object) dress(req *http.Request, off, end int64) {
	if sameOrigin(o.url, req.URL) {
		for k, v := range o.opts.Header {
			req.Header[http.CanonicalHeaderKey(k)] = append([]string(nil), v...)
		}
		if o.url.User != nil && req.Header.Get("Authorization") == "" {
			password, _ := o.url.User.Password()
			req.SetBasicAuth(o.url.User.Username(), password)
		}
	}
	// Without this Go asks for gzip and unpacks it in silence: the digest is of
	// the bytes at the URL.
	req.Header.Set("Accept-Encoding", "identity")
	r := "bytes=" + strconv.FormatInt(off, 10) + "-"
	if end >= 0 {
		r += strconv.FormatInt(end-1, 10)
	}
	req.Header.Set("Range", r)
	if v := o.validator(); v != "" && (off > 0 || end >= 0) {
		req.Header.Set("If-Range", v)
	}
}

// redirect resolves a Location; https never falls back to http.
func redirect(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	if location == "" || err != nil {
		return nil, &policyError{"a redirect without a readable Location"}
	}
	if to.Scheme != "https" && (to.Scheme != "http" || from.Scheme == "https") {
		return nil, &policyError{fmt.Sprintf("a redirect from %s to %q is not followed", from.Scheme, to.Scheme)}
	}
	if to.Host == "" {
		return nil, &policyError{"a redirect to no host"}
	}
	return to, nil
}

// sameOrigin says whether b may see what was meant for a: the same host and
// port, or the same host's step from http to https on the default ports.
func sameOrigin(a, b *url.URL) bool {
	if !strings.EqualFold(a.Hostname(), b.Hostname()) {
		return false
	}
	if a.Scheme == b.Scheme {
		return port(a) == port(b)
	}
	return a.Scheme == "http" && b.Scheme == "https" && port(a) == "80" && port(b) == "443"
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

// validator is what If-Range may carry (RFC 9110, 13.1.5): a strong ETag, or a date.
func (o *Object) validator() string {
	if o.etag != "" {
		return o.etag
	}
	return o.modified
}

func strongETag(h http.Header) string {
	if e := h.Get("ETag"); strings.HasPrefix(e, `"`) {
		return e
	}
	return ""
}

// describe takes the object's identity from the first response.
func (o *Object) describe(c *conn) {
	h := c.resp.Header
	o.resolved, o.etag, o.modified = c.url, strongETag(h), h.Get("Last-Modified")
	o.size = c.resp.ContentLength
	if c.resp.StatusCode == http.StatusPartialContent {
		_, total, err := contentRange(h.Get("Content-Range"))
		o.ranges, o.size = err == nil && total >= 0, total
		return
	}
	o.ranges = strings.EqualFold(h.Get("Accept-Ranges"), "bytes")
}

// same checks that a later response continues the object at off.
func (o *Object) same(c *conn, off int64) error {
	h := c.resp.Header
	if c.resp.StatusCode != http.StatusPartialContent {
		if e := strongETag(h); o.etag != "" && e == o.etag && c.resp.ContentLength == o.size {
			return ErrNoRanges // the same content, but from its start
		}
		return ErrChanged
	}
	start, total, err := contentRange(h.Get("Content-Range"))
	switch {
	case err != nil:
		return err
	case start != off:
		return &policyError{fmt.Sprintf("the server answered a range from byte %d with byte %d", off, start)}
	case total != o.size, strongETag(h) != o.etag, o.etag == "" && h.Get("Last-Modified") != o.modified:
		return ErrChanged
	}
	return nil
}

// contentRange reads "bytes 5-9/100" as (5, 100); the total is -1 for "*".
func contentRange(v string) (start, total int64, err error) {
	bad := &policyError{fmt.Sprintf("unreadable Content-Range %.80q", v)}
	rest, ok := strings.CutPrefix(v, "bytes ")
	span, size, ok2 := strings.Cut(rest, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, -1, bad
	}
	start, err1 := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	if err1 != nil || err2 != nil || start < 0 || end < start {
		return 0, -1, bad
	}
	if size == "*" {
		return start, -1, nil
	}
	total, err = strconv.ParseInt(size, 10, 64)
	if err != nil || end >= total {
		return 0, -1, bad
	}
	return start, total, nil
}
