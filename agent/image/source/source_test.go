package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// transport answers requests without a network, so that synctest can fake the time.
type transport func(n int, r *http.Request) (*http.Response, error)

type counting struct {
	f transport
	n int
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n++
	return c.f(c.n, r)
}

func client(f transport) *http.Client { return &http.Client{Transport: &counting{f: f}} }

func answer(status int, header map[string]string, body io.Reader, length int64) *http.Response {
	h := http.Header{}
	for k, v := range header {
		h.Set(k, v)
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(body), ContentLength: length}
}

// silent is a body that gives some bytes and then nothing until the request ends.
type silent struct {
	r   io.Reader
	ctx context.Context
}

func (s silent) Read(p []byte) (int, error) {
	if n, err := s.r.Read(p); n > 0 || err != io.EOF {
		return n, err
	}
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

const content = "0123456789abcdef"

// partial answers a range request for content.
func partial(r *http.Request, etag string) *http.Response {
	var off int
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off); err != nil {
		panic(err)
	}
	return answer(206, map[string]string{"ETag": etag, "Content-Range": fmt.Sprintf("bytes %d-%d/%d", off, len(content)-1, len(content))},
		strings.NewReader(content[off:]), int64(len(content)-off))
}

func readAll(t *testing.T, c *http.Client, opts Options) (string, error) {
	t.Helper()
	opts.Client = c
	o, err := Open(t.Context(), "http://images/x?sig=hunter2", opts)
	if err != nil {
		return "", err
	}
	s := o.Stream()
	b, err := io.ReadAll(s)
	if cerr := s.Close(); cerr != nil {
		t.Error(cerr)
	}
	return string(b), err
}

// A server that says when to come back is asked then and not before.
func TestRetryAfterIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		got, err := readAll(t, client(func(n int, r *http.Request) (*http.Response, error) {
			switch n {
			case 1:
				return answer(503, map[string]string{"Retry-After": "7"}, strings.NewReader(""), 0), nil
			case 2:
				at := time.Now().Add(20 * time.Second).UTC().Format(http.TimeFormat)
				return answer(429, map[string]string{"Retry-After": at}, strings.NewReader(""), 0), nil
			}
			return partial(r, `"e"`), nil
		}), Options{})
		if err != nil || got != content {
			t.Fatalf("got %q, %v", got, err)
		}
		if d := time.Since(begin); d < 26*time.Second || d > 28*time.Second {
			t.Errorf("it took %s, want 7 s and 20 s", d)
		}
	})
}

// Attempts are spread over doubling pauses and end.
func TestBackoffEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		_, err := readAll(t, client(func(int, *http.Request) (*http.Response, error) {
			return nil, errors.New("connection refused")
		}), Options{})
		var e *Error
		if !errors.As(err, &e) || e.Attempts != 8 {
			t.Fatalf("error %v", err)
		}
		if d := time.Since(begin); d < 20*time.Second || d > 48*time.Second {
			t.Errorf("gave up after %s", d)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error quotes a secret: %v", err)
		}
	})
}

// Thirty seconds without a byte are a lost connection; the read goes on at
// the same byte with the same ETag.
func TestStallResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		got, err := readAll(t, client(func(n int, r *http.Request) (*http.Response, error) {
			if n == 1 {
				resp := partial(r, `"e"`)
				resp.Body = io.NopCloser(silent{strings.NewReader(content[:5]), r.Context()})
				return resp, nil
			}
			if r.Header.Get("Range") != "bytes=5-" || r.Header.Get("If-Range") != `"e"` {
				t.Errorf("resumed with Range %q, If-Range %q", r.Header.Get("Range"), r.Header.Get("If-Range"))
			}
			return partial(r, `"e"`), nil
		}), Options{})
		if err != nil || got != content {
			t.Fatalf("got %q, %v", got, err)
		}
		if d := time.Since(begin); d < 30*time.Second || d > 31*time.Second {
			t.Errorf("the stall was noticed after %s, want 30 s", d)
		}
	})
}

