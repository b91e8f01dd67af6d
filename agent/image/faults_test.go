package image

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/agent/image/qcow2"
	"github.com/slipway-metal/slipway/agent/image/source"
)

// server is an image server that can be told to fail.
type server struct {
	body    []byte
	etag    string
	ranges  bool
	chunked bool  // no Content-Length
	cut     int64 // bytes of one response, then the connection breaks; 0 never
	cuts    int   // how many responses are cut; -1 all
	stall   bool  // instead of breaking, the connection goes silent
	swap    []byte
	forget  bool  // ranges are served to the first request only
	status  []int // of the first responses
	after   string

	mu       sync.Mutex
	requests []*http.Request
	done     chan struct{}
}

func start(t testing.TB, s *server) string {
	t.Helper()
	s.done = make(chan struct{})
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	t.Cleanup(func() { close(s.done) })
	return h.URL + "/image?signature=hunter2"
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	n := len(s.requests)
	s.requests = append(s.requests, r)
	body, etag := s.body, s.etag
	if n > 0 && s.swap != nil {
		body, etag = s.swap, `"second"`
	}
	cut := s.cut > 0 && s.cuts != 0
	if cut {
		s.cuts--
	}
	s.mu.Unlock()
	if n < len(s.status) && s.status[n] != 200 {
		if s.after != "" {
			w.Header().Set("Retry-After", s.after)
		}
		http.Error(w, "no", s.status[n])
		return
	}
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	if cut {
		w = &cutter{ResponseWriter: w, left: s.cut, stall: s.stall, done: s.done}
	}
	switch {
	case s.chunked:
		for len(body) > 0 {
			k := min(len(body), 256<<10)
			_, _ = w.Write(body[:k])
			body = body[k:]
			_ = http.NewResponseController(w).Flush()
		}
	case s.ranges && (n == 0 || !s.forget):
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(body))
	default:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	}
}

// cutter breaks a response after some bytes.
type cutter struct {
	http.ResponseWriter
	left  int64
	stall bool
	done  chan struct{}
}

func (c *cutter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *cutter) Write(p []byte) (int, error) {
	k := min(int64(len(p)), c.left)
	n, err := c.ResponseWriter.Write(p[:k])
	c.left -= int64(n)
	if c.left > 0 || err != nil {
		return n, err
	}
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	if c.stall {
		<-c.done
	}
	panic(http.ErrAbortHandler)
}

const etagOne = `"first"`

