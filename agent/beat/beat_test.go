package beat

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/agent/bootconf"
	"github.com/slipway-metal/slipway/proto/agent"
)

const uuid = "11111111-1111-1111-1111-111111111111"

// conductor stands where the network would be: it answers and keeps what it was asked.
type conductor struct {
	t      *testing.T
	asked  []string // method and path, with the time since the start
	start  time.Time
	lookup func(n int) (int, string)
	beat   func(n int, h agent.Heartbeat) (int, string)
	n, b   int
	heads  []http.Header
	posted []string
	minor  int
}

func (c *conductor) RoundTrip(r *http.Request) (*http.Response, error) {
	body := ""
	if r.Body != nil {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = string(raw)
	}
	w := httptest.NewRecorder()
	c.heads = append(c.heads, r.Header)
	if r.URL.Path != "/" {
		c.asked = append(c.asked, fmt.Sprintf("%s %s", r.Method, r.URL.Path))
	}
	switch {
	case r.URL.Path == "/":
		fmt.Fprintf(w, `{"default_version":{"version":"1.%d"}}`, c.minor) //nolint:errcheck // a recorder
	case r.URL.Path == "/v1/lookup":
		status, text := c.lookup(c.n)
		c.n++
		w.WriteHeader(status)
		io.WriteString(w, text) //nolint:errcheck // a recorder
	case strings.HasPrefix(r.URL.Path, "/v1/heartbeat/"):
		var h agent.Heartbeat
		if err := json.Unmarshal([]byte(body), &h); err != nil {
			c.t.Error(err)
		}
		status, text := c.beat(c.b, h)
		c.b++
		w.WriteHeader(status)
		io.WriteString(w, text) //nolint:errcheck // a recorder
	default:
		c.posted = append(c.posted, body)
		w.WriteHeader(http.StatusAccepted)
	}
	return w.Result(), nil
}

type machine struct{ set time.Time }

func (m *machine) SetClock(t time.Time) error { m.set = t; return nil }
func (m *machine) Inventory(context.Context) (agent.Inventory, error) {
	return agent.Inventory{Interfaces: []agent.Interface{{Name: "eth0", MACAddress: "52:54:00:12:34:56"}}}, nil
}

// answer is a lookup's answer.
func answer(token string, s *agent.SlipwayConfig) string {
	raw, err := json.Marshal(agent.Lookup{Node: agent.LookupNode{UUID: uuid},
		Config: agent.LookupConfig{AgentToken: token, HeartbeatTimeout: 300, AgentMD5ChecksumEnable: true, Slipway: s}})
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// ironicError is an error as Ironic wraps it (recorded).
func ironicError(text string) string {
	return fmt.Sprintf(`{"error_message": "{\"faultcode\": \"Client\", \"faultstring\": \"%s\", \"debuginfo\": null}"}`, text)
}

func start(t *testing.T, c *conductor, statePath string) (*Beat, *machine) {
	t.Helper()
	c.t, c.start = t, time.Now()
	if c.minor == 0 {
		c.minor = 115
	}
	if c.lookup == nil {
		c.lookup = func(int) (int, string) { return 200, answer("TOKEN", nil) }
	}
	if c.beat == nil {
		c.beat = func(int, agent.Heartbeat) (int, string) { return 202, "" }
	}
	client, err := NewClient(bootconf.Config{BootConfig: agent.BootConfig{Conductor: "http://127.0.0.1:6385", Nonce: "nonce"}}, "boot-1")
	if err != nil {
		t.Fatal(err)
	}
	client.http.Transport = c
	state, err := LoadState(statePath)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{}
	b := &Beat{Client: client, State: state, Machine: m, Log: slog.New(slog.DiscardHandler), NodeUUID: uuid, Port: 9999}
	b.Init()
	return b, m
}

// during runs b for d of the bubble's time.
func during(t *testing.T, b *Beat, d time.Duration, do func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	done := make(chan struct{})
	go func() { b.Run(ctx); close(done) }()
	if do != nil {
		do()
	}
	<-done
}

func TestLookupThenHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var beats []agent.Heartbeat
		c := &conductor{beat: func(_ int, h agent.Heartbeat) (int, string) { beats = append(beats, h); return 202, "" }}
		b, _ := start(t, c, "")
		during(t, b, 15*time.Minute, nil)
		// IPA's share of a 300 s timeout is 90 to 180 s: 5 to 10 more in 15 minutes.
		if n := len(beats); n < 6 || n > 11 {
			t.Fatalf("%d heartbeats: %v", n, c.asked)
		}
		want := agent.Heartbeat{CallbackURL: "http://127.0.0.1:9999", AgentToken: "TOKEN", AgentVersion: agent.AgentVersion}
		if d := cmp.Diff(want, beats[0]); d != "" {
			t.Fatal(d)
		}
		if d := cmp.Diff([]string{"GET /v1/lookup", "POST /v1/heartbeat/" + uuid}, c.asked[:2]); d != "" {
			t.Fatal(d)
		}
		look, beat := c.heads[1], c.heads[2]
		if look.Get(agent.HeaderNonce) != "nonce" || look.Get(agent.HeaderBootID) != "boot-1" || look.Get(versionHeader) != "1.62" || beat.Get(versionHeader) != "1.68" {
			t.Fatalf("lookup %v\nheartbeat %v", look, beat)
		}
	})
}

