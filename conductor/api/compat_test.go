package api

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// venv is a Python environment with python-ironicclient 6.3 and openstacksdk
// 4.22, named by SLIPWAY_COMPAT. Without it the tests of real clients are skipped.
func venv(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SLIPWAY_COMPAT")
	if dir == "" {
		t.Skip("SLIPWAY_COMPAT is not set: it names a venv made by `python3 -m venv DIR && DIR/bin/pip install python-ironicclient==6.3.* openstacksdk==4.22.*`")
	}
	return dir
}

// ends is what a conductor does with a node that a verb set in motion.
var ends = map[state.State][]state.Verb{
	state.Verifying: {state.VerbDone}, state.Inspecting: {state.VerbDone}, state.Deploying: {state.VerbDone},
	state.Deleting: {state.VerbClean, state.VerbDone}, state.Rescuing: {state.VerbDone}, state.Unrescuing: {state.VerbDone},
	state.Adopting: {state.VerbDone}, state.Servicing: {state.VerbDone},
}

// conduct carries out every verb at once, as fake-hardware does.
func (r *rig) conduct(t *testing.T) {
	moved := make(chan *store.Node, 100)
	r.st.OnChange(func(n *store.Node, _ *store.Transition) {
		if n != nil {
			moved <- n
		}
	})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	t.Cleanup(func() { stop(); <-ended })
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case n := <-moved:
				verbs := ends[n.ProvisionState]
				if n.ProvisionState == state.Cleaning {
					verbs = []state.Verb{state.VerbDone}
					if n.TargetProvisionState == state.Manageable {
						verbs = []state.Verb{state.VerbManage}
					}
				}
				if verbs == nil {
					continue
				}
				if _, err := r.st.Advance(ctx, store.Transition{Node: n.UUID, From: n.ProvisionState, Verbs: verbs}); err != nil && ctx.Err() == nil {
					t.Errorf("conduct %s from %s: %v", n.UUID, n.ProvisionState, err)
				}
			}
		}
	}()
}

type cli struct {
	t   *testing.T
	bin string
	env []string
}