// Every fault of the source ends in a clear error and a disk that does not
// boot, or in the right content; nothing between.
func TestSourceFaults(t *testing.T) {
	path := gptImage(t, 24*mib)
	raw := readFile(t, path)
	gz := compress(t, path, "gzip", "-1")
	zst := compress(t, path, "zstd", "-3", "--no-check")
	flip := func(b []byte, at int) []byte {
		c := bytes.Clone(b)
		c[at] ^= 0x40
		return c
	}
	big := bytes.Repeat([]byte{7}, 64*mib)
	copy(big, raw[:mib])

	type want struct {
		err       error  // errors.Is; nil with text "" means success
		text      string // in the error
		untouched bool   // not one write
	}
	for _, c := range []struct {
		name string
		s    *server
		edit func(*Request)
		disk int64
		want want
	}{
		{name: "cut with Content-Length, no ranges", s: &server{body: raw, cut: 9 * mib, cuts: -1}, want: want{source.ErrNoRanges, "of 25165824 bytes", false}},
		{name: "cut in chunks, no ranges", s: &server{body: raw, chunked: true, cut: 9 * mib, cuts: -1}, want: want{source.ErrNoRanges, "unexpected EOF", false}},
		{name: "cut gzip in chunks", s: &server{body: gz, chunked: true, cut: 3 * mib, cuts: -1}, want: want{source.ErrNoRanges, "unexpected EOF", false}},
		{name: "cut once, no ranges: written again", s: &server{body: raw, cut: 9 * mib, cuts: 1}},
		{name: "cut with ranges and ETag", s: &server{body: raw, etag: etagOne, ranges: true, cut: 5 * mib, cuts: -1}},
		{name: "cut with ranges, date only", s: &server{body: zst, ranges: true, cut: 3 * mib, cuts: 2}},
		{name: "cut with ranges, weak ETag and date", s: &server{body: gz, etag: `W/"x"`, ranges: true, cut: 3 * mib, cuts: 2}},
		{name: "cut, ranges no longer served: written again", s: &server{body: raw, etag: etagOne, ranges: true, forget: true, cut: 9 * mib, cuts: 1}},
		{name: "stall with ranges", s: &server{body: raw, etag: etagOne, ranges: true, cut: 9 * mib, cuts: 1, stall: true}},
		{name: "stall for ever", s: &server{body: raw, cut: 9 * mib, cuts: -1, stall: true}, want: want{source.ErrNoRanges, "no byte arrived for 200ms", false}},
		{name: "no progress between cuts", s: &server{body: raw, etag: etagOne, ranges: true, cut: 1, cuts: -1}, want: want{nil, "attempt 4", false}},
		{name: "published file truncated", s: &server{body: zst[:len(zst)/2]}, want: want{ErrCorrupt, "truncated", false}},
		{name: "altered first byte of raw", s: &server{body: flip(raw, 3)}, edit: digestOf(raw), want: want{ErrDigest, "", false}},
		{name: "altered middle byte of raw", s: &server{body: flip(raw, 12*mib)}, edit: digestOf(raw), want: want{ErrDigest, "", false}},
		{name: "altered last byte of raw", s: &server{body: flip(raw, len(raw)-1)}, edit: digestOf(raw), want: want{ErrDigest, "", false}},
		{name: "altered byte of gzip", s: &server{body: flip(gz, len(gz)/2)}, edit: digestOf(gz), want: want{ErrCorrupt, "", false}},
		{name: "bytes after gzip", s: &server{body: append(bytes.Clone(gz), "more"...)}, want: want{ErrCorrupt, "", false}},
		{name: "wrong digest", s: &server{body: zst}, edit: digestOf(raw), want: want{ErrDigest, "", false}},
		{name: "digest missing", s: &server{body: zst}, edit: func(r *Request) { r.Digest = Digest{} }, want: want{ErrNoDigest, "os_hash_value", true}},
		{name: "digest of another length", s: &server{body: zst}, edit: func(r *Request) { r.Digest.Hex = "abcd" }, want: want{nil, "64 hex digits", true}},
		{name: "md5 without leave", s: &server{body: zst}, edit: func(r *Request) { r.Digest = Digest{"md5", strings.Repeat("0", 32)} }, want: want{nil, "md5", true}},
		{name: "raw larger than the disk", s: &server{body: big}, want: want{ErrTooLarge, "67108864", true}},
		{name: "raw of unknown length larger than the disk", s: &server{body: big, chunked: true}, want: want{ErrTooLarge, "41943040", false}},
		{name: "gzip larger than the disk", s: &server{body: compressBytes(t, big, "gzip")}, want: want{ErrTooLarge, "", false}},
		{name: "zstd that says it is larger", s: &server{body: compressBytes(t, big, "zstd", "--stream-size=67108864")}, want: want{ErrTooLarge, "67108864", true}},
		{name: "last partition behind the disk's end", s: &server{body: raw}, disk: 24*mib - 4096, want: want{ErrTooLarge, "", true}},
		{name: "404", s: &server{status: []int{404, 404}}, want: want{nil, "HTTP 404 Not Found (attempt 1)", true}},
		{name: "403", s: &server{status: []int{403, 403}}, want: want{nil, "HTTP 403 Forbidden (attempt 1)", true}},
		{name: "500 always", s: &server{status: []int{500, 500, 500, 500, 500}}, want: want{nil, "HTTP 500 Internal Server Error (attempt 4)", true}},
		{name: "503 with Retry-After, then well", s: &server{body: raw, status: []int{503, 503}, after: "0"}},
		{name: "503 that asks for too long", s: &server{status: []int{503}, after: "86400"}, want: want{nil, "24h0m0s", true}},
		{name: "500 in the middle, ranges", s: &server{body: raw, etag: etagOne, ranges: true, cut: 9 * mib, cuts: 1, status: []int{200, 500, 502}}},
		{name: "404 in the middle, ranges", s: &server{body: raw, etag: etagOne, ranges: true, cut: 9 * mib, cuts: 1, status: []int{200, 404, 404}}, want: want{nil, "got 9437184 of 25165824 bytes: HTTP 404", false}},
		{name: "content changes, comes back right", s: &server{body: flip(raw, 9), etag: etagOne, ranges: true, cut: 9 * mib, cuts: 1, swap: raw}, edit: digestOf(raw)},
		{name: "content changes, no digest", s: &server{body: raw, etag: etagOne, ranges: true, cut: 9 * mib, cuts: 1, swap: raw},
			edit: func(r *Request) { r.Digest, r.AllowNoDigest = Digest{}, true }, want: want{source.ErrChanged, "", false}},
		{name: "content changes, no restarts", s: &server{body: raw, etag: etagOne, ranges: true, cut: 9 * mib, cuts: 1, swap: raw},
			edit: func(r *Request) { r.Restarts = -1 }, want: want{source.ErrChanged, "", false}},
		{name: "empty", s: &server{body: []byte{}}, want: want{ErrCorrupt, "empty", true}},
		{name: "a page", s: &server{body: []byte("<!DOCTYPE html><p>log in")}, want: want{ErrFormat, "page", true}},
		{name: "qcow2 inside gzip", s: &server{body: compressBytes(t, qemuImg(t, path), "gzip")}, want: want{ErrFormat, "qcow2 inside gzip", true}},
		{name: "gzip inside zstd", s: &server{body: compressBytes(t, gz, "zstd")}, want: want{ErrFormat, "gzip inside zstd", true}},
		{name: "qcow2 called raw", s: &server{body: qemuImg(t, path), etag: etagOne, ranges: true}, edit: format("raw"), want: want{ErrFormat, "says raw and the content is qcow2", true}},
		{name: "raw called qcow2", s: &server{body: raw}, edit: format("qcow2"), want: want{ErrFormat, "says qcow2 and the content is raw", true}},
		{name: "vmdk", s: &server{body: raw}, edit: format("vmdk"), want: want{ErrFormat, "vmdk", true}},
		{name: "qcow2 without ranges", s: &server{body: qemuImg(t, path)}, want: want{ErrFormat, "by ranges", true}},
		{name: "qcow2 larger than the disk", s: &server{body: qemuImg(t, path), etag: etagOne, ranges: true}, disk: 16 * mib, want: want{ErrTooLarge, "25165824", true}},
		{name: "qcow2 altered", s: &server{body: flip(qemuImg(t, path), 9*mib+99), etag: etagOne, ranges: true}, edit: digestOf(qemuImg(t, path)), want: want{ErrDigest, "", false}},
		{name: "qcow2 cut, ranges", s: &server{body: qemuImg(t, path, "-c"), etag: etagOne, ranges: true, cut: 3 * mib, cuts: 2}},
		{name: "qcow2 exchanged after its tables were read", s: &server{body: qemuImg(t, path), etag: etagOne, ranges: true, swap: raw},
			edit: func(r *Request) { r.Restarts = -1 }, want: want{source.ErrChanged, "", true}},
		{name: "zstd --long=27", s: &server{body: compressBytes(t, raw, "zstd", "--long=27")}, want: want{ErrFormat, "window of 128 MiB", true}},
		{name: "xz -9", s: &server{body: compressBytes(t, raw[:2*mib], "xz", "-9")}, want: want{ErrFormat, "window of 64 MiB", true}},
		{name: "no scheme but http", s: &server{}, edit: func(r *Request) { r.URLs = []string{"file:///etc/shadow"} }, want: want{nil, `scheme "file" is not allowed`, true}},
		{name: "no URL", s: &server{}, edit: func(r *Request) { r.URLs = nil }, want: want{nil, "no urls", true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := newDevice(t, cmp.Or(c.disk, 40*mib))
			req := request(start(t, c.s), c.s.body)
			if c.edit != nil {
				c.edit(&req)
			}
			_, err := Write(t.Context(), req, dev, nil)
			if c.want.err == nil && c.want.text == "" {
				if err != nil {
					t.Fatal(err)
				}
				assertImage(t, dev, raw)
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			if c.want.err != nil && !errors.Is(err, c.want.err) || !strings.Contains(err.Error(), c.want.text) {
				t.Errorf("error %q, want %v with %q", err, c.want.err, c.want.text)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error quotes a secret: %v", err)
			}
			if c.want.untouched {
				dev.assertUntouched()
			} else {
				dev.assertNotBootable()
			}
		})
	}
}

func digestOf(b []byte) func(*Request) { return func(r *Request) { r.Digest = sha(b) } }
func format(f string) func(*Request)   { return func(r *Request) { r.DiskFormat = f } }

func compressBytes(t testing.TB, b []byte, argv ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "in")
	writeFile(t, path, b)
	return compress(t, path, argv...)
}