// An old server gets the version it has.
func TestOldServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &conductor{minor: 40}
		b, _ := start(t, c, "")
		during(t, b, time.Minute, nil)
		if got := c.heads[1].Get(versionHeader) + c.heads[2].Get(versionHeader); got != "1.401.40" {
			t.Fatal(got)
		}
	})
}

// No answer to a lookup is final: nodes are enrolled late, locked or restarting.
func TestLookupGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refusals := []int{404, 409, 503, 500, 404}
		c := &conductor{lookup: func(n int) (int, string) {
			if n < len(refusals) {
				return refusals[n], ironicError("no")
			}
			return 200, answer("TOKEN", nil)
		}}
		b, _ := start(t, c, "")
		during(t, b, 2*time.Minute, nil)
		if b.State.Token() != "TOKEN" || c.b == 0 {
			t.Fatalf("%v", c.asked)
		}
	})
}

// Each command's end is told at once: by our conductor's pace immediately, by
// IPA's at most every 5 s.
func TestForcedHeartbeat(t *testing.T) {
	for name, s := range map[string]*agent.SlipwayConfig{"slipway": {HeartbeatSeconds: 30}, "stock": nil} {
		synctest.Test(t, func(t *testing.T) {
			var at []time.Duration
			c := &conductor{lookup: func(int) (int, string) { return 200, answer("TOKEN", s) }}
			c.beat = func(int, agent.Heartbeat) (int, string) { at = append(at, time.Since(c.start)); return 202, "" }
			b, _ := start(t, c, "")
			during(t, b, 20*time.Second, func() { time.Sleep(time.Second); b.Kick(); time.Sleep(time.Second); b.Kick() })
			want := []time.Duration{0, time.Second, 2 * time.Second}
			if s == nil {
				want = []time.Duration{0, 5 * time.Second, 10 * time.Second}
			}
			if d := cmp.Diff(want, at); d != "" {
				t.Fatalf("%s: %s", name, d)
			}
		})
	}
}

// A conductor that was reset does not know the token: the agent asks anew. One
// that is locked or restarting is only asked again.
func TestRefusedHeartbeat(t *testing.T) {
	for name, c := range map[string]struct {
		status  int
		text    string
		lookups int
	}{
		"dead token (recorded words)": {400, ironicError("Invalid parameter for agent_token"), 2},
		"node gone":                   {404, ironicError("Node not found"), 2},
		"locked":                      {409, ironicError("Node is locked"), 1},
		"restarting":                  {503, "busy", 1},
		"changed callback":            {400, ironicError("Detected change in ramdisk provided callback_url"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tokens := []string{"OLD", "NEW"}
				co := &conductor{lookup: func(n int) (int, string) { return 200, answer(tokens[min(n, 1)], nil) }}
				var last string
				co.beat = func(n int, h agent.Heartbeat) (int, string) {
					last = h.AgentToken
					if n == 0 {
						return c.status, c.text
					}
					return 202, ""
				}
				b, _ := start(t, co, "")
				during(t, b, time.Minute, nil)
				if co.n != c.lookups || last != tokens[c.lookups-1] {
					t.Fatalf("%d lookups, last token %q", co.n, last)
				}
			})
		})
	}
}

// The token is given once. An agent that /init started again still has it; a
// stranger who comes second gets nothing to work with.
func TestMaskedToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.json")
	synctest.Test(t, func(t *testing.T) {
		b, _ := start(t, &conductor{}, path)
		during(t, b, time.Minute, nil)
		if err := b.State.SetLastOrder(7); err != nil {
			t.Fatal(err)
		}
	})
	masked := func(int) (int, string) { return 200, answer("******", nil) }
	synctest.Test(t, func(t *testing.T) {
		c := &conductor{lookup: masked}
		b, _ := start(t, c, path)
		during(t, b, time.Minute, nil)
		if id := b.State.Identity(); id.Token != "TOKEN" || id.LastOrder != 7 || c.b == 0 {
			t.Fatalf("after a crash: %+v, %d heartbeats", id, c.b)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := &conductor{lookup: masked}
		b, _ := start(t, c, "")
		during(t, b, 10*time.Minute, nil)
		if b.State.Token() != "" || c.b != 0 {
			t.Fatalf("token %q, %d heartbeats", b.State.Token(), c.b)
		}
		if c.n > 30 {
			t.Fatalf("%d lookups in 10 minutes", c.n)
		}
	})
}