func newCLI(t *testing.T, dir, url string) *cli {
	env := []string{"OS_AUTH_TYPE=none", "OS_ENDPOINT=" + url, "PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "no_proxy=127.0.0.1"}
	return &cli{t: t, bin: filepath.Join(dir, "bin", "baremetal"), env: env}
}

func (c *cli) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Env = c.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cli) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("baremetal %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *cli) json(args ...string) map[string]any {
	c.t.Helper()
	out := c.run(append(args, "-f", "json")...)
	var m map[string]any
	if err := json.Unmarshal([]byte(out[strings.IndexByte(out, '{'):]), &m); err != nil {
		c.t.Fatalf("baremetal %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return m
}

// The `baremetal` CLI, unchanged, takes a node through its life.
func TestBaremetalCLIWorksUnchanged(t *testing.T) {
	dir := venv(t)
	r := newRig(t, func(c *Config) { c.Now = time.Now })
	r.conduct(t)
	srv := httptest.NewServer(r.h)
	defer srv.Close()
	c := newCLI(t, dir, srv.URL)

	node := c.json("node", "create", "--driver", "fake-hardware", "--name", "n1", "--resource-class", "bm",
		"--driver-info", "redfish_password=hunter2", "--property", "cpus=4")
	id := node["uuid"].(string)
	if node["provision_state"] != "enroll" || strings.Contains(c.run("node", "show", "n1", "-f", "json"), "hunter2") {
		t.Errorf("created: %v", node)
	}
	c.run("port", "create", "52:54:00:12:34:56", "--node", id)
	if out, err := c.try("port", "create", "52:54:00:12:34:56", "--node", id); err == nil || !strings.Contains(out, "already exists") {
		t.Errorf("a second port with the MAC: %v %s", err, out)
	}
	if out := c.run("port", "list", "--node", "n1", "--long"); !strings.Contains(out, "52:54:00:12:34:56") {
		t.Errorf("port list: %s", out)
	}
	c.run("node", "set", "n1", "--property", "memory_mb=1024", "--extra", "rack=7", "--description", "first")
	c.run("node", "unset", "n1", "--extra", "rack")
	if p := c.json("node", "show", "n1")["properties"].(map[string]any); p["memory_mb"] == nil || p["cpus"] == nil {
		t.Errorf("properties: %v", p)
	}
	c.run("node", "validate", "n1")
	for _, args := range [][]string{
		{"manage", "n1", "--wait", "20"},
		{"inspect", "n1", "--wait", "20"},
		{"clean", "n1", "--clean-steps", `[{"interface":"deploy","step":"erase_devices_metadata"}]`, "--wait", "20"},
		{"provide", "n1", "--wait", "20"},
		{"set", "n1", "--instance-info", "image_source=http://127.0.0.1/x.raw", "--instance-info", "image_checksum=00000000000000000000000000000000"},
		{"deploy", "n1", "--config-drive", `{"meta_data": {"name": "x"}}`, "--wait", "20"},
		{"power", "off", "n1"}, {"power", "on", "n1"}, {"reboot", "n1"},
		{"maintenance", "set", "n1", "--reason", "why"}, {"maintenance", "unset", "n1"},
		{"boot", "device", "set", "n1", "disk", "--persistent"}, {"boot", "device", "show", "n1"}, {"boot", "device", "show", "--supported", "n1"},
		{"add", "trait", "n1", "CUSTOM_GPU"}, {"trait", "list", "n1"}, {"remove", "trait", "n1", "CUSTOM_GPU"},
		{"vif", "attach", "n1", "aaaaaaaa-0000-4000-8000-000000000001"}, {"vif", "list", "n1"}, {"vif", "detach", "n1", "aaaaaaaa-0000-4000-8000-000000000001"},
		{"rebuild", "n1", "--wait", "20"},
		{"rescue", "n1", "--rescue-password", "pw", "--wait", "20"}, {"unrescue", "n1", "--wait", "20"},
		{"undeploy", "n1", "--wait", "20"},
		{"list", "--long"}, {"list", "--provision-state", "available", "--fields", "uuid", "name"}, {"list", "--limit", "1", "--sort", "name:desc"},
		{"history", "list", "n1"}, {"bios", "setting", "list", "n1"}, {"firmware", "list", "n1"},
	} {
		c.run(append([]string{"node"}, args...)...)
	}
	for _, args := range [][]string{
		{"driver", "list"}, {"driver", "show", "redfish"}, {"driver", "property", "list", "redfish"}, {"conductor", "list"}, {"conductor", "show", "localhost"},
		{"chassis", "list"}, {"port", "group", "list"}, {"allocation", "list"}, {"volume", "connector", "list"}, {"volume", "target", "list"},
		{"deploy", "template", "list"}, {"runbook", "list"}, {"shard", "list"}, {"inspection", "rule", "list"},
	} {
		c.run(args...)
	}
	if n := c.json("node", "show", id); n["provision_state"] != "available" || n["instance_info"] == nil {
		t.Errorf("at the end: %v", n)
	}
	if out, err := c.try("node", "show", "nope"); err == nil || !strings.Contains(out, "could not be found") {
		t.Errorf("unknown node: %v %s", err, out)
	}
	c.run("node", "delete", "n1")
}

// The same life by openstacksdk.
const sdkLife = `
import sys, openstack
conn = openstack.connection.Connection(auth_type="none", endpoint=sys.argv[1], baremetal_endpoint_override=sys.argv[1])
b = conn.baremetal
n = b.create_node(driver="fake-hardware", name="sdk1", resource_class="bm", provision_state="enroll", driver_info={"redfish_password": "hunter2"})
assert n.provision_state == "enroll", n
p = b.create_port(address="52:54:00:ab:cd:ef", node_id=n.id)
assert [x.id for x in b.ports(node=n.id, details=True)] == [p.id]
b.update_port(p, is_pxe_enabled=False)
n = b.update_node(n, extra={"a": 1}, description="d")
assert n.extra == {"a": 1}
for verb in ("manage", "inspect", "provide"):
    n = b.set_node_provision_state(n, verb, wait=True, timeout=30)
assert n.provision_state == "available"
n = b.patch_node(n, [{"op": "add", "path": "/instance_info/image_source", "value": "http://127.0.0.1/x.raw"}])
n = b.set_node_provision_state(n, "active", config_drive={"meta_data": {"uuid": "x"}}, wait=True, timeout=30)
assert n.provision_state == "active", n.provision_state
b.set_node_power_state(n, "power off", wait=True, timeout=30)
b.set_node_maintenance(n, "why"); b.unset_node_maintenance(n)
b.set_node_boot_device(n, "pxe", persistent=False)
b.set_node_traits(n, ["CUSTOM_A"]); b.remove_node_trait(n, "CUSTOM_A")
b.attach_vif_to_node(n, "aaaaaaaa-0000-4000-8000-000000000002")
assert b.list_node_vifs(n) == ["aaaaaaaa-0000-4000-8000-000000000002"]
b.detach_vif_from_node(n, "aaaaaaaa-0000-4000-8000-000000000002")
assert b.validate_node(n)["power"].result
n = b.set_node_provision_state(n, "deleted", wait=True, timeout=30)
assert [x.name for x in b.nodes(provision_state="available", fields=["uuid", "name", "provision_state"])] == ["sdk1"]
assert len(list(b.nodes(details=True, limit=1))) == 1
assert b.find_node("nope") is None
assert "redfish" in [d.name for d in b.drivers()]
assert not list(b.allocations()) and not list(b.port_groups()) and not list(b.chassis())
assert "hunter2" not in str(b.get_node(n.id).to_dict())
b.delete_port(p); b.delete_node(n)
try:
    b.get_node(n.id)
except openstack.exceptions.NotFoundException as e:
    assert "could not be found" in str(e), e
print("sdk done")
`

func TestOpenStackSDKWorksUnchanged(t *testing.T) {
	dir := venv(t)
	r := newRig(t, func(c *Config) { c.Now = time.Now })
	r.conduct(t)
	srv := httptest.NewServer(r.h)
	defer srv.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "bin", "python"), "-c", sdkLife, srv.URL)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "no_proxy=127.0.0.1"}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "sdk done") { // no "done" is a failure
		t.Fatalf("openstacksdk: %v\n%s", err, out)
	}
}
