package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// Whatever the body: no 5xx, no panic, and a refusal that is JSON with a reason.
func FuzzBodies(f *testing.F) {
	var golden []struct {
		Request struct {
			Method, Path string
			Body         json.RawMessage
		}
	}
	recorded(f, "golden-fake-hardware.json", &golden)
	for _, g := range golden {
		f.Add(uint8(len(g.Request.Path)), string(g.Request.Body))
	}
	f.Add(uint8(1), `[{"op":"add","path":"/extra/a/b","value":{"":[]}}]`)
	f.Add(uint8(2), `{"target":"clean","clean_steps":[{"interface":"deploy","step":"x","args":{"a":[[]]}}]}`)
	f.Add(uint8(6), `{"callback_url":"http://x","agent_token":"t","agent_version":"1"}`)
	f.Add(uint8(7), inventoryBody(f, nil))
	f.Add(uint8(8), `[{"kind":"progress","data":{"percent":1e308}}]`)
	r := newRig(f)
	const id = "787964b0-cb7b-42b0-b35e-42e9957df8dc"
	r.do("POST", "/v1/nodes", `{"driver":"fake-hardware","uuid":"`+id+`","name":"n"}`).want(201)
	port := r.do("POST", "/v1/ports", `{"node_uuid":"`+id+`","address":"52:54:00:00:00:01"}`).want(201).json()["uuid"].(string)
	routes := []struct{ method, path string }{
		{"POST", "/v1/nodes"}, {"PATCH", "/v1/nodes/" + id}, {"PUT", "/v1/nodes/" + id + "/states/provision"}, {"PUT", "/v1/nodes/" + id + "/states/power"},
		{"POST", "/v1/ports"}, {"PATCH", "/v1/ports/" + port}, {"POST", "/v1/heartbeat/" + id}, {"POST", "/v1/continue_inspection"},
		{"POST", "/slipway/v1/agent/" + id + "/events"}, {"PUT", "/v1/nodes/" + id + "/traits"}, {"POST", "/v1/nodes/" + id + "/vifs"},
		{"PUT", "/v1/nodes/" + id + "/maintenance"}, {"PUT", "/v1/nodes/" + id + "/management/boot_device"},
	}
	f.Fuzz(func(t *testing.T, which uint8, body string) {
		r := r.in(t)
		route := routes[int(which)%len(routes)]
		p := r.do(route.method, route.path, body)
		if p.status >= 500 {
			t.Fatalf("%s %s: %d for %q: %s", route.method, route.path, p.status, body, p.body)
		}
		if p.status >= 400 && !strings.HasPrefix(route.path, "/slipway") && p.reason() == "" {
			t.Fatalf("%s %s: no reason: %s", route.method, route.path, p.body)
		}
		if len(p.body) > 0 && !json.Valid(p.body) {
			t.Fatalf("%s %s: the reply is no JSON: %s", route.method, route.path, p.body)
		}
	})
}

// Whatever the query and the headers: no 5xx and no panic.
func FuzzQueries(f *testing.F) {
	f.Add("limit=1&marker=x&sort_key=name&fields=uuid,name&detail=1", "1.115")
	f.Add("addresses=52:54:00:00:00:01,,&node_uuid=%00", "latest")
	f.Add("provision_state=%ff&maintenance=", "1.99999999999999999999")
	r := newRig(f)
	r.node(map[string]any{"name": "n"})
	f.Fuzz(func(t *testing.T, query, version string) {
		if strings.ContainsAny(query+version, "\r\n#") || !validURL(query) {
			return
		}
		r := r.in(t)
		for _, path := range []string{"/v1/nodes", "/v1/nodes/n", "/v1/ports", "/v1/lookup", "/v1/drivers", "/slipway/v1/events"} {
			if p := r.raw(version, "GET", path+"?"+query, ""); p.status >= 500 {
				t.Fatalf("GET %s?%s at %s: %d %s", path, query, version, p.status, p.body)
			}
		}
	})
}

func validURL(query string) bool {
	for _, c := range []byte(query) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	_, err := http.NewRequest(http.MethodGet, "http://x/?"+query, nil)
	return err == nil
}
