package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// A wrong verb is a conflict that lists the right ones, for every state.
func TestWrongVerbListsTheVerbsThatTheStateTakes(t *testing.T) {
	r := newRig(t)
	id := r.node(map[string]any{"name": "n"})
	r.do("PUT", "/v1/nodes/n/states/provision", `{"target":"active"}`).want(409).says(`"active"`, `"enroll"`, "Accepted now: manage.")
	r.do("PUT", "/v1/nodes/n/states/provision", `{"target":"manage"}`).want(202)
	r.do("PUT", "/v1/nodes/n/states/provision", `{"target":"manage"}`).want(409).says("until the conductor has finished")
	r.walk(id, state.VerbDone)
	r.do("PUT", "/v1/nodes/n/states/provision", `{"target":"abort"}`).want(409).says("adopt, clean, inspect, provide")
	r.do("PUT", "/v1/nodes/n/states/provision", `{"target":"zzz"}`).want(400)
	r.do("PUT", "/v1/nodes/n/states/provision", `{}`).want(400).says("target")
	r.do("PUT", "/v1/nodes/n/states/provision", `{"target":7}`).want(400).says("target")
	r.do("PUT", "/v1/nodes/nope/states/provision", `{"target":"manage"}`).want(404)
}

func TestProvisionArguments(t *testing.T) {
	r := newRig(t)
	id := r.node(map[string]any{"name": "n"})
	r.walk(id, state.VerbManage, state.VerbDone)
	put := func(body string) *reply { return r.do("PUT", "/v1/nodes/n/states/provision", body) }
	put(`{"target":"clean"}`).want(400).says("clean_steps")
	put(`{"target":"clean","clean_steps":[{"interface":"deploy"}]}`).want(400).says("'step'")
	put(`{"target":"clean","clean_steps":[{"interface":"nose","step":"x"}]}`).want(400).says("nose")
	put(`{"target":"clean","clean_steps":"x"}`).want(400)
	put(`{"target":"provide","clean_steps":[]}`).want(400).says("clean_steps")
	put(`{"target":"rescue","rescue_password":" "}`).want(400).says("rescue_password")
	put(`{"target":"clean","runbook":"CUSTOM_X"}`).want(400).says("Runbook")
	r.raw("1.14", "PUT", "/v1/nodes/n/states/provision", `{"target":"clean","clean_steps":[]}`).want(406)
	put(`{"target":"clean","clean_steps":[{"interface":"deploy","step":"erase_devices_metadata"}]}`).want(202)
	w, err := r.st.WorkOf(context.Background(), id)
	if err != nil || w.Kind != state.WorkClean || !strings.Contains(string(w.Payload), `"clean_steps":[{"interface":"deploy","step":"erase_devices_metadata"}]`) {
		t.Errorf("%+v %v", w, err)
	}
	if n := r.get(id); n.TargetProvisionState != state.Manageable {
		t.Errorf("a manual clean is on its way to %q", n.TargetProvisionState)
	}
	r.walk(id, state.VerbManage)
	r.walk(id, state.VerbProvide, state.VerbDone)
	put(`{"target":"active","configdrive":"not base64!"}`).want(400).says("configdrive")
	put(`{"target":"active","configdrive":{"evil":1}}`).want(400).says("evil")
	put(`{"target":"active","configdrive":7}`).want(400)
	put(`{"target":"active","configdrive":"file:///etc/shadow"}`).want(400)
	r.raw("1.55", "PUT", "/v1/nodes/n/states/provision", `{"target":"active","configdrive":{"meta_data":{}}}`).want(406)
	r.do("PUT", "/v1/nodes/n/maintenance", "").want(202)
	put(`{"target":"active"}`).want(400).says("maintenance mode")
	r.do("DELETE", "/v1/nodes/n/maintenance", nil).want(202)
	put(`{"target":"active","configdrive":{"meta_data":{"canary":"c4n4ry"}}}`).want(202)
	if strings.Contains(string(r.do("GET", "/v1/nodes/n", nil).body), "c4n4ry") {
		t.Error("the config drive shows")
	}
}

