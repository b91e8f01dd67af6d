package faults

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/proto/agent"
)

// serveImage is an image server; h sees each request first and may misbehave.
func serveImage(t *testing.T, content []byte, h func(w http.ResponseWriter, r *http.Request) (handled bool)) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h != nil && h(w, r) {
			return
		}
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(content)))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/disk.img"
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// TestBadImages: whatever is wrong with the image, the node says what and what
// to do, the disk does not boot, and a retry with a good image succeeds.
func TestBadImages(t *testing.T) {
	good := image(t)
	for _, tc := range []struct {
		name    string
		content []byte
		digest  string
		serve   func(http.ResponseWriter, *http.Request) bool
		says    []string
	}{
		{name: "truncated", content: good[:len(good)/2], digest: sum(good), says: []string{"step write_image", "digest"}},
		{name: "altered byte", content: altered(good), digest: sum(good), says: []string{"step write_image", "digest", sum(good)[:16]}},
		{name: "wrong digest", content: good, digest: strings.Repeat("ab", 32), says: []string{"step write_image", "digest"}},
		{name: "body ends early", content: good, digest: sum(good), serve: cutShort(good), says: []string{"step write_image"}},
		{name: "404", digest: sum(good), serve: status(404), says: []string{"step write_image", "404"}},
		{name: "larger than the disk", digest: sum(good), serve: claims(7 << 30), says: []string{"step write_image", "larger disk"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := rack(t)
			m := r.Ready("node-a", "52:54:00:aa:00:01")
			m.Deploy(serveImage(t, tc.content, tc.serve), tc.digest)
			n := r.Await(m, "deploy failed")
			for _, want := range append(tc.says, "; ") { // cause; next step
				if !strings.Contains(n.LastError, want) {
					t.Errorf("last_error does not say %q: %s", want, n.LastError)
				}
			}
			if m.Bootable() {
				t.Error("the disk would boot")
			}
			m.Deploy(serveImage(t, good, nil), sum(good))
			r.Await(m, "active")
			if !m.Bootable() {
				t.Error("the disk does not boot after a good deploy")
			}
			noSecrets(t, r, m)
		})
	}
}

func altered(b []byte) []byte {
	c := append([]byte(nil), b...)
	c[len(c)/2] ^= 1
	return c
}

func status(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(code)
		return true
	}
}

// cutShort promises all bytes and hangs up half-way, every time, without ranges.
func cutShort(b []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", itoa(len(b)))
		_, _ = w.Write(b[:len(b)/2])
		panic(http.ErrAbortHandler)
	}
}

// claims a raw image of n bytes.
func claims(n int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", itoa(n))
		w.Header().Set("ETag", `"huge"`)
		if r.Method != http.MethodHead {
			_, _ = w.Write(make([]byte, 1<<20))
		}
		return true
	}
}

// TestRefusedBeforeAnythingIsTouched: what can be known from the request alone
// fails without a step, and the disk is what it was.
func TestRefusedBeforeAnythingIsTouched(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	url := serveImage(t, good, nil)
	m.Deploy(url, sum(good))
	r.Await(m, "active")
	for _, tc := range []struct {
		name, path string
		value      any
		says       []string
	}{
		{"digest missing", "/instance_info/image_checksum", "", []string{"digest is missing", "image_checksum"}},
		{"MD5", "/instance_info/image_checksum", strings.Repeat("a", 32), []string{"MD5"}},
		{"file URL", "/instance_info/image_source", "file:///etc/shadow", []string{"file", "http"}},
		{"no disk matches", "/instance_info/root_device", map[string]any{"serial": "other"}, []string{"root device", "other", "VIRTIO-1"}},
		{"bad hint", "/instance_info/root_device", map[string]any{"colour": "blue"}, []string{"root device", "colour"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m.Set(tc.path, tc.value)
			status, body := r.Do("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": "rebuild"})
			said := body
			if status < 300 {
				said = r.Await(m, "deploy failed").LastError
			} else if status != 400 {
				t.Fatalf("rebuild: %d %s", status, body)
			}
			for _, want := range tc.says {
				if !strings.Contains(said, want) {
					t.Errorf("does not say %q: %s", want, said)
				}
			}
			if !m.Bootable() {
				t.Error("the disk was touched")
			}
			// Back to what worked.
			for path, v := range map[string]any{"/instance_info/image_checksum": sum(good), "/instance_info/image_source": url, "/instance_info/root_device": map[string]any{}} {
				m.Set(path, v)
			}
			if status < 300 {
				r.Must("PUT", "/v1/nodes/"+m.UUID+"/states/provision", map[string]any{"target": "rebuild"}, nil)
				r.Await(m, "active")
			}
		})
	}
}