// Generations belong to a token: with a new one they begin anew.
func TestNewTokenForgetsOldOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := start(t, &conductor{}, "")
		if err := b.State.SetLastOrder(7); err != nil {
			t.Fatal(err)
		}
		during(t, b, time.Second, nil)
		if n := b.State.Identity().LastOrder; n != 0 {
			t.Fatalf("last order %d", n)
		}
	})
}

func TestInspectionAndClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conductorTime := time.Now().Add(2 * time.Hour)
		c := &conductor{lookup: func(int) (int, string) {
			return 200, answer("TOKEN", &agent.SlipwayConfig{Inspect: true, InspectPath: "/v1/continue_inspection", Time: conductorTime, OrdersRequired: true})
		}}
		b, m := start(t, c, "")
		during(t, b, time.Second, nil)
		if !m.set.Equal(conductorTime) {
			t.Fatalf("clock set to %s", m.set)
		}
		if d := cmp.Diff([]string{"GET /v1/lookup", "POST /v1/continue_inspection", "POST /v1/heartbeat/" + uuid}, c.asked); d != "" {
			t.Fatal(d)
		}
		if len(c.posted) != 1 || !strings.Contains(c.posted[0], `"mac_address":"52:54:00:12:34:56"`) {
			t.Fatalf("%v", c.posted)
		}
		if !b.State.Identity().Required || b.State.MD5() {
			t.Fatal("our conductor's rules are not kept")
		}
	})
}

// A stock Ironic inspects before lookup, at the URL on the command line.
func TestStockInspection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &conductor{}
		b, m := start(t, c, "")
		b.InspectURL = "http://ironic/v1/continue_inspection"
		during(t, b, time.Second, nil)
		if d := cmp.Diff([]string{"POST /v1/continue_inspection", "GET /v1/lookup", "POST /v1/heartbeat/" + uuid}, c.asked); d != "" {
			t.Fatal(d)
		}
		if !m.set.IsZero() || !b.State.MD5() || b.State.Identity().Required {
			t.Fatal("a stock Ironic's rules are not kept")
		}
	})
}

// The token follows no redirect to somebody else, and a CA that was given is the
// only one that counts.
func TestTrust(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the canary was asked: %s", r.URL) }))
	defer other.Close()
	s := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer s.Close()
	c, err := NewClient(bootconf.Config{BootConfig: agent.BootConfig{Conductor: s.URL}}, "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Heartbeat(t.Context(), 68, uuid, agent.Heartbeat{AgentToken: "secret"}); err == nil {
		t.Error("a redirected heartbeat counted")
	}
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.StartTLS()
	defer secure.Close()
	pinned, err := NewClient(bootconf.Config{Insecure: true, BootConfig: agent.BootConfig{Conductor: secure.URL, CA: testCA}}, "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pinned.Minor(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a conductor of another CA: %v", err)
	}
	if _, err := NewClient(bootconf.Config{BootConfig: agent.BootConfig{CA: "junk"}}, "b"); err == nil {
		t.Error("took a CA that is none")
	}
}

// testCA signed nothing here. Its key was thrown away.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBgTCCASegAwIBAgIUJbTOq2KE7rOgWQ+RG1SxP98nD90wCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKQW5vdGhlciBDQTAgFw0yNjExMjUwMzA5MTNaGA8yMTI2MTEw
MTAzMDkxM1owFTETMBEGA1UEAwwKQW5vdGhlciBDQTBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABKBO+eQURGGL8RwgTPMFiuSaY3xh9YUhEBAUbB8c2Fcv3nlvhZiG
oic015hXfP4OG8iJgIyS8On20i3YVOQMsAWjUzBRMB0GA1UdDgQWBBQx4Yc2yhNB
7bpjSXkkzh5kC8X74zAfBgNVHSMEGDAWgBQx4Yc2yhNB7bpjSXkkzh5kC8X74zAP
BgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQD6uQHaDX4VLPso6Nme
IV2vbD/MicpTQ5Ve9A2dVBZmCAIgfnE4sZggDYMb2Lt191d5caDByX3cNAw6eQec
QtyT9c0=
-----END CERTIFICATE-----
`