// What a deploy lacks is said before the machine is powered on.
func TestDeployIsRefusedEarlyForWhatIsMissing(t *testing.T) {
	r := newRig(t)
	id := r.node(map[string]any{"name": "n", "driver": "redfish"})
	r.walk(id, state.VerbManage, state.VerbDone, state.VerbProvide, state.VerbDone)
	deploy := func() *reply { return r.do("PUT", "/v1/nodes/n/states/provision", `{"target":"active"}`) }
	deploy().want(400).says("image_source")
	r.do("PATCH", "/v1/nodes/n", `[{"op":"add","path":"/instance_info/image_source","value":"file:///etc/shadow"}]`).want(200)
	deploy().want(400).says("file: URLs are refused")
	r.do("PATCH", "/v1/nodes/n", `[{"op":"add","path":"/instance_info/image_source","value":"http://x/y"},{"op":"add","path":"/properties/root_device","value":{"colour":"red"}}]`).want(200)
	deploy().want(400).says("colour")
	v := r.do("GET", "/v1/nodes/n/validate", nil).want(200).json()
	if b := v["boot"].(map[string]any); b["result"] != false || !strings.Contains(b["reason"].(string), "pxe_enabled") {
		t.Errorf("boot without a port: %v", b)
	}
	r.do("PATCH", "/v1/nodes/n", `[{"op":"remove","path":"/properties/root_device"}]`).want(200)
	deploy().want(202)
}

// No reply ever shows a secret, and giving the mask back keeps the secret.
func TestSecretsNeverShowAndSurviveTheMask(t *testing.T) {
	r := newRig(t)
	const canary = "s3cr3t-canary"
	create := r.do("POST", "/v1/nodes", map[string]any{"driver": "redfish", "name": "n",
		"driver_info": map[string]any{"redfish_address": "http://x", "redfish_password": canary, "snmp": map[string]any{"auth_key": canary}},
		"extra":       map[string]any{"list": []any{map[string]any{"password": canary}}}, "instance_info": map[string]any{"image_url": "http://x?sig=" + canary}}).want(201)
	for _, p := range []*reply{
		create, r.do("GET", "/v1/nodes/n", nil), r.do("GET", "/v1/nodes/detail", nil), r.do("GET", "/v1/nodes?fields=driver_info,extra,instance_info", nil),
		r.do("PATCH", "/v1/nodes/n", `[{"op":"add","path":"/extra/a","value":1}]`), r.do("GET", "/slipway/v1/nodes/n/explain", nil),
		r.do("PATCH", "/v1/nodes/n", `[{"op":"replace","path":"/driver_info","value":{"redfish_password":"******","redfish_address":"http://y"}}]`),
		r.do("PATCH", "/v1/nodes/n", `[{"op":"test","path":"/driver_info/redfish_password","value":"x"}]`),
		r.do("PATCH", "/v1/nodes/n", `[{"op":"replace","path":"/driver_info/redfish_password/x","value":"x"}]`),
	} {
		if strings.Contains(string(p.body), canary) {
			t.Errorf("shown: %s", p.body)
		}
	}
	n, err := r.st.Node(context.Background(), "n")
	if err != nil || n.DriverInfo["redfish_password"] != canary || n.DriverInfo["redfish_address"] != "http://y" || n.DriverInfo["snmp"] != nil {
		t.Errorf("after the round trip: %v %v", n.DriverInfo, err)
	}
}