// A mirror that fails, or serves something else, costs only time.
func TestMirrors(t *testing.T) {
	raw := readFile(t, gptImage(t, 24*mib))
	good := serve(t, raw)
	for name, bad := range map[string]*server{
		"404":          {status: []int{404}},
		"wrong digest": {body: bytes.Repeat([]byte{1}, mib)},
		"cut":          {body: raw, cut: 9 * mib, cuts: -1},
	} {
		t.Run(name, func(t *testing.T) {
			dev := newDevice(t, 40*mib)
			req := request(start(t, bad), raw)
			req.URLs = append(req.URLs, good)
			req.Restarts = -1
			if _, err := Write(t.Context(), req, dev, nil); err != nil {
				t.Fatal(err)
			}
			assertImage(t, dev, raw)
		})
	}
}

// A disk that fails is named with the place, and no mirror is tried after it.
func TestDiskFaults(t *testing.T) {
	path := gptImage(t, 24*mib)
	raw := readFile(t, path)
	for _, c := range []struct {
		name string
		set  func(*fileDevice)
		want string
	}{
		{"write in the middle", func(d *fileDevice) { d.failWrite = 12*mib + 5 }, "disk test-disk: write at byte 12582912 (LBA 24576): input/output error"},
		{"write of the last boot structure", func(d *fileDevice) {
			heads := 0
			d.onWrite = func(off int64) error {
				if off == 0 {
					if heads++; heads == 2 { // the wipe was the first
						return errEIO
					}
				}
				return nil
			}
		}, "write at byte 0 (LBA 0): input/output error"},
		{"read-back fails", func(d *fileDevice) { d.failRead = -2 }, "read at byte"},
		{"read-back differs", func(d *fileDevice) { d.flipRead = -2 }, "read back differently"},
		{"boot structure reads back differently", func(d *fileDevice) { d.flipRead = 600 }, "LBA 0 to 2047 read back differently"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := newDevice(t, 40*mib)
			c.set(dev)
			req := request(serve(t, raw), raw)
			req.URLs = append(req.URLs, req.URLs[0])
			_, err := Write(t.Context(), req, dev, nil)
			if err == nil || strings.Count(err.Error(), c.want) != 1 {
				t.Fatalf("error %v, want %q once", err, c.want)
			}
			dev.assertNotBootable()
		})
	}
	t.Run("too small", func(t *testing.T) {
		dev := newDevice(t, 2*mib)
		if _, err := Write(t.Context(), request(serve(t, raw), raw), dev, nil); err == nil {
			t.Fatal("no error")
		}
		dev.assertUntouched()
	})
}

