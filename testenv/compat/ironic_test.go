package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// realIronic is a real Ironic, API and conductor in one process.
type realIronic struct {
	t   *testing.T
	URL string
	dir string
}

const ironicConf = `[DEFAULT]
auth_strategy = noauth
rpc_transport = none
host = localhost
my_ip = 127.0.0.1
enabled_hardware_types = manual-management
enabled_boot_interfaces = ipxe
enabled_bios_interfaces = no-bios
enabled_console_interfaces = no-console
enabled_deploy_interfaces = direct
enabled_firmware_interfaces = no-firmware
enabled_inspect_interfaces = agent,no-inspect
enabled_management_interfaces = noop
enabled_network_interfaces = noop
enabled_power_interfaces = fake
enabled_raid_interfaces = no-raid
enabled_rescue_interfaces = no-rescue
enabled_storage_interfaces = noop
enabled_vendor_interfaces = no-vendor
default_network_interface = noop
minimum_required_memory = 1
state_path = %[1]s/state
tempdir = %[1]s/tmp
[api]
host_ip = 127.0.0.1
port = %[2]d
public_endpoint = http://127.0.0.1:%[2]d
api_workers = 1
[database]
connection = sqlite:///%[1]s/ironic.sqlite
[service_catalog]
endpoint_override = http://127.0.0.1:%[2]d
[oslo_concurrency]
lock_path = %[1]s/state
[conductor]
automated_clean = true
heartbeat_interval = 10
power_state_change_timeout = 10
file_url_allowed_paths = %[1]s
[agent]
image_download_source = http
require_tls = false
verify_ca = false
deploy_logs_collect = never
post_deploy_get_power_state_retries = 1
[deploy]
http_url = http://127.0.0.1:1
http_root = %[1]s/http
erase_devices_priority = 0
erase_devices_metadata_priority = 10
default_boot_mode = uefi
fast_track = false
[dhcp]
dhcp_provider = none
[inspector]
require_managed_boot = false
[inventory]
data_backend = database
[pxe]
tftp_root = %[1]s/tftp
tftp_master_path = %[1]s/tftp/master
images_path = %[1]s/images
instance_master_path = %[1]s/images/master
[fake]
power_delay = 0
`

func startIronic(t *testing.T) *realIronic {
	t.Helper()
	venv := peer(t, "SLIPWAY_COMPAT_IRONIC")
	dir, port := t.TempDir(), freePort(t)
	for _, d := range []string{"state", "tmp", "http", "tftp/master", "images/master"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"kernel", "ramdisk"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("stands for the "+f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "ironic.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, ironicConf, dir, port), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(venv, "bin", "ironic-dbsync"), "--config-file", conf, "create_schema").CombinedOutput(); err != nil {
		t.Fatalf("ironic-dbsync: %v\n%s", err, out)
	}
	i := &realIronic{t: t, dir: dir, URL: fmt.Sprintf("http://127.0.0.1:%d", port)}
	run(t, "ironic", filepath.Join(dir, "ironic.log"), filepath.Join(venv, "bin", "ironic"), "--config-file", conf)
	within(t, time.Minute, "Ironic has a conductor", func() bool {
		status, body, err := i.try(http.MethodGet, "/v1/drivers", nil)
		return err == nil && status == http.StatusOK && strings.Contains(body, "manual-management")
	})
	return i
}

// run starts a process of its own group and ends it with the test.
func run(t *testing.T, name, log, bin string, args ...string) *exec.Cmd {
	t.Helper()
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(bin, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		_ = cmd.Wait()                                      // killed
		if t.Failed() {
			raw, err := os.ReadFile(log)
			t.Logf("%s (%v):\n%s", name, err, tail(raw, 12000))
		}
	})
	return cmd
}

func tail(raw []byte, n int) []byte { return raw[max(0, len(raw)-n):] }

func (i *realIronic) try(method, path string, body any) (int, string, error) {
	var in io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return 0, "", err
		}
		in = bytes.NewReader(raw)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, i.URL+path, in)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("X-OpenStack-Ironic-API-Version", "latest")
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

// must calls the API; a node that is locked is tried again, as clients do.
func (i *realIronic) must(method, path string, body any) map[string]any {
	i.t.Helper()
	for try := 0; ; try++ {
		status, raw, err := i.try(method, path, body)
		if err == nil && status == http.StatusConflict && try < 50 && strings.Contains(raw, "locked") {
			time.Sleep(200 * time.Millisecond)
			continue
		}
		if err != nil || status >= 300 {
			i.t.Fatalf("%s %s: %d %v %s", method, path, status, err, raw)
		}
		var out map[string]any
		if raw != "" {
			if err := json.Unmarshal([]byte(raw), &out); err != nil {
				i.t.Fatalf("%s %s: %v in %s", method, path, err, raw)
			}
		}
		return out
	}
}

// verb asks for a verb and waits for the state that it ends in.
func (i *realIronic) verb(node, verb, end string, more map[string]any) {
	i.t.Helper()
	begun := time.Now()
	body := map[string]any{"target": verb}
	for k, v := range more {
		body[k] = v
	}
	i.must(http.MethodPut, "/v1/nodes/"+node+"/states/provision", body)
	within(i.t, 3*time.Minute, verb+" ends in "+end, func() bool {
		n := i.must(http.MethodGet, "/v1/nodes/"+node, nil)
		state, _ := n["provision_state"].(string)
		if strings.HasSuffix(state, "failed") || state == "error" || n["maintenance"] == true {
			i.t.Fatalf("%s: node is %s, maintenance %v: %v", verb, state, n["maintenance"], n["last_error"])
		}
		return state == end && n["target_provision_state"] == nil
	})
	i.t.Logf("%s: %.1f s", verb, time.Since(begun).Seconds())
}