func TestPatchRules(t *testing.T) {
	r := newRig(t)
	id := r.node(map[string]any{"name": "n", "properties": map[string]any{"list": []any{1, 2}}})
	r.node(map[string]any{"name": "taken", "instance_uuid": "aaaaaaaa-0000-4000-8000-000000000001"})
	patch := func(ops string) *reply { return r.do("PATCH", "/v1/nodes/"+id, ops) }
	p := patch(`[{"op":"add","path":"/properties/list/-","value":3},{"op":"remove","path":"/properties/list/0"},{"op":"add","path":"/extra/a~1b","value":{"c":[]}},{"op":"replace","path":"/extra/a~1b/c","value":true}]`).want(200).json()
	if got := fmt.Sprint(p["properties"], p["extra"]); got != "map[list:[2 3]] map[a/b:map[c:true]]" {
		t.Errorf("patched: %s", got)
	}
	for ops, says := range map[string]string{
		`[{"op":"remove","path":"/driver"}]`:                                               "mandatory",
		`[{"op":"replace","path":"/driver","value":"nope"}]`:                               "No valid host",
		`[{"op":"replace","path":"/driver","value":null}]`:                                 "No valid host",
		`[{"op":"replace","path":"/uuid","value":"x"}]`:                                    "Cannot patch /uuid",
		`[{"op":"add","path":"/driver_internal_info/agent_url","value":"x"}]`:              "Cannot patch /driver_internal_info/agent_url",
		`[{"op":"add","path":"/name","value":"a b"}]`:                                      "invalid name",
		`[{"op":"add","path":"/name/x","value":"b"}]`:                                      "Couldn't apply patch",
		`[{"op":"add","path":"/properties","value":[]}]`:                                   "properties",
		`[{"op":"add","path":"/maintenance","value":"perhaps"}]`:                           "maintenance",
		`[{"op":"add","path":"/properties/list/99","value":1}]`:                            "index",
		`[{"op":"add","path":"/instance_uuid","value":"x"}]`:                               "instance_uuid",
		`[{"op":"add","path":"/deploy_interface","value":"nope"}]`:                         "deploy",
		`[{"op":"add","path":"/protected_reason","value":"x"}]`:                            "protected",
		`[{"op":"add","path":"/extra"}]`:                                                   "'value' is a required",
		`[{"op":"add","path":"extra","value":1}]`:                                          "match",
		`[{"path":"/extra"}]`:                                                              "'op' is a required",
		`[7]`:                                                                              "object",
		`[{"op":"add","path":"/chassis_uuid","value":"` + id + `"}]`:                       "chassis",
		`[{"op":"add","path":"/parent_node","value":"` + id + `"}]`:                        "own parent",
		`[{"op":"add","path":"/description","value":"` + strings.Repeat("x", 5000) + `"}]`: "longer",
	} {
		patch(ops).want(400).says(says)
	}
	patch(`[{"op":"add","path":"/name","value":"taken"}]`).want(409).says("taken")
	patch(`[{"op":"add","path":"/instance_uuid","value":"aaaaaaaa-0000-4000-8000-000000000001"}]`).want(409).says("already associated")
	patch(`[{"op":"add","path":"/instance_uuid","value":"aaaaaaaa-0000-4000-8000-000000000002"}]`).want(200)
	patch(`[{"op":"add","path":"/instance_uuid","value":"aaaaaaaa-0000-4000-8000-000000000003"}]`).want(409)
	r.raw("1.46", "PATCH", "/v1/nodes/"+id, `[{"op":"add","path":"/owner","value":"x"}]`).want(406)
	r.do("PATCH", "/v1/nodes/"+id+"?reset_interfaces=true", `[{"op":"add","path":"/driver","value":"redfish"}]`).want(200)
	if n := r.get(id); n.Interfaces["power_interface"] != "redfish" {
		t.Errorf("interfaces: %v", n.Interfaces)
	}
	r.walk(id, state.VerbManage, state.VerbDone, state.VerbProvide)
	patch(`[{"op":"add","path":"/extra/x","value":1}]`).want(409).says("state transition is in progress")
}