// A reader that is slow itself is no stalled server.
func TestSlowReaderIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, err := Open(t.Context(), "http://images/x", Options{Client: client(func(n int, r *http.Request) (*http.Response, error) {
			if n > 1 {
				t.Error("a second request was made")
			}
			return partial(r, `"e"`), nil
		})})
		if err != nil {
			t.Fatal(err)
		}
		s := o.Stream()
		defer func() { _ = s.Close() }()
		p := make([]byte, 4)
		for range len(content) / 4 {
			if _, err := s.Read(p); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour) // of the bubble's time
		}
	})
}

// Bytes of two versions are never joined, whatever the server does wrong.
func TestNeverSpliced(t *testing.T) {
	cut := func(r *http.Request, etag string) *http.Response {
		resp := partial(r, etag)
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(content[:5]), broken{}))
		return resp
	}
	for name, c := range map[string]struct {
		second func(*http.Request) *http.Response
		want   error
	}{
		"other ETag, If-Range ignored": {func(r *http.Request) *http.Response { return partial(r, `"other"`) }, ErrChanged},
		"whole content again, other ETag": {func(*http.Request) *http.Response {
			return answer(200, map[string]string{"ETag": `"other"`}, strings.NewReader(content), int64(len(content)))
		}, ErrChanged},
		"whole content again, same ETag": {func(*http.Request) *http.Response {
			return answer(200, map[string]string{"ETag": `"e"`}, strings.NewReader(content), int64(len(content)))
		}, ErrNoRanges},
		"other length": {func(*http.Request) *http.Response {
			return answer(206, map[string]string{"ETag": `"e"`, "Content-Range": "bytes 5-9/10"}, strings.NewReader("56789"), 5)
		}, ErrChanged},
		"other offset": {func(*http.Request) *http.Response {
			return answer(206, map[string]string{"ETag": `"e"`, "Content-Range": "bytes 4-15/16"}, strings.NewReader(content[4:]), 12)
		}, nil},
		"no Content-Range": {func(*http.Request) *http.Response {
			return answer(206, map[string]string{"ETag": `"e"`}, strings.NewReader(content[5:]), 11)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, err := readAll(t, client(func(n int, r *http.Request) (*http.Response, error) {
					if n == 1 {
						return cut(r, `"e"`), nil
					}
					return c.second(r), nil
				}), Options{})
				if err == nil || c.want != nil && !errors.Is(err, c.want) {
					t.Fatalf("error %v, want %v", err, c.want)
				}
				if got != content[:5] {
					t.Errorf("read %q", got)
				}
			})
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// Operators' headers and passwords stay with the host they were meant for.
func TestRedirectsKeepSecretsHome(t *testing.T) {
	var got http.Header
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		_, _ = io.WriteString(w, content)
	}))
	defer other.Close()
	var first http.Header
	home := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/x" {
			first = r.Header.Clone()
			http.Redirect(w, r, "/y?token=hunter2", http.StatusFound)
			return
		}
		if r.Header.Get("X-Auth-Token") == "" {
			t.Error("the header was not sent to its own host after a redirect")
		}
		http.Redirect(w, r, other.URL+"/z", http.StatusFound)
	}))
	defer home.Close()
	u, err := url.Parse(home.URL + "/x")
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("me", "hunter2")
	o, err := Open(t.Context(), u.String(), Options{Header: http.Header{"X-Auth-Token": {"hunter2"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	if first.Get("Authorization") == "" || first.Get("X-Auth-Token") != "hunter2" {
		t.Errorf("the first request had %v", first)
	}
	for _, h := range []string{"Authorization", "X-Auth-Token", "Referer", "Cookie"} {
		if got.Get(h) != "" {
			t.Errorf("another host was sent %s", h)
		}
	}
	if got.Get("Accept-Encoding") != "identity" {
		t.Errorf("Accept-Encoding %q", got.Get("Accept-Encoding"))
	}
	if strings.Contains(o.String(), "hunter2") || strings.Contains(o.String(), "me@") {
		t.Errorf("String shows a secret: %s", o)
	}
}

// Redirects that lead astray are not followed, and not tried again.
func TestRedirectPolicy(t *testing.T) {
	for name, c := range map[string]struct{ from, to, want string }{
		"to a file":     {"http://a/", "file:///etc/passwd", `a redirect from http to "file"`},
		"https to http": {"https://a/", "http://a/", `a redirect from https to "http"`},
		"loop":          {"http://a/", "http://a/", "more than 5 redirects"},
		"nowhere":       {"http://a/", "", "without a readable Location"},
		"unreadable":    {"http://a/", "http://%zz", "without a readable Location"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(t.Context(), c.from, Options{Client: client(func(n int, r *http.Request) (*http.Response, error) {
				if n > 6 {
					t.Error("tried again")
				}
				return answer(302, map[string]string{"Location": c.to}, strings.NewReader(""), 0), nil
			})})
			var e *Error
			if !errors.As(err, &e) || !e.Permanent || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
		})
	}
}

// A certificate that does not verify is refused at once, with the reason.
func TestBadCertificate(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	s.Config.ErrorLog = nil
	defer s.Close()
	_, err := Open(t.Context(), s.URL+"/x?sig=hunter2", Options{})
	var e *Error
	if !errors.As(err, &e) || e.Attempts != 1 || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "hunter2") {
		t.Fatalf("error %v", err)
	}
}

func TestReadAt(t *testing.T) {
	requests := 0
	o, err := Open(t.Context(), "http://a/", Options{Client: client(func(n int, r *http.Request) (*http.Response, error) {
		requests = n
		if n == 1 {
			return partial(r, `"e"`), nil
		}
		if r.Header.Get("Range") != "bytes=3-6" {
			t.Errorf("Range %q", r.Header.Get("Range"))
		}
		return answer(206, map[string]string{"ETag": `"e"`, "Content-Range": "bytes 3-6/16"}, strings.NewReader(content[3:7]), 4), nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if n, err := o.ReadAt(p, 3); n != 4 || err != nil || string(p) != "3456" || requests != 2 {
		t.Errorf("read %d bytes %q, %v, in %d requests", n, p, err, requests)
	}
	if n, err := o.ReadAt(p, 16); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-1/2", "bytes 5-9/*", "bytes */7", "bytes 9-1/3", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, total, err := contentRange(s)
		if err == nil && (start < 0 || total >= 0 && start >= total) {
			t.Errorf("%q gives start %d of %d", s, start, total)
		}
	})
}

// Several connections give the same bytes in the same order, through cuts.
func TestParallelRanges(t *testing.T) {
	body := make([]byte, 9<<20+77)
	for i := range body {
		body[i] = byte(i * 31 >> 7)
	}
	var mu sync.Mutex
	requests, ranges := 0, map[string]int{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requests++
		n := requests
		ranges[r.Header.Get("Range")]++
		mu.Unlock()
		w.Header().Set("ETag", `"e"`)
		if n%4 == 3 {
			w = &half{ResponseWriter: w}
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}))
	defer s.Close()
	o, err := Open(t.Context(), s.URL, Options{Connections: 4, Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	r := o.Stream()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, body) {
		t.Errorf("read %d bytes that differ", len(got))
	}
	if len(ranges) < 10 || o.Resumes() == 0 {
		t.Errorf("%d ranges, %d resumes", len(ranges), o.Resumes())
	}
}

// half breaks a response off in its middle.
type half struct {
	http.ResponseWriter
	n int
}

func (h *half) Write(p []byte) (int, error) {
	if h.n += len(p); h.n > 300<<10 {
		panic(http.ErrAbortHandler)
	}
	return h.ResponseWriter.Write(p)
}

// Closing in the middle, and a part that fails for good, both end everything.
func TestParallelEnds(t *testing.T) {
	body := make([]byte, 8<<20)
	var gone atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if gone.Load() {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", `"e"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}))
	defer s.Close()
	for name, fail := range map[string]bool{"closed": false, "404": true} {
		t.Run(name, func(t *testing.T) {
			gone.Store(false)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o, err := Open(ctx, s.URL, Options{Connections: 3})
			if err != nil {
				t.Fatal(err)
			}
			gone.Store(fail)
			r := o.Stream()
			_, err = io.CopyN(io.Discard, r, 3<<20)
			if (err != nil) != fail {
				t.Errorf("error %v", err)
			}
			cancel()
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
