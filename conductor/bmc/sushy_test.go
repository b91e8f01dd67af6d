package bmc_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/bmc/bmctest"
	"github.com/slipway-metal/slipway/testenv/sushy"
)

// sushyEnv names the sushy-emulator binary (PyPI sushy-tools): a Redfish service
// that nobody here wrote. Without it these tests are skipped.
const sushyEnv = "SLIPWAY_SUSHY"

// startSushy runs sushy-emulator with its fake driver and returns its URL. config
// is more Python for its configuration file.
func startSushy(t *testing.T, config string) string {
	t.Helper()
	bin := os.Getenv(sushyEnv)
	switch {
	case bin != "":
	case os.Getenv("SLIPWAY_LAB") == "":
		t.Skip(sushyEnv + " does not name a sushy-emulator, and this is not `make lab`")
	default:
		cache, err := os.UserCacheDir()
		if err == nil {
			bin, err = sushy.Install(t.Context(), filepath.Join(cache, "slipway", "sushy"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "sushy.conf")
	config += fmt.Sprintf("\nSUSHY_EMULATOR_STATE_DIR = %q\n", dir)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "--fake", "-i", "127.0.0.1", "-p", fmt.Sprint(port), "--config", file)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir)
	// It dies with the test, however the test ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			out, _ := os.ReadFile(log.Name())
			t.Logf("sushy-emulator said:\n%s", out)
		}
	})
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/redfish/v1/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			return url
		}
		select {
		case <-ctx.Done():
			t.Fatalf("sushy-emulator does not listen: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// sushyLimits: its fake machine takes 1 to 11 seconds for a power change.
var sushyLimits = bmc.Timeouts{Power: 20 * time.Second, SoftPower: 20 * time.Second, Settle: 5 * time.Second, Poll: 50 * time.Millisecond}

func TestSushyToolsBehaves(t *testing.T) {
	images := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Disposition", `attachment; filename="boot.iso"`)
		_, _ = w.Write(make([]byte, 2048))
	}))
	t.Cleanup(images.Close)
	for name, c := range map[string]struct {
		config string
		info   map[string]any
	}{
		"open": {},
		"minimum features, quirk by hand": {
			config: `SUSHY_EMULATOR_FEATURE_SET = "vmedia"`,
			info:   map[string]any{"redfish_quirks": "once-reads-continuous"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			info := map[string]any{"redfish_address": startSushy(t, c.config)}
			for k, v := range c.info {
				info[k] = v
			}
			bmctest.Run(t, bmctest.Subject{
				Open:                func(t *testing.T) bmc.BMC { return open(t, "redfish", info, bmc.Options{Timeouts: sushyLimits}) },
				OnceReadsContinuous: true, ImageURL: images.URL + "/boot.iso",
			})
		})
	}
}

func TestSushyToolsWithAPassword(t *testing.T) {
	const bcrypt = "$2b$04$70Zu9KLAXNdg0d4NKWLjD.ovj8F4RIju6Wkq9ItuN5AhflBFmyxfW" // of "pass"
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte("admin:"+bcrypt+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	url := startSushy(t, fmt.Sprintf("SUSHY_EMULATOR_AUTH_FILE = %q", file))
	info := map[string]any{"redfish_address": url, "redfish_username": "admin", "redfish_password": "wrong"}
	_, err := openFull(t, "redfish", info, bmc.Options{}).PowerState(t.Context())
	check(t, err, bmc.ErrRefused)
	info["redfish_password"] = "pass"
	if _, err := openFull(t, "redfish", info, bmc.Options{}).PowerState(t.Context()); err != nil {
		t.Error(err)
	}
}