func TestListFiltersPagesAndSorts(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		r.node(map[string]any{"name": fmt.Sprintf("n%d", 4-i), "resource_class": []string{"a", "b"}[i%2], "shard": []string{"", "s1"}[i%2], "description": fmt.Sprintf("row %d", i)})
	}
	names := func(query string) string {
		t.Helper()
		var out []string
		path := "/v1/nodes?" + query
		for path != "" {
			m := r.do("GET", path, nil).want(200).json()
			for _, n := range m["nodes"].([]any) {
				out = append(out, n.(map[string]any)["name"].(string))
			}
			next, _ := m["next"].(string)
			path = strings.TrimPrefix(next, "http://127.0.0.1:6385")
		}
		return strings.Join(out, " ")
	}
	for query, want := range map[string]string{
		"":                                    "n4 n3 n2 n1 n0",
		"limit=2":                             "n4 n3 n2 n1 n0",
		"limit=2&sort_key=name":               "n0 n1 n2 n3 n4",
		"sort_key=name&sort_dir=desc&limit=1": "n4 n3 n2 n1 n0",
		"resource_class=b":                    "n3 n1",
		"shard=s1&limit=1":                    "n3 n1",
		"sharded=false":                       "n4 n2 n0",
		"description_contains=row+3":          "n1",
		"provision_state=active":              "",
		"maintenance=true":                    "",
		"associated=false&detail=true":        "n4 n3 n2 n1 n0",
		"fields=name&limit=3":                 "n4 n3 n2 n1 n0",
	} {
		if got := names(query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for query, status := range map[string]int{
		"limit=x": 400, "limit=99999999999999999999": 400, "sort_dir=up": 400, "sort_key=driver_info": 400, "maintenance=perhaps": 400,
		"provision_state=zz": 400, "detail=true&fields=uuid": 400, "marker=zz": 404, "fields=": 200, "%zz": 400,
	} {
		r.do("GET", "/v1/nodes?"+query, nil).want(status)
	}
	r.raw("1.8", "GET", "/v1/nodes?provision_state=active", "").want(406)
	r.raw("1.7", "GET", "/v1/nodes?fields=uuid", "").want(406)
	r.raw("1.42", "GET", "/v1/nodes?detail=true", "").want(406)
}

// Two machines with one MAC: the refusal names the other.
func TestPortConflictNamesTheOtherMachine(t *testing.T) {
	r := newRig(t)
	a, b := r.node(nil), r.node(nil)
	port := r.do("POST", "/v1/ports", map[string]any{"node_uuid": a, "address": strings.ToUpper(mac1)}).want(201).json()
	if port["address"] != mac1 {
		t.Errorf("address %v", port["address"])
	}
	r.do("POST", "/v1/ports", map[string]any{"node_uuid": b, "address": mac1}).want(409).says(mac1, a, port["uuid"].(string))
	two := r.do("POST", "/v1/ports", map[string]any{"node_uuid": b, "address": mac2}).want(201).json()["uuid"].(string)
	r.do("PATCH", "/v1/ports/"+two, `[{"op":"replace","path":"/address","value":"`+mac1+`"}]`).want(409).says(a)
	r.do("PATCH", "/v1/ports/"+two, `[{"op":"replace","path":"/address","value":"zz"}]`).want(400).says("Expected valid MAC")
	r.do("PATCH", "/v1/ports/"+two, `[{"op":"replace","path":"/pxe_enabled","value":false},{"op":"add","path":"/extra/a","value":1}]`).want(200)
	r.do("POST", "/v1/ports", map[string]any{"node_uuid": "00000000-0000-4000-8000-000000000000", "address": "52:54:00:00:00:03"}).want(400)
	if l := r.do("GET", "/v1/ports?address="+mac2+"&fields=node_uuid", nil).want(200).json()["ports"].([]any); len(l) != 1 || l[0].(map[string]any)["node_uuid"] != b {
		t.Errorf("by address: %v", l)
	}
	if l := r.do("GET", "/v1/nodes/"+a+"/ports", nil).want(200).json()["ports"].([]any); len(l) != 1 {
		t.Errorf("of a node: %v", l)
	}
	r.do("DELETE", "/v1/ports/"+two, nil).want(204)
	r.do("GET", "/v1/ports/"+two, nil).want(404)
}

func TestPowerRules(t *testing.T) {
	r := newRig(t)
	id := r.node(nil)
	put := func(body string) *reply { return r.do("PUT", "/v1/nodes/"+id+"/states/power", body) }
	put(`{"target":"power on"}`).want(202)
	if n := r.get(id); n.PowerState != "power on" {
		t.Errorf("power %q", n.PowerState)
	}
	put(`{"target":"soft power off","timeout":0}`).want(400)
	put(`{}`).want(400)
	r.raw("1.26", "PUT", "/v1/nodes/"+id+"/states/power", `{"target":"soft rebooting"}`).want(406)
	r.power.fail = errors.New("BMC is away")
	put(`{"target":"power off"}`).want(409).says("BMC is away")
	if n := r.get(id); n.TargetPowerState != "" {
		t.Errorf("a change that did not start left the target %q", n.TargetPowerState)
	}
}

func TestDeleteRules(t *testing.T) {
	r := newRig(t)
	id := r.node(nil)
	r.walk(id, state.VerbManage, state.VerbDone, state.VerbProvide)
	r.do("DELETE", "/v1/nodes/"+id, nil).want(409).says("maintenance mode")
	r.do("PUT", "/v1/nodes/"+id+"/maintenance", `{"reason":"gone\u001b[2J"}`).want(202)
	if n := r.get(id); n.MaintenanceReason != "gone[2J" {
		t.Errorf("reason %q", n.MaintenanceReason)
	}
	r.do("DELETE", "/v1/nodes/"+id, nil).want(204)
	r.do("GET", "/v1/nodes/"+id, nil).want(404)
}

// A panic shows nothing of the inside.
func TestPanicIsA500WithoutInternals(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Store = panicking{c.Store} })
	p := r.do("GET", "/v1/nodes/n", nil).want(500)
	if strings.Contains(string(p.body), "canary") || !strings.Contains(p.reason(), "req-") {
		t.Errorf("%s", p.body)
	}
}

