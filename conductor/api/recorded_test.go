package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/slipway-metal/slipway/conductor/state"
)

// Every field exists from the microversion on that was recorded, and no other.
func TestTablesEqualTheRecordedFields(t *testing.T) {
	var rec map[string]json.RawMessage
	recorded(t, "fields.json", &rec)
	check := func(key string, have map[string]minor) {
		t.Helper()
		var want map[string]string
		if err := json.Unmarshal(rec[key], &want); err != nil {
			t.Fatal(err)
		}
		for name, since := range want {
			if m, ok := have[name]; !ok || fmt.Sprintf("1.%d", m) != since {
				t.Errorf("%s.%s: recorded since %s, here 1.%d (known: %t)", key, name, since, m, ok)
			}
			delete(have, name)
		}
		for name := range have {
			t.Errorf("%s.%s is not in the record", key, name)
		}
	}
	all := map[string]minor{}
	brief := map[string]minor{}
	states := map[string]minor{}
	for _, f := range nodes.fields {
		all[f.name] = f.since
		if f.brief {
			brief[f.name] = f.since
		}
		if slices.Contains(stateFields, f.name) {
			states[f.name] = f.since
		}
	}
	check("node", all)
	check("node_list", brief)
	check("node_states", states)
	ps := map[string]minor{}
	for _, f := range ports.fields {
		ps[f.name] = f.since
	}
	check("port", ps)
	r := newRig(t)
	for _, c := range []struct{ key, path string }{{"root_v1", "/v1"}, {"driver", "/v1/drivers/fake-hardware"}, {"conductor", "/v1/conductors/localhost"}} {
		have := map[string]minor{}
		for m := minorMax; m >= 1; m-- {
			p := r.raw(fmt.Sprintf("1.%d", m), "GET", c.path, "")
			if p.status != 200 {
				continue
			}
			for k := range p.json() {
				have[k] = m
			}
		}
		check(c.key, have)
	}
}

// better is what differs from the record, and why.
var better = map[string]struct {
	status int
	why    string
}{
	"not json":                   {400, "the recorded server answers 500 to bad input"},
	"unknown fields=":            {400, "the recorded server answers 500 to bad input"},
	"verb not allowed in enroll": {409, "a verb that a known state does not take is a conflict, and the answer lists the verbs"},
}

// later are requests to resources that come with the complete API.
var later = map[string]bool{"vendor unknown method": true, "allocation no class": true}

// Every recorded bad request gets the recorded answer.
func TestBadRequestsAreAnsweredAsRecorded(t *testing.T) {
	var rows []struct {
		Note    string
		Request struct {
			Method, Path string
			Body         json.RawMessage
			Raw          *string
			Microversion *string
		}
		Status   int
		Headers  map[string]string
		Response json.RawMessage
	}
	recorded(t, "errors.json", &rows)
	r := newRig(t)
	const known = "787964b0-cb7b-42b0-b35e-42e9957df8dc"
	r.do("POST", "/v1/nodes", map[string]any{"driver": "fake-hardware", "uuid": known}).want(201)
	r.do("POST", "/v1/ports", map[string]any{"node_uuid": known, "address": "52:54:00:aa:64:76"}).want(201)
	for _, row := range rows {
		if later[row.Note] {
			continue
		}
		t.Run(row.Note, func(t *testing.T) {
			body := string(row.Request.Body)
			if body == "null" {
				body = ""
			}
			if row.Request.Raw != nil {
				body = *row.Request.Raw
			}
			version := ""
			if row.Request.Microversion != nil {
				version = *row.Request.Microversion
			}
			path := strings.ReplaceAll(row.Request.Path, "<uuid>", known)
			p := r.raw(version, row.Request.Method, path, body)
			want := row.Status
			b, isBetter := better[row.Note]
			if isBetter {
				want = b.status
			}
			if p.status != want {
				t.Fatalf("status %d, want %d: %s", p.status, want, p.body)
			}
			for k, v := range row.Headers {
				if have := p.header.Get(k); have != v {
					t.Errorf("header %s: %q, recorded %q", k, have, v)
				}
			}
			if want < 400 || isBetter {
				return
			}
			var have, rec map[string]string
			if err := json.Unmarshal(p.body, &have); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(row.Response, &rec); err != nil {
				t.Fatal(err)
			}
			a, z := inner(t, have["error_message"]), inner(t, rec["error_message"])
			if !slices.Equal(slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(z))) {
				t.Errorf("shape: %s, recorded %s", p.body, row.Response)
			}
			if a["faultcode"] != z["faultcode"] || a["title"] != z["title"] || a["code"] != z["code"] {
				t.Errorf("%s, recorded %s", p.body, row.Response)
			}
			text, rtext := fmt.Sprint(a["faultstring"], a["description"]), fmt.Sprint(z["faultstring"], z["description"])
			// Python's quoting of values, and our naming of the other machine, aside.
			if short := min(len(rtext), 22); !strings.HasPrefix(text, rtext[:short]) {
				t.Errorf("text %q, recorded %q", text, rtext)
			}
		})
	}
}