// TestInterruptedDownloadGoesOn: a reset half-way is taken up by range, once.
func TestInterruptedDownloadGoesOn(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	var cut, ranged atomic.Int32
	url := serveImage(t, good, func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Range") != "bytes=0-" {
			if req.Header.Get("If-Range") == `"v1"` {
				ranged.Add(1)
			}
			return false
		}
		if cut.Add(1) > 1 {
			return false
		}
		w.Header().Set("Content-Length", itoa(len(good)))
		w.Header().Set("Content-Range", "bytes 0-"+itoa(len(good)-1)+"/"+itoa(len(good)))
		w.Header().Set("ETag", `"v1"`)
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(good[:len(good)/2])
		panic(http.ErrAbortHandler)
	})
	m.Deploy(url, sum(good))
	n := r.Await(m, "active")
	if ranged.Load() == 0 {
		t.Error("the download was not resumed by a range bound to its ETag")
	}
	facts, err := json.Marshal(n.DriverInternalInfo["slipway_deploy"])
	if err != nil || !strings.Contains(string(facts), `"resumes":1`) {
		t.Errorf("the facts of the deploy do not tell of the resumption: %s", facts)
	}
}

// TestChangedImageIsNotSpliced: the image behind the URL changes while it is
// read. Two halves of different images never become one disk.
func TestChangedImageIsNotSpliced(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	other := altered(good)
	var n atomic.Int32
	m.Deploy(serveImage(t, good, func(w http.ResponseWriter, req *http.Request) bool {
		if n.Add(1) > 1 {
			w.Header().Set("ETag", `"v2"`)
			http.ServeContent(w, req, "", time.Time{}, strings.NewReader(string(other)))
			return true
		}
		w.Header().Set("Content-Length", itoa(len(good)))
		w.Header().Set("Content-Range", "bytes 0-"+itoa(len(good)-1)+"/"+itoa(len(good)))
		w.Header().Set("ETag", `"v1"`)
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(good[:len(good)/4])
		panic(http.ErrAbortHandler)
	}), sum(good))
	last := r.Await(m, "deploy failed").LastError
	for _, want := range []string{"step write_image", sum(other), "; "} { // the digest of all of the new one
		if !strings.Contains(last, want) {
			t.Errorf("last_error does not say %q: %s", want, last)
		}
	}
	if m.Bootable() {
		t.Error("the disk would boot")
	}
}

// TestServerErrorsAreRiddenOut: 500 twice, then the image.
func TestServerErrorsAreRiddenOut(t *testing.T) {
	t.Parallel()
	r := rack(t)
	m := r.Ready("node-a", "52:54:00:aa:00:01")
	good := image(t)
	var n atomic.Int32
	m.Deploy(serveImage(t, good, func(w http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1) > 2 {
			return false
		}
		w.WriteHeader(http.StatusInternalServerError)
		return true
	}), sum(good))
	r.Await(m, "active")
}

// TestSeveralDisksMatch: two equal disks are a question, not a coin toss.
func TestSeveralDisksMatch(t *testing.T) {
	a, b := "serial-a", "serial-b"
	disks := []agent.Disk{{Name: "/dev/sda", Size: 100 << 30, Serial: &a}, {Name: "/dev/sdb", Size: 100 << 30, Serial: &b}}
	_, err := agent.PickRootDisk(disks, nil)
	if err == nil || !strings.Contains(err.Error(), "serial-a") || !strings.Contains(err.Error(), "serial-b") {
		t.Errorf("error %v does not name both", err)
	}
}
