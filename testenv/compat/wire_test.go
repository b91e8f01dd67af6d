// Package compat lets Slipway meet the real peers of its wire protocols: our
// agent under a real Ironic, and a real ironic-python-agent under our conductor.
package compat

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// peer is the Python environment named by a variable that scripts/compat sets.
func peer(t *testing.T, variable string) string {
	t.Helper()
	for _, v := range []string{"SLIPWAY_COMPAT", variable} {
		if os.Getenv(v) == "" {
			t.Skip(v + " is not set: `make compat` installs the real peers and sets it")
		}
	}
	return os.Getenv(variable)
}

// wire stands between an agent and its conductor, in both directions, and keeps
// what the conductor asked for. It changes nothing but the agent's address in
// heartbeats.
type wire struct {
	URL string // the conductor, as the agent is to call it

	mu    sync.Mutex
	agent *url.URL // where the agent's API really is
	calls []call
	posts []string // method and path of what the agent sent
}

// call is one command that a conductor sent.
type call struct {
	Name   string         `json:"name"`
	Params map[string]any `json:"params"`
	Wait   bool           `json:"-"`
}

func newWire(t *testing.T, conductor string) *wire {
	t.Helper()
	up, err := url.Parse(conductor)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{}
	agent := httptest.NewServer(&httputil.ReverseProxy{Rewrite: w.command})
	front := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(up)
		w.mu.Lock()
		w.posts = append(w.posts, r.In.Method+" "+r.In.URL.Path)
		w.mu.Unlock()
		if strings.HasPrefix(r.In.URL.Path, "/v1/heartbeat/") {
			w.heartbeat(r.Out, agent.URL)
		}
	}})
	t.Cleanup(front.Close)
	t.Cleanup(agent.Close)
	w.URL = front.URL
	return w
}

// heartbeat puts this wire's address in the place of the agent's.
func (w *wire) heartbeat(r *http.Request, mine string) {
	var body map[string]any
	if err := json.Unmarshal(slurp(r), &body); err != nil {
		return // the conductor will say so
	}
	where, _ := body["callback_url"].(string)
	at, err := url.Parse(where)
	if err != nil || at.Scheme != "http" {
		return // a TLS agent is talked to directly: its certificate is pinned
	}
	w.mu.Lock()
	w.agent = at
	w.mu.Unlock()
	body["callback_url"] = mine
	raw, err := json.Marshal(body)
	if err != nil {
		return
	}
	put(r, raw)
}

func (w *wire) command(r *httputil.ProxyRequest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.SetURL(w.agent)
	if r.In.Method != http.MethodPost {
		return
	}
	raw := slurp(r.Out)
	put(r.Out, raw)
	c := call{Wait: strings.EqualFold(r.In.URL.Query().Get("wait"), "true")}
	if json.Unmarshal(raw, &c) == nil {
		w.calls = append(w.calls, c)
	}
}

func slurp(r *http.Request) []byte {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return nil
	}
	put(r, raw)
	return raw
}

func put(r *http.Request, raw []byte) {
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	r.Header.Set("Content-Length", strconv.Itoa(len(raw)))
}

// label is the command and, when it runs a step, which.
func (c call) label() string {
	step, _ := c.Params["step"].(map[string]any)
	if name, ok := step["step"].(string); ok {
		return c.Name + " " + name
	}
	return c.Name
}

// take returns the commands so far and forgets them.
func (w *wire) take() []call {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.calls
	w.calls = nil
	return out
}

func labels(calls []call) []string {
	out := make([]string, len(calls))
	for i, c := range calls {
		out[i] = c.label()
	}
	return out
}

func (w *wire) sent(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, p := range w.posts {
		if strings.HasPrefix(p, what) {
			n++
		}
	}
	return n
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// within polls what nobody tells.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %s: %s", limit, what)
		}
	}
}
