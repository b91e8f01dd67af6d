package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/store/sqlite"
	"github.com/slipway-metal/slipway/proto/event"
	"github.com/slipway-metal/slipway/proto/ironic"
)

// rig is the API over a real SQLite store, with a clock, a hub and a power
// control that tests can look into.
type rig struct {
	tb      testing.TB
	h       http.Handler
	st      store.Store
	live    *Live
	hub     *hub
	clock   *clock
	power   *testPower
	headers http.Header // added to every request
}

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(time.Microsecond)
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// hub keeps what was published and replays it to each subscriber.
type hub struct {
	mu     sync.Mutex
	events []event.Event
}

func (h *hub) Publish(e event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.ID = int64(len(h.events) + 1)
	h.events = append(h.events, e)
}

func (h *hub) Subscribe(node string, after int64) (<-chan event.Event, func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ch := make(chan event.Event, len(h.events))
	for _, e := range h.events {
		if e.ID > after && (node == "" || e.Node == node) {
			ch <- e
		}
	}
	close(ch)
	return ch, func() {}
}

func (h *hub) facts() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, e := range h.events {
		b.Write(e.Data)
		b.WriteByte('\n')
	}
	return b.String()
}

// testPower does at once what it is asked.
type testPower struct {
	st     store.Store
	fail   error
	device string
}

func (p *testPower) Validate(context.Context, *store.Node) error { return nil }

func (p *testPower) SetPower(ctx context.Context, uuid, target string, _ time.Duration) error {
	if p.fail != nil {
		return p.fail
	}
	_, err := p.st.UpdateNode(ctx, uuid, 0, func(n *store.Node) error {
		n.PowerState, n.TargetPowerState = powerTargets[target].ends, ""
		return nil
	})
	return err
}

func (p *testPower) BootDevice(context.Context, string) (string, bool, error) {
	return p.device, true, nil
}

func (p *testPower) SetBootDevice(_ context.Context, _, device string, _ bool) error {
	if device != "disk" && device != "pxe" {
		return errors.New("invalid boot device " + device)
	}
	p.device = device
	return nil
}

func (p *testPower) SupportedBootDevices(context.Context, string) ([]string, error) {
	return []string{"pxe", "disk"}, nil
}

func newRig(tb testing.TB, change ...func(*Config)) *rig {
	tb.Helper()
	r := &rig{tb: tb, live: NewLive(), hub: &hub{}, clock: &clock{t: time.Date(2026, 11, 23, 16, 0, 0, 0, time.UTC)}, headers: http.Header{}}
	st, err := sqlite.Open(filepath.Join(tb.TempDir(), "slipway.db"), bytes.Repeat([]byte{7}, 32), r.clock.now)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := st.Close(); err != nil {
			tb.Error(err)
		}
	})
	r.st, r.power = st, &testPower{st: st}
	cfg := Config{Store: st, Events: r.hub, Power: r.power, Drivers: StandardDrivers(nil), Live: r.live, Now: r.clock.now}
	for _, c := range change {
		c(&cfg)
	}
	if r.h, err = New(cfg); err != nil {
		tb.Fatal(err)
	}
	return r
}

// in is r for another test, such as one input of a fuzz target.
func (r *rig) in(tb testing.TB) *rig {
	c := *r
	c.tb = tb
	return &c
}

type reply struct {
	tb     testing.TB
	status int
	header http.Header
	body   []byte
}

func (r *rig) raw(version, method, path, body string) *reply {
	r.tb.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, "http://127.0.0.1:6385"+path, rd)
	if version != "" {
		req.Header.Set(ironic.HeaderVersion, version)
	}
	for k, v := range r.headers {
		req.Header[k] = v
	}
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, req)
	return &reply{r.tb, w.Code, w.Result().Header, w.Body.Bytes()}
}

// do sends body (a string as it is, anything else as JSON) at 1.115.
func (r *rig) do(method, path string, body any) *reply {
	r.tb.Helper()
	text, ok := body.(string)
	if !ok && body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			r.tb.Fatal(err)
		}
		text = string(raw)
	}
	return r.raw("1.115", method, path, text)
}

func (p *reply) want(status int) *reply {
	p.tb.Helper()
	if p.status != status {
		p.tb.Fatalf("status %d, want %d: %s", p.status, status, p.body)
	}
	return p
}

func (p *reply) json() map[string]any {
	p.tb.Helper()
	var m map[string]any
	if err := json.Unmarshal(p.body, &m); err != nil {
		p.tb.Fatalf("not an object: %v: %s", err, p.body)
	}
	return m
}

// reason is the refusal's text.
func (p *reply) reason() string { return ironic.ParseError(p.status, p.body).Message }

func (p *reply) says(parts ...string) *reply {
	p.tb.Helper()
	for _, s := range parts {
		if !strings.Contains(p.reason(), s) {
			p.tb.Errorf("the refusal %q does not say %q", p.reason(), s)
		}
	}
	return p
}

// node creates a node and returns its UUID.
func (r *rig) node(fields map[string]any) string {
	r.tb.Helper()
	body := map[string]any{"driver": "fake-hardware"}
	for k, v := range fields {
		body[k] = v
	}
	return r.do("POST", "/v1/nodes", body).want(201).json()["uuid"].(string)
}

// walk moves a node through verbs, also the conductor's own, without work.
func (r *rig) walk(uuid string, verbs ...state.Verb) {
	r.tb.Helper()
	n, err := r.st.Node(context.Background(), uuid)
	if err == nil {
		_, err = r.st.Advance(context.Background(), store.Transition{Node: uuid, From: n.ProvisionState, Verbs: verbs})
	}
	if err != nil {
		r.tb.Fatalf("walk %v: %v", verbs, err)
	}
}

func recorded(tb testing.TB, name string, v any) {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "proto", "testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		tb.Fatal(err)
	}
}
