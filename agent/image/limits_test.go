package image

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/slipway-metal/slipway/agent/image/source"
	"github.com/slipway-metal/slipway/proto/event"
)

// goMemory is what the Go runtime holds of the system, in bytes.
func goMemory() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}

// A write holds a few dozen MiB however large the image is: this is what lets
// it work on a machine with 256 MB.
func TestMemoryIsBounded(t *testing.T) {
	dir := t.TempDir()
	raw := gptImage(t, 96*mib)
	for name, make := range map[string]func(out string){
		"raw":        func(out string) { tool(t, "cp", raw, out) },
		"zstd -19":   func(out string) { tool(t, "zstd", "-q", "-12", "--zstd=wlog=23", raw, "-o", out) }, // -19's window of 8 MiB
		"gzip":       func(out string) { tool(t, "sh", "-c", "gzip -1 < "+raw+" > "+out) },
		"qcow2 zstd": func(out string) { writeFile(t, out, qemuImg(t, raw, "-c", "-o", "compression_type=zstd")) },
		"qcow2 2 MiB": func(out string) {
			writeFile(t, out, qemuImg(t, raw, "-c", "-o", "compression_type=zstd,cluster_size=2M"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			make(path)
			digest := sha(readFile(t, path))
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("ETag", `"x"`)
				http.ServeFile(w, r, path)
			}))
			defer s.Close()
			dev := openDevice(t, filepath.Join(t.TempDir(), "disk"), 100*mib)
			debug.FreeOSMemory()
			base, peak := goMemory(), int64(0)
			dev.onWrite = func(int64) error {
				dev.mu.Lock()
				defer dev.mu.Unlock()
				peak = max(peak, goMemory())
				return nil
			}
			if _, err := Write(t.Context(), Request{URLs: []string{s.URL}, Digest: digest}, dev, nil); err != nil {
				t.Fatal(err)
			}
			t.Logf("the write held %.1f MiB", float64(peak-base)/mib)
			if peak-base > 40*mib {
				t.Errorf("the write held %d MiB, want at most 40", (peak-base)/mib)
			}
		})
	}
}

// An image that unpacks for ever is stopped at the disk's end.
func TestEndlessBody(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		z, err := zstd.NewWriter(w)
		if err != nil {
			t.Error(err)
			return
		}
		zero := make([]byte, mib)
		for err == nil {
			_, err = z.Write(zero)
		}
	}))
	defer s.Close()
	dev := newDevice(t, 16*mib)
	_, err := Write(t.Context(), Request{URLs: []string{s.URL}, AllowNoDigest: true}, dev, nil)
	if !errors.Is(err, ErrTooLarge) {
		t.Fatalf("error %v", err)
	}
	dev.assertNotBootable()
}

// Success and failure both leave no goroutine behind.
func TestNothingIsLeftRunning(t *testing.T) {
	path := gptImage(t, 24*mib)
	for name, body := range map[string][]byte{"zstd": compress(t, path, "zstd"), "qcow2": qemuImg(t, path, "-c")} {
		for outcome, fail := range map[string]bool{"success": false, "failure": true} {
			t.Run(name+" "+outcome, func(t *testing.T) {
				url := serve(t, body)
				dev := newDevice(t, 40*mib)
				if fail {
					dev.failWrite = 12 * mib
				}
				transport := &http.Transport{DisableKeepAlives: true}
				before := goleak.IgnoreCurrent()
				req := request(url, body)
				req.Source.Client = &http.Client{Transport: transport}
				if _, err := Write(t.Context(), req, dev, func(event.Progress) {}); (err != nil) != fail {
					t.Fatalf("error %v", err)
				}
				goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("net/http.(*conn).serve"))
			})
		}
	}
}

// trickle is a server's body in faked time: a MiB every tenth of a second.
type trickle struct{ left int }

func (b *trickle) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(100 * time.Millisecond) // of the bubble's time
	n := min(len(p), b.left, mib)
	for i := range p[:n] {
		p[i] = 7
	}
	b.left -= n
	return n, nil
}

type respond func(*http.Request) *http.Response

func (f respond) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// Progress comes at most once a second, with a rate and a time to go that a
// person can use.
func TestProgress(t *testing.T) {
	dev := newDevice(t, 64*mib)
	synctest.Test(t, func(t *testing.T) {
		const size = 40 * mib
		client := &http.Client{Transport: respond(func(*http.Request) *http.Response {
			return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: size, Body: io.NopCloser(&trickle{left: size})}
		})}
		var events []event.Progress
		var times []time.Time
		_, err := Write(t.Context(), Request{URLs: []string{"http://images/x"}, AllowNoDigest: true, Source: source.Options{Client: client}}, dev,
			func(e event.Progress) { events, times = append(events, e), append(times, time.Now()) })
		if err != nil {
			t.Fatal(err)
		}
		if len(events) < 3 {
			t.Fatalf("%d events", len(events))
		}
		for i, e := range events[1:] {
			if d := times[i+1].Sub(times[i]); d < time.Second {
				t.Errorf("two events within %s", d)
			}
			if e.Done < events[i].Done || e.Done > size || e.Total != size {
				t.Errorf("event %d: %d of %d after %d", i+1, e.Done, e.Total, events[i].Done)
			}
		}
		// One on the way: the last may come at the very end, with nothing left to wait for.
		e := events[len(events)-2]
		if e.Stage != PhaseWrite || e.Bottleneck != StageNetwork || e.Rate < mib || e.ETA <= 0 || e.ETA > 60 || e.Percent < 50 {
			t.Errorf("an event near the end is %+v", e)
		}
	})
}

// FuzzHeaders: what compressed headers claim is read without trust.
func FuzzHeaders(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, "x")
	writeFile(f, path, []byte("slipway"))
	for _, argv := range [][]string{{"zstd", "--long=27"}, {"zstd", "--stream-size=7"}, {"xz", "-9"}, {"xz", "-0", "--block-size=4"}, {"gzip"}, {"bzip2"}} {
		f.Add(compress(f, path, argv...))
	}
	f.Add([]byte("QFI\xfb"))
	f.Fuzz(func(t *testing.T, b []byte) {
		format, _ := sniff(b)
		d := inspectHeader(format, b)
		if d.size < -1 || d.window < 0 {
			t.Errorf("%s: %+v", format, d)
		}
	})
}