// A write that is called off, at any point, ends soon and boots nothing.
func TestCancel(t *testing.T) {
	path := gptImage(t, 24*mib)
	for name, body := range map[string][]byte{
		"raw": readFile(t, path), "zstd": compress(t, path, "zstd"), "qcow2": qemuImg(t, path, "-c"),
	} {
		for _, after := range []int{3, 6, 12} { // writes
			t.Run(fmt.Sprintf("%s after %d writes", name, after), func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				dev := newDevice(t, 40*mib)
				var mu sync.Mutex
				n := 0
				dev.onWrite = func(int64) error {
					mu.Lock()
					defer mu.Unlock()
					if n++; n == after {
						cancel()
					}
					return nil
				}
				_, err := Write(ctx, request(serve(t, body), body), dev, nil)
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("error %v", err)
				}
				dev.assertNotBootable()
			})
		}
	}
}

// Images that would make a reader open other files are refused before
// anything is written (CVE-2024-44082).
func TestHostileQCOW2(t *testing.T) {
	path := gptImage(t, 24*mib)
	good := qemuImg(t, path)
	dir := t.TempDir()
	make := func(name string, args ...string) []byte {
		out := filepath.Join(dir, name)
		tool(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), out, "24M")...)
		return readFile(t, out)
	}
	edit := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	writeFile(t, filepath.Join(dir, "base"), good)
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"backing file": {make("backing", "-b", filepath.Join(dir, "base"), "-F", "qcow2"), "backing file"},
		"data file":    {make("data", "-o", "data_file="+filepath.Join(dir, "d.raw")), "in another file"},
		"encrypted":    {edit(35, 1), "encrypted"},
		"version 9":    {edit(7, 9), "version 9"},
		"L1 outside":   {edit(41, 1), "outside of the file"},
		"corrupt":      {edit(79, 2), "marked corrupt"},
		"unknown bit":  {edit(78, 2), "features that are not known"},
	} {
		t.Run(name, func(t *testing.T) {
			dev := newDevice(t, 40*mib)
			_, err := Write(t.Context(), request(serve(t, c.body), c.body), dev, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if !errors.Is(err, qcow2.ErrRefused) && !errors.Is(err, qcow2.ErrCorrupt) {
				t.Errorf("error %v has no kind", err)
			}
			dev.assertUntouched()
		})
	}
}
