package source

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Errors that callers tell apart.
var (
	// ErrChanged: the content is no longer the one that was begun. Only a new
	// start from the first byte can succeed.
	ErrChanged = errors.New("the content changed while it was read")
	// ErrNoRanges: the server cannot continue in the middle.
	ErrNoRanges = errors.New("the server cannot resume: it needs range requests and a strong ETag or Last-Modified")

	errStalled = errors.New("no byte arrived")
	errBadURL  = errors.New("the URL cannot be read")
)

// Error is the end of a source's patience.
type Error struct {
	URL       string // without user, query and fragment
	Status    int    // HTTP status, 0 when there was none
	Attempts  int    // in a row, the last one included; 0 when nothing was tried
	Offset    int64  // bytes read before
	Size      int64  // bytes expected; -1 unknown
	Permanent bool   // trying again later will not help
	Err       error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "image source %s: ", e.URL)
	if e.Offset > 0 {
		fmt.Fprintf(&b, "got %d", e.Offset)
		if e.Size >= 0 {
			fmt.Fprintf(&b, " of %d", e.Size)
		}
		b.WriteString(" bytes: ")
	}
	b.WriteString(e.Err.Error())
	if e.Attempts > 0 {
		fmt.Fprintf(&b, " (attempt %d)", e.Attempts)
	}
	if hint := advice(e.Status); hint != "" {
		b.WriteString(": " + hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

func advice(status int) string {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return "check the URL's credentials, or whether a signed URL has expired"
	case status == http.StatusNotFound || status == http.StatusGone:
		return "check that the image is published at this URL"
	case status >= 500:
		return "check the image server's log"
	}
	return ""
}

// fail makes the error that leaves this package. An offset of 0 is not shown.
func (o *Object) fail(attempts int, err error, perm bool, off int64) error {
	var done *Error
	if errors.As(err, &done) {
		return done
	}
	e := &Error{URL: o.String(), Attempts: attempts, Offset: off, Size: o.size, Permanent: perm, Err: err}
	var status *httpStatus
	if errors.As(err, &status) {
		e.Status = status.code
	}
	return e
}

// httpStatus is an answer other than success.
type httpStatus struct {
	code  int
	after time.Duration
}

func (s *httpStatus) Error() string {
	return fmt.Sprintf("HTTP %d %s", s.code, http.StatusText(s.code))
}

func statusError(resp *http.Response) error {
	s := &httpStatus{code: resp.StatusCode}
	if v := resp.Header.Get("Retry-After"); v != "" {
		if n, err := strconv.ParseUint(v, 10, 31); err == nil {
			s.after = time.Duration(n) * time.Second
		} else if at, err := http.ParseTime(v); err == nil {
			s.after = max(time.Until(at), 0)
		}
	}
	return s
}

func retryAfter(err error) time.Duration {
	var s *httpStatus
	if errors.As(err, &s) {
		return s.after
	}
	return 0
}

// policyError is an answer that this package refuses to follow.
type policyError struct{ what string }

func (p *policyError) Error() string { return p.what }

// permanent says whether the same request would fail in the same way again.
func permanent(err error) bool {
	var (
		status *httpStatus
		policy *policyError
		cert   *tls.CertificateVerificationError
		record tls.RecordHeaderError
		host   x509.HostnameError
	)
	switch {
	case errors.Is(err, ErrChanged), errors.Is(err, ErrNoRanges), errors.Is(err, errBadURL):
		return true
	case errors.As(err, &policy), errors.As(err, &cert), errors.As(err, &record), errors.As(err, &host):
		return true
	case errors.As(err, &status):
		switch status.code {
		case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
			return false
		}
		return status.code < 500 || status.code == http.StatusNotImplemented || status.code == http.StatusHTTPVersionNotSupported
	}
	return false
}

// cause removes what net/http wraps around an error: it quotes the URL with
// its query, which may hold a signature.
func (o *Object) cause(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	return err
}

// Redact is the URL as it may be logged: no user, query or fragment.
func Redact(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return c.String()
}

// RedactString is Redact for text.
func RedactString(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "(unreadable URL)"
	}
	return Redact(u)
}