type panicking struct{ store.Store }

func (panicking) Node(context.Context, string) (*store.Node, error) {
	panic("canary")
}

func TestBasicAuthGuardsAllButAgentsAndVersions(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("pw"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte("# users\nann:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	auth, err := BasicAuth(file)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) { c.Auth = auth })
	for path, status := range map[string]int{
		"/": 200, "/v1": 200, "/v1/lookup?addresses=" + mac1: 404, "/v1/nodes": 401, "/v1/nodes/x": 401, "/v1/drivers": 401,
		"/slipway/v1/events": 401, "/slipway/v1/nodes/x/explain": 401, "/slipway/v1/health": 200,
	} {
		r.do("GET", path, nil).want(status)
	}
	try := func(user, pw string) int {
		req, _ := http.NewRequest("GET", "/", nil)
		req.SetBasicAuth(user, pw)
		r.headers = req.Header
		return r.do("GET", "/v1/nodes", nil).status
	}
	if try("ann", "pw") != 200 || try("ann", "no") != 401 || try("bob", "pw") != 401 || try("", "") != 401 {
		t.Error("passwords are not told apart")
	}
	for _, content := range []string{"", "ann:plain", "ann"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := BasicAuth(file); err == nil {
			t.Errorf("password file %q was taken", content)
		}
	}
}

// Recorded routes that this release has answer older microversions as recorded.
func TestRoutesAppearAtTheirMicroversion(t *testing.T) {
	var rec struct {
		Routes []struct {
			Path    string
			Methods map[string][][3]any
		}
	}
	recorded(t, "routes.json", &rec)
	r := newRig(t)
	id := r.node(nil)
	checked := 0
	for _, route := range rec.Routes {
		rows, ok := route.Methods["GET"]
		path := strings.ReplaceAll(route.Path, "{node}", id)
		if !ok || strings.ContainsAny(path, "{}") || strings.HasSuffix(path, "/raid/logical_disk_properties") {
			continue
		}
		if p := r.do("GET", path, nil); p.status == 405 || p.status == 404 && p.reason() == "Not Found" {
			continue // comes with the complete API
		}
		for _, row := range rows {
			status := int(row[1].(float64))
			if status >= 500 {
				continue
			}
			if p := r.raw(row[0].(string), "GET", path, ""); p.status != status && path != "/v1/nodes/"+id+"/management/indicators" {
				t.Errorf("GET %s at %s: %d, recorded %d: %s", route.Path, row[0], p.status, status, p.body)
			}
			checked++
		}
	}
	if checked < 60 {
		t.Errorf("only %d rows checked", checked)
	}
}

// What is sealed at rest is masked in replies: both go by store's one rule. In a
// user's own dictionaries a mere "key" is a name.
func TestRepliesHideWhatIsSealed(t *testing.T) {
	r := newRig(t)
	r.do("POST", "/v1/nodes", `{"name":"n","driver":"fake-hardware"}`).want(201)
	for _, key := range []string{"ipmi_hex_kg_key", "snmp_auth_key", "sslKey", "ssh_key_contents", "snmp_community", "redfish_password"} {
		p := r.do("PATCH", "/v1/nodes/n", `[{"op":"add","path":"/driver_info/`+key+`","value":"canary"}]`).want(200)
		if strings.Contains(string(p.body), "canary") || strings.Contains(string(r.do("GET", "/v1/nodes/n", nil).want(200).body), "canary") {
			t.Errorf("driver_info/%s is shown", key)
		}
		if n := r.get("n"); n.DriverInfo[key] != "canary" {
			t.Errorf("driver_info/%s became %v", key, n.DriverInfo[key])
		}
	}
	p := r.do("PATCH", "/v1/nodes/n", `[{"op":"add","path":"/extra/asset_key","value":"A-17"}]`).want(200)
	if !strings.Contains(string(p.body), "A-17") {
		t.Errorf("extra/asset_key is hidden: %s", p.body)
	}
}