func inner(t *testing.T, s string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		t.Fatalf("error_message holds no JSON: %v: %s", err, s)
	}
	return m
}

// sameShape compares the shape of two JSON values: the same keys, at any depth of
// objects, and the same kinds of values.
func sameShape(t *testing.T, at string, have, want any) {
	t.Helper()
	switch want := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		if !ok {
			t.Errorf("%s: %T, recorded an object", at, have)
			return
		}
		if len(want) == 0 || strings.HasSuffix(at, "_info") {
			return // contents are the node's
		}
		for k := range want {
			if _, ok := h[k]; !ok {
				t.Errorf("%s.%s is missing", at, k)
				continue
			}
			sameShape(t, at+"."+k, h[k], want[k])
		}
		for k := range h {
			if _, ok := want[k]; !ok {
				t.Errorf("%s.%s is not in the record", at, k)
			}
		}
	case []any:
		h, ok := have.([]any)
		if !ok {
			t.Errorf("%s: %T, recorded an array", at, have)
			return
		}
		if len(want) > 0 && len(h) > 0 {
			sameShape(t, at+"[0]", h[0], want[0])
		}
	case nil:
	default:
		if have != nil && fmt.Sprintf("%T", have) != fmt.Sprintf("%T", want) {
			t.Errorf("%s: %T, recorded %T", at, have, want)
		}
	}
}

// A node's whole life on fake-hardware, as recorded: the same requests, the
// same statuses and shapes. What conductors do between them is walked by hand.
func TestGoldenLifeOfANode(t *testing.T) {
	var rows []struct {
		Note    string
		Request struct {
			Method, Path string
			Body         json.RawMessage
		}
		Status   int
		Headers  map[string]string
		Response any
	}
	recorded(t, "golden-fake-hardware.json", &rows)
	done := map[string][]state.Verb{
		"manage": {state.VerbDone}, "inspect": {state.VerbDone}, "manual clean": {state.VerbManage}, "provide": {state.VerbDone},
		"deploy": {state.VerbDone}, "rebuild": {state.VerbDone}, "rescue": {state.VerbDone}, "unrescue": {state.VerbDone},
		"service": {state.VerbDone}, "undeploy": {state.VerbClean, state.VerbDone},
	}
	r := newRig(t)
	old, id := "7b0b8039-2de3-43da-915f-2bc350d74fdb", ""
	for _, row := range rows {
		if row.Note == "poll" {
			continue
		}
		path := strings.ReplaceAll(row.Request.Path, old, id)
		body := strings.ReplaceAll(string(row.Request.Body), old, id)
		if body == "null" {
			body = ""
		}
		p := r.raw("1.115", row.Request.Method, path, body)
		if p.status != row.Status {
			t.Fatalf("%s: status %d, recorded %d: %s", row.Note, p.status, row.Status, p.body)
		}
		for k, v := range row.Headers {
			v = strings.ReplaceAll(v, old, id)
			if k == "Location" && row.Note == "enroll" || row.Note == "port" && k == "Location" {
				continue
			}
			if p.header.Get(k) != v {
				t.Errorf("%s: header %s: %q, recorded %q", row.Note, k, p.header.Get(k), v)
			}
		}
		if want, ok := row.Response.(map[string]any); ok {
			have := p.json()
			sameShape(t, row.Note, have, want)
			for _, k := range []string{"provision_state", "power_state", "target_provision_state", "driver", "maintenance", "inspect_interface", "boot_interface", "network_interface", "storage_interface", "console_interface"} {
				if w, ok := want[k]; ok && w != nil && have[k] != w {
					t.Errorf("%s: %s is %v, recorded %v", row.Note, k, have[k], w)
				}
			}
			if row.Note == "enroll" {
				id = have["uuid"].(string)
			}
		}
		if verbs := done[row.Note]; verbs != nil {
			r.walk(id, verbs...)
		}
	}
}
