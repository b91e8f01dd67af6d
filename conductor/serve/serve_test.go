package serve

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnsafeConfigurationsAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  Config
		want string // "" is accepted
	}{
		"loopback needs nothing":           {Config{Listen: "127.0.0.1:6385", Auth: "none"}, ""},
		"IPv6 loopback too":                {Config{Listen: "[::1]:6385", Auth: "none"}, ""},
		"every address without a password": {Config{Listen: "0.0.0.0:6385", Auth: "none"}, "no authentication"},
		"empty host is every address":      {Config{Listen: ":6385", Auth: "none"}, "no authentication"},
		"a password in the clear":          {Config{Listen: "10.0.0.1:6385", Auth: "http_basic", Htpasswd: "x"}, "no TLS"},
		"a name is not loopback":           {Config{Listen: "conductor:6385", Auth: "none"}, "no authentication"},
		"basic without users":              {Config{Listen: "127.0.0.1:1", Auth: "http_basic"}, "no user file"},
		"certificate without key":          {Config{Listen: "127.0.0.1:1", Auth: "none", TLSCert: "x"}, "go together"},
		"no port":                          {Config{Listen: "127.0.0.1", Auth: "none"}, "missing port"},
		"all of it":                        {Config{Listen: "10.0.0.1:1", Auth: "http_basic", Htpasswd: "x", TLSCert: "c", TLSKey: "k"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.cfg.check()
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v does not say %q", err, tc.want)
			}
		})
	}
}

func TestKeyIsMadeOnceAndMissedLoudly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, err := loadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := loadKey(dir)
	if err != nil || string(again) != string(first) {
		t.Fatalf("second start: another key, or %v", err)
	}
	st, err := os.Stat(filepath.Join(dir, "secret.key"))
	if err != nil || st.Mode().Perm()&0o077 != 0 {
		t.Errorf("key file can be read by others: %v %v", st.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, database), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "secret.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := loadKey(dir); err == nil || !strings.Contains(err.Error(), "restore it") {
		t.Errorf("a database without its key: %v", err)
	}
}

func TestDataDirectoryHasOneConductor(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockData(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockData(dir); err == nil || !strings.Contains(err.Error(), "another conductor") {
		t.Errorf("second conductor: %v", err)
	}
	unlock()
	unlock, err = lockData(dir)
	if err != nil {
		t.Fatalf("after the first ended: %v", err)
	}
	unlock()
}

func TestMachinesReachOnlyWhatMachinesNeed(t *testing.T) {
	api := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	boot := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	h := provisioning(api, boot, "")
	for _, tc := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 418}, {"GET", "/v1", 418}, {"GET", "/v1/lookup?addresses=x", 418},
		{"POST", "/v1/heartbeat/x", 418}, {"POST", "/v1/continue_inspection", 418}, {"POST", "/slipway/v1/agent/x/events", 418},
		{"GET", "/boot/ipxe", 202},
		{"GET", "/v1/nodes", 404}, {"GET", "/v1/nodes/detail", 404}, {"PUT", "/v1/nodes/x/states/provision", 404},
		{"DELETE", "/v1/nodes/x", 404}, {"GET", "/slipway/v1/events", 404}, {"GET", "/v1/lookup/../nodes", 404},
		{"GET", "/v1/heartbeat/x", 405}, {"GET", "/images/x", 404},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(tc.method, tc.path, nil))
		if rec.Code != tc.want {
			t.Errorf("%s %s: %d, want %d", tc.method, tc.path, rec.Code, tc.want)
		}
	}
}

func TestImagesStayInTheirDirectory(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "images"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("secret", "canary")
	write("images/disk.raw", "0123456789")
	if err := os.Symlink("../secret", filepath.Join(dir, "images", "link")); err != nil {
		t.Fatal(err)
	}
	h := provisioning(http.NotFoundHandler(), http.NotFoundHandler(), filepath.Join(dir, "images"))
	get := func(path, rng string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", "/images/x", nil)
		r.URL.Path = path
		if rng != "" {
			r.Header.Set("Range", rng)
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		return rec
	}
	if rec := get("/images/disk.raw", "bytes=3-5"); rec.Code != http.StatusPartialContent || rec.Body.String() != "345" || rec.Header().Get("ETag") == "" {
		t.Errorf("range: %d %q", rec.Code, rec.Body)
	}
	for _, path := range []string{"/images/../secret", "/images/link", "/images//etc/passwd", "/images/", "/images/.", "/images/disk.raw/x"} {
		if rec := get(path, ""); rec.Code == http.StatusOK || strings.Contains(rec.Body.String(), "canary") {
			t.Errorf("%s: %d %q", path, rec.Code, rec.Body)
		}
	}
}

func TestDefaultRangeIsTheUpperHalf(t *testing.T) {
	first, last := upperHalf(netip.MustParsePrefix("10.77.0.1/24"))
	if first.String() != "10.77.0.128" || last.String() != "10.77.0.254" {
		t.Errorf("%s-%s", first, last)
	}
	for _, bad := range []string{"10.77.0.9", "10.77.0.9-10.77.0.3", "10.78.0.1-10.78.0.9", "a-b"} {
		if _, err := dhcpSubnet(netip.MustParsePrefix("10.77.0.1/24"), bad); err == nil {
			t.Errorf("range %q is taken", bad)
		}
	}
}
