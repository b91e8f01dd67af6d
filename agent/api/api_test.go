package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/agent/api"
	"github.com/slipway-metal/slipway/agent/commands"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/recorded/machines"
	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/agent/sequence"
	"github.com/slipway-metal/slipway/agent/steps"
	"github.com/slipway-metal/slipway/proto/agent"
)

const token = "the-agents-token"

type stock struct{}

func (stock) Identity() orders.Identity { return orders.Identity{Node: "n", Token: token} }
func (stock) SetLastOrder(int64) error  { return nil }

// serve is an agent on a recorded machine, under a stock Ironic.
func serve(t *testing.T) *httptest.Server {
	t.Helper()
	h, err := machines.Open("microvm", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	registry := steps.All(steps.Deps{
		Log: log, AllowMD5: func() bool { return false },
		SetRoot: func(agent.DiskIdentity) error { return nil }, Root: func() (agent.DiskIdentity, bool) { return agent.DiskIdentity{}, false },
	})
	// The recording's erase_devices was a stub too: the microvm's disk is 256 GiB.
	stub := steps.New(steps.Meta{Name: "erase_devices", Interface: "deploy", Priority: map[steps.Kind]int{steps.Clean: 0}},
		func(context.Context, host.Host, steps.None) (steps.Result, error) {
			return steps.Result{Value: "stub"}, nil
		})
	registry = append(steps.Registry{stub}, registry...)
	set := commands.New(commands.Deps{
		Host: h, Registry: registry, AgentLog: func() []byte { return []byte("log") }, Orders: orders.NewBook(stock{}, "b", time.Now),
	})
	runner := sequence.New(t.Context(), set, sequence.Hooks{}, log)
	s := httptest.NewServer(api.New(runner, func() string { return token }, log))
	t.Cleanup(func() { s.Close(); runner.Wait() })
	return s
}

// conversation is one request to a real ironic-python-agent and its answer.
type conversation struct {
	Note    string
	Request struct {
		Method, Path string
		Body         json.RawMessage
	}
	Status      int
	ContentType string `json:"content_type"`
	Response    any
}

// notAsRecorded are the answers that must differ, and why.
var notAsRecorded = map[string]string{
	"unexpected param":         "IPA answers 500 and is broken from then on; ours is a 400",
	"list (results shortened)": "the recorded 500 is that defect's",
	"(stubbed)":                "write_image without arguments was stubbed there; ours refuses them",
}

// Every recorded request gets the recorded status and envelope. Ids, times,
// addresses, the inventory and the lists of steps are the machine's own; texts
// that quote Python are compared by their beginning.
func TestRecordedConversations(t *testing.T) {
	raw, err := os.ReadFile("testdata/ipa-conversations.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []conversation
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	s := serve(t)
	ids := map[string]string{} // recorded to ours
	n := 0
	for _, c := range all {
		if why := notAsRecorded[c.Note]; why != "" {
			t.Logf("left out: %s: %s", c.Note, why)
			continue
		}
		n++
		path := strings.ReplaceAll(c.Request.Path, "$T", token)
		for was, is := range ids {
			path = strings.ReplaceAll(path, was, is)
		}
		body := []byte(c.Request.Body)
		var text string
		if json.Unmarshal(body, &text) == nil { // what was no JSON is recorded as a string
			body = []byte(text)
		}
		status, kind, got := send(t, s, c.Request.Method, path, body)
		name := c.Note + " " + c.Request.Method + " " + c.Request.Path + " " + string(c.Request.Body)
		if status != c.Status || kind != c.ContentType {
			t.Errorf("%s: got %d %s, want %d %s: %v", name, status, kind, c.Status, c.ContentType, got)
			continue
		}
		// IPA's stubs had ended before the answer was written; ours may run a moment longer.
		if g, ok := got.(map[string]any); ok && g["command_status"] == agent.Running {
			id, _ := g["id"].(string)
			_, _, got = send(t, s, http.MethodGet, "/v1/commands/"+id+"?wait=true&agent_token="+token, nil)
		}
		if w, ok := c.Response.(map[string]any); ok && w["id"] != nil && w["command_name"] != nil {
			ids[w["id"].(string)], _ = got.(map[string]any)["id"].(string)
		}
		if d := cmp.Diff(shape(c.Response), shape(got)); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
	if n < 30 {
		t.Fatalf("only %d conversations were held", n)
	}
}

func send(t *testing.T, s *httptest.Server, method, path string, body []byte) (int, string, any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read whole
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatalf("%s %s: %v: %s", method, path, err, raw)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), out
}

var (
	uuids   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	address = regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
	// quotes are texts that go on in Python's words.
	quotes = regexp.MustCompile(`^(400 Bad Request: Failed to decode JSON object|Malformed clean_step, no "step" key|Current versions): .*`)
)

// shape replaces what differs from machine to machine and from run to run.
func shape(v any) any {
	switch x := v.(type) {
	case map[string]any:
		if x["cpu"] != nil && x["disks"] != nil {
			return "INVENTORY"
		}
		out := map[string]any{}
		for k, e := range x {
			switch k {
			case "started_at":
				e = "TIME"
			case "commands": // those that others ran before are none of ours
				if _, isLinks := e.([]any); isLinks && x["links"] == nil {
					e = "LIST"
				}
			case "clean_steps", "deploy_steps", "service_steps":
				e = stepShape(e)
			case "hardware_manager_version":
				e = "VERSIONS"
			case "system_logs":
				e = "LOGS"
			case "clean_result", "deploy_result", "partitions":
				e = "RESULT"
			}
			out[k] = shape(e)
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i := range x {
			out[i] = shape(x[i])
		}
		return out
	case string:
		x = address.ReplaceAllString(uuids.ReplaceAllString(x, "UUID"), "ADDRESS")
		return quotes.ReplaceAllString(x, "$1")
	}
	return v
}

// stepShape is the keys that a step may have, by IPA: a map of lists of dicts.
func stepShape(v any) any {
	var keys []string
	for _, list := range v.(map[string]any) {
		for _, step := range list.([]any) {
			for k := range step.(map[string]any) {
				// Keys that only some steps have, and ours.
				if !slices.Contains(keys, k) && !slices.Contains([]string{"argsinfo", "abortable", "reboot_requested", "slipway_destructive"}, k) {
					keys = append(keys, k)
				}
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// Every route that tells or does anything needs the token, the right one
// (bug 2160196 of ironic-python-agent: the list of commands did not).
func TestTokenEverywhere(t *testing.T) {
	s := serve(t)
	for _, path := range []string{"/v1/commands", "/v1/commands/", "/commands/", "/v1/commands/x", "/v1/commands/x/"} {
		for _, q := range []string{"", "?agent_token=", "?agent_token=bad", "?agent_token=" + token + "x", "?AGENT_TOKEN=" + token} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				status, _, body := send(t, s, method, path+q, []byte(`{"name":"standby.power_off","params":{}}`))
				if status != http.StatusUnauthorized && (method != http.MethodPost || status != http.StatusMethodNotAllowed) {
					t.Errorf("%s %s%s: %d %v", method, path, q, status, body)
				}
			}
		}
	}
}

// An agent that has no token yet obeys nobody, not even one who sends none.
func TestBeforeLookup(t *testing.T) {
	runner := sequence.New(t.Context(), sequence.Set{}, sequence.Hooks{}, slog.New(slog.DiscardHandler))
	s := httptest.NewServer(api.New(runner, func() string { return "" }, slog.New(slog.DiscardHandler)))
	defer s.Close()
	for _, q := range []string{"", "?agent_token="} {
		if status, _, _ := send(t, s, http.MethodGet, "/v1/commands/"+q, nil); status != http.StatusUnauthorized {
			t.Errorf("%q: %d", q, status)
		}
	}
}

func TestBadRequests(t *testing.T) {
	s := serve(t)
	deep := `{"name":"x","params":` + strings.Repeat(`{"a":`, 100_000) + strings.Repeat(`}`, 100_000) + `}`
	for name, c := range map[string]struct {
		body string
		want int
	}{
		"unexpected parameter":   {`{"name":"poll.get_hardware_info","params":{"zz":1}}`, 400},
		"deep JSON":              {deep, 400},
		"not an object":          {`[1]`, 400},
		"name is a number":       {`{"name":1,"params":{}}`, 400},
		"too big":                {`{"name":"x","params":{"a":"` + strings.Repeat("x", int(agent.MaxCommandBody)) + `"}}`, 413},
		"a file as an image":     {`{"name":"standby.prepare_image","params":{"image_info":{"urls":["file:///etc/shadow"]}}}`, 400},
		"rescue with no word":    {`{"name":"rescue.finalize_rescue","params":{}}`, 400},
		"flow within a flow":     {`{"name":"flow.start_flow","params":{"flow":[{"flow.start_flow":{"flow":[]}}]}}`, 400},
		"unknown step in a flow": {`{"name":"flow.start_flow","params":{"flow":[{"x.y":{}}]}}`, 400},
	} {
		status, _, body := send(t, s, http.MethodPost, "/v1/commands/?wait=true&agent_token="+token, []byte(c.body))
		m, _ := body.(map[string]any)
		if status != c.want || m["faultcode"] != agent.FaultClient || m["faultstring"] == "" {
			t.Errorf("%s: %d %v", name, status, body)
		}
	}
	// And the agent is as well as before, unlike IPA after such a request.
	if status, _, _ := send(t, s, http.MethodGet, "/v1/commands/?agent_token="+token, nil); status != http.StatusOK {
		t.Errorf("the list: %d", status)
	}
}

func TestFlowRunsInOrder(t *testing.T) {
	s := serve(t)
	q := url.Values{"wait": {"true"}, "agent_token": {token}}
	_, _, body := send(t, s, http.MethodPost, "/v1/commands/?"+q.Encode(),
		[]byte(`{"name":"flow.start_flow","params":{"flow":[{"standby.sync":{}},{"standby.get_partition_uuids":{}}]}}`))
	m, _ := body.(map[string]any)
	results, _ := m["command_result"].([]any)
	if m["command_status"] != agent.Succeeded || len(results) != 2 {
		t.Fatalf("%v", body)
	}
	if got := slices.Sorted(maps.Keys(results[0].(map[string]any))); !slices.Equal(got, []string{"command_name", "command_result"}) {
		t.Fatalf("%v", got)
	}
}
