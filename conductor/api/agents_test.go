package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
	"github.com/slipway-metal/slipway/proto/ironic"
)

const mac1, mac2 = "52:54:00:00:00:01", "52:54:00:00:00:02"

// booting is a node with one port whose machine boots a ramdisk.
func (r *rig) booting(mac string) string {
	r.tb.Helper()
	id := r.node(nil)
	r.do("POST", "/v1/ports", map[string]any{"node_uuid": id, "address": mac}).want(201)
	r.walk(id, state.VerbManage, state.VerbDone, state.VerbInspect, state.VerbWait)
	return id
}

func (r *rig) boot(node, mac, nonce string) {
	r.tb.Helper()
	err := r.st.CreateBoot(context.Background(), &store.Boot{Nonce: nonce, NodeUUID: node, MAC: mac, Path: "path-" + nonce, Created: r.clock.now()})
	if err != nil {
		r.tb.Fatal(err)
	}
}

func (r *rig) lookup(mac, nonce, bootID string) *reply {
	r.tb.Helper()
	r.headers = http.Header{}
	if nonce != "" {
		r.headers.Set(agent.HeaderNonce, nonce)
	}
	if bootID != "" {
		r.headers.Set(agent.HeaderBootID, bootID)
	}
	defer func() { r.headers = http.Header{} }()
	return r.raw("1.62", "GET", "/v1/lookup?addresses="+strings.ToUpper(mac), "")
}

func tokenOf(p *reply) string {
	p.tb.Helper()
	var l agent.Lookup
	if err := json.Unmarshal(p.want(200).body, &l); err != nil {
		p.tb.Fatal(err)
	}
	return l.Config.AgentToken
}

func (r *rig) beat(node, token string) *reply {
	r.tb.Helper()
	return r.raw("1.68", "POST", "/v1/heartbeat/"+node, fmt.Sprintf(`{"callback_url":"http://192.0.2.7:9999","agent_token":%q,"agent_version":"13.0.0"}`, token))
}

func (r *rig) get(id string) *store.Node {
	r.tb.Helper()
	n, err := r.st.Node(context.Background(), id)
	if err != nil {
		r.tb.Fatal(err)
	}
	return n
}

// The nonce of a boot earns the token once; whoever comes again with it, or
// with another, is refused, and the alarm is told.
func TestLookupByNonceGivesTheTokenOnce(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	r.boot(id, mac1, "n1")
	token := tokenOf(r.lookup(mac1, "n1", "boot-a"))
	if len(token) != 43 {
		t.Fatalf("token %q", token)
	}
	r.lookup(mac1, "n1", "boot-b").want(403)
	r.lookup(mac1, "guess", "boot-b").want(403)
	if r.get(id).Maintenance {
		t.Error("quarantined although no holder of the token was alive")
	}
	r.beat(id, token).want(202)
	r.clock.pass(time.Minute)
	r.lookup(mac1, "n1", "boot-b").want(403)
	n := r.get(id)
	if !n.Maintenance || n.Fault != faultIdentity {
		t.Errorf("two claimants and no quarantine: maintenance %t, fault %q", n.Maintenance, n.Fault)
	}
	if !strings.Contains(r.hub.facts(), `"alarm":true`) {
		t.Error("no alarm was streamed")
	}
	if got := tokenOf(r.lookup(mac1, "", "")); got != ironic.Mask {
		t.Errorf("without a nonce: %q", got)
	}
}

// An answer lost on the way must not strand the machine.
func TestSameBootMayAskAgainWhileItsTokenIsUnused(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	r.boot(id, mac1, "n1")
	lost := tokenOf(r.lookup(mac1, "n1", "boot-a"))
	token := tokenOf(r.lookup(mac1, "n1", "boot-a"))
	if token == lost || token == ironic.Mask {
		t.Fatalf("second answer: %q", token)
	}
	r.beat(id, token).want(202)
	r.lookup(mac1, "n1", "boot-a").want(403)
}

// A nonce made for one machine admits no other.
func TestNonceIsBoundToItsMachine(t *testing.T) {
	r := newRig(t)
	a, b := r.booting(mac1), r.booting(mac2)
	r.boot(a, mac1, "for-a")
	r.lookup(mac2, "for-a", "x").want(403)
	if info(r.get(b), store.KeyToken) != "" {
		t.Error("the other machine got a token")
	}
	// A machine that has the MACs of two nodes is neither.
	r.raw("1.62", "GET", "/v1/lookup?node_uuid="+a+"&addresses="+mac1+","+mac2, "").want(409)
}

// A new boot of the same node replaces the token; when the old holder still
// calls, two machines are one node.
func TestHolderBeforeThatStillCallsQuarantines(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	r.boot(id, mac1, "n1")
	old := tokenOf(r.lookup(mac1, "n1", "a"))
	r.beat(id, old).want(202)
	r.boot(id, mac1, "n2")
	now := tokenOf(r.lookup(mac1, "n2", "b"))
	r.beat(id, now).want(202)
	if r.get(id).Maintenance {
		t.Fatal("an ordinary reboot was quarantined")
	}
	r.beat(id, old).want(400)
	if n := r.get(id); n.Fault != faultIdentity {
		t.Errorf("fault %q", n.Fault)
	}
}

// A stock agent has no nonce: the first gets the token, later ones the mask.
func TestStockAgentGetsTheTokenFirstComeAndOnlyWhereOneIsExpected(t *testing.T) {
	r := newRig(t, func(c *Config) { c.FastTrack = true })
	id := r.booting(mac1)
	if token := tokenOf(r.lookup(mac1, "", "")); len(token) != 43 {
		t.Fatalf("first: %q", token)
	}
	if token := tokenOf(r.lookup(mac1, "", "")); token != ironic.Mask {
		t.Fatalf("second: %q", token)
	}
	rest := r.node(nil)
	r.do("POST", "/v1/ports", map[string]any{"node_uuid": rest, "address": mac2}).want(201)
	if token := tokenOf(r.lookup(mac2, "", "")); token != ironic.Mask || info(r.get(rest), store.KeyToken) != "" {
		t.Errorf("a resting node gave its token to a stranger: %q", token)
	}
	if strings.Contains(string(r.do("GET", "/v1/nodes/"+id, nil).body), info(r.get(id), store.KeyToken)) {
		t.Error("the token shows in the node")
	}
}

func TestLookupOfUnknownMachinesTellsNothing(t *testing.T) {
	r := newRig(t)
	resting := r.node(nil)
	unknown := r.raw("1.62", "GET", "/v1/lookup?addresses="+mac2, "").want(404)
	other := r.raw("1.62", "GET", "/v1/lookup?node_uuid="+resting, "").want(404)
	if string(unknown.body) != string(other.body) {
		t.Errorf("a resting and an unknown node can be told apart: %s %s", unknown.body, other.body)
	}
	r.raw("1.62", "GET", "/v1/lookup?node_uuid=zz", "").want(400)
	r.raw("1.21", "GET", "/v1/lookup?addresses="+mac2, "").want(404)
}

// What a lookup shows is what an agent needs: no instance, no credentials.
func TestLookupShowsOnlyWhatAnAgentNeeds(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	r.do("PATCH", "/v1/nodes/"+id, `[{"op":"add","path":"/instance_info/secret_thing","value":"canary-1"},{"op":"add","path":"/driver_info/redfish_password","value":"canary-2"},{"op":"add","path":"/properties/root_device","value":{"serial":"S"}}]`).want(200)
	p := r.lookup(mac1, "", "").want(200)
	if strings.Contains(string(p.body), "canary") {
		t.Errorf("%s", p.body)
	}
	var l agent.Lookup
	if err := json.Unmarshal(p.body, &l); err != nil {
		t.Fatal(err)
	}
	if l.Node.UUID != id || l.Node.Properties["root_device"] == nil || l.Config.Slipway == nil || !l.Config.Slipway.Inspect || l.Config.HeartbeatTimeout != 300 {
		t.Errorf("%+v", l)
	}
}

// Heartbeats that change nothing write nothing; the stored time is renewed once a minute.
func TestHeartbeatWritesOnlyWhatChanged(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	token := tokenOf(r.lookup(mac1, "", ""))
	r.beat(id, token).want(202)
	first := r.get(id)
	if info(first, store.KeyURL) != "http://192.0.2.7:9999" || info(first, store.KeyVersion) != "13.0.0" || info(first, store.KeyHeartbeat) == "" {
		t.Fatalf("%v", first.DriverInternalInfo)
	}
	for range 5 {
		r.clock.pass(10 * time.Second)
		r.beat(id, token).want(202)
	}
	if n := r.get(id); n.Version != first.Version {
		t.Errorf("five heartbeats wrote %d times", n.Version-first.Version)
	}
	if r.clock.now().Sub(r.live.LastHeartbeat(id)) > time.Second {
		t.Error("the last heartbeat is not known in memory")
	}
	r.clock.pass(15 * time.Second)
	r.beat(id, token).want(202)
	if n := r.get(id); n.Version != first.Version+1 {
		t.Errorf("after a minute: version %d, want %d", n.Version, first.Version+1)
	}
	live := NewLive()
	if err := live.Load(context.Background(), r.st); err != nil || live.LastHeartbeat(id).IsZero() {
		t.Errorf("a restarted conductor knows of no heartbeat: %v", err)
	}
}

func TestHeartbeatRefusesWhatIsNotTheAgent(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	token := tokenOf(r.lookup(mac1, "", ""))
	r.beat(id, "wrong").want(400).says("Invalid or missing agent token")
	r.beat(id, "").want(400).says("Agent token is required")
	r.beat("00000000-0000-4000-8000-000000000000", token).want(404)
	for _, u := range []string{"ftp://x", "file:///etc/passwd", "http://", "http://user:pw@x", "nonsense"} {
		r.raw("1.68", "POST", "/v1/heartbeat/"+id, fmt.Sprintf(`{"callback_url":%q,"agent_token":%q,"agent_version":"1"}`, u, token)).want(400)
	}
	r.beat(id, token).want(202)
	r.raw("1.68", "POST", "/v1/heartbeat/"+id, fmt.Sprintf(`{"callback_url":"http://192.0.2.66:9999","agent_token":%q,"agent_version":"1"}`, token)).want(400).says("callback_url")
	// A node without a token has no agent, whatever token is shown.
	fresh := r.booting(mac2)
	r.beat(fresh, token).want(400)
}

// A heartbeat makes parked work due.
func TestHeartbeatWakesTheWork(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	ctx := context.Background()
	w, err := r.st.ClaimWork(ctx, "c", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.st.ParkWork(ctx, w.Lease(), nil, r.clock.now().Add(time.Hour), time.Time{}, 0, "waits"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.st.ClaimWork(ctx, "c", time.Minute); err == nil {
		t.Fatal("parked work is due")
	}
	r.beat(id, tokenOf(r.lookup(mac1, "", ""))).want(202)
	if _, err := r.st.ClaimWork(ctx, "c", time.Minute); err != nil {
		t.Errorf("after the heartbeat: %v", err)
	}
}

func inventoryBody(t testing.TB, change func(map[string]any)) string {
	t.Helper()
	var rec map[string]any
	recorded(t, "ipa-inventory.json", &rec)
	inv := rec["command_result"].(map[string]any)
	inv["interfaces"].([]any)[0].(map[string]any)["mac_address"] = mac1
	if change != nil {
		change(inv)
	}
	raw, err := json.Marshal(map[string]any{"inventory": inv})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// A real agent's recorded inventory becomes the node's properties and ports.
func TestInspectionStoresTheInventory(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	body := inventoryBody(t, func(inv map[string]any) {
		inv["boot"].(map[string]any)["pxe_interface"] = mac2
		nics := inv["interfaces"].([]any)
		inv["interfaces"] = append(nics, map[string]any{"name": "eth1", "mac_address": mac2, "has_carrier": true})
		inv["hostname"] = "evil\x1b]0;title\a\u202ename"
	})
	if got := r.raw("1.84", "POST", "/v1/continue_inspection", body).want(202).json()["uuid"]; got != id {
		t.Errorf("uuid %v", got)
	}
	n := r.get(id)
	if n.Properties["cpu_arch"] != "x86_64" || n.InspectionFinishedAt.IsZero() || n.BootMode != "bios" {
		t.Errorf("%v %v", n.Properties, n.InspectionFinishedAt)
	}
	inv := r.do("GET", "/v1/nodes/"+id+"/inventory", nil).want(200).json()["inventory"].(map[string]any)
	if inv["hostname"] != "evil]0;titlename" {
		t.Errorf("control characters kept: %q", inv["hostname"])
	}
	if p, err := r.st.PortByAddress(context.Background(), mac2); err != nil || p.NodeUUID != id {
		t.Errorf("no port for the PXE NIC: %v", err)
	}
	plan := r.do("GET", "/slipway/v1/nodes/"+id+"/plan", nil).want(200).json()
	if plan["target"].(map[string]any)["name"] != "/dev/vda" {
		t.Errorf("plan: %v", plan)
	}
}

func TestInspectionRefusesWhatIsNotAnInventory(t *testing.T) {
	r := newRig(t)
	r.booting(mac1)
	other := r.node(nil)
	r.do("POST", "/v1/ports", map[string]any{"node_uuid": other, "address": mac2}).want(201)
	post := func(body string) *reply { return r.raw("1.84", "POST", "/v1/continue_inspection", body) }
	nics := func(n int) func(map[string]any) {
		return func(inv map[string]any) {
			list := []any{}
			for i := range n {
				list = append(list, map[string]any{"name": "x", "mac_address": fmt.Sprintf("52:54:01:00:%02x:%02x", i/256, i%256)})
			}
			inv["interfaces"] = list
		}
	}
	post(inventoryBody(t, nics(10000))).want(400).says("10000")
	post(inventoryBody(t, nics(1))).want(404)
	post(`{"inventory": 7}`).want(400)
	post(`{"inventory": {"interfaces": [{"mac_address": 5}]}}`).want(400)
	post(`{"inventory": ` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`).want(400).says("deeper")
	post(`{"inventory": "` + strings.Repeat("x", 2<<20) + `"}`).want(413)
	post(inventoryBody(t, func(inv map[string]any) {
		inv["interfaces"] = append(inv["interfaces"].([]any), map[string]any{"mac_address": mac2})
	})).want(409).says(other)
}

// A machine that earned its token by a nonce must show it with its inventory.
func TestInventoryOfANonceBootNeedsItsToken(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	r.boot(id, mac1, "n1")
	token := tokenOf(r.lookup(mac1, "n1", "b"))
	body := inventoryBody(t, nil)
	r.raw("1.84", "POST", "/v1/continue_inspection", body).want(403).says(HeaderToken)
	r.headers.Set(HeaderToken, token)
	r.raw("1.84", "POST", "/v1/continue_inspection", body).want(202)
}

// Agents' events are streamed, cleaned, capped and only taken with the token.
func TestAgentEvents(t *testing.T) {
	r := newRig(t)
	id := r.booting(mac1)
	token := tokenOf(r.lookup(mac1, "", ""))
	path := "/slipway/v1/agent/" + id + "/events"
	progress := event.New(id, event.KindProgress, r.clock.now(), event.Progress{Step: "write_image\x1b[2J", Stage: "write", Percent: 400})
	forged := event.New(id, event.KindState, r.clock.now(), event.State{To: "active"})
	r.do("POST", path, []event.Event{progress}).want(403)
	r.do("POST", "/slipway/v1/agent/"+mac1+"/events", []event.Event{progress})
	r.headers.Set(HeaderToken, token)
	r.do("POST", path, []event.Event{progress, forged}).want(204)
	facts := r.hub.facts()
	if !strings.Contains(facts, `"step":"write_image[2J"`) || strings.Contains(facts, `"to":"active"`) {
		t.Errorf("streamed: %s", facts)
	}
	if p, _ := r.live.Progress(id); p == nil || p.Percent != 100 {
		t.Errorf("progress: %+v", p)
	}
	many := make([]event.Event, maxBatch)
	for i := range many {
		many[i] = progress
	}
	var last *reply
	for range 5 {
		last = r.do("POST", path, many)
	}
	if last.status != 429 || last.header.Get("Retry-After") == "" {
		t.Errorf("a flood got %d", last.status)
	}
	r.do("POST", path, append(many, progress)).want(413)
	r.do("POST", path, "{").want(400)
	r.headers = http.Header{}
	if e := r.do("GET", "/slipway/v1/nodes/"+id+"/explain", nil).want(200).json(); e["summary"] == "" {
		t.Errorf("explain: %v", e)
	}
}

func TestEventsStreamResumesAfterTheLastID(t *testing.T) {
	r := newRig(t)
	id := r.node(nil)
	for i := range 3 {
		r.hub.Publish(event.New(id, event.KindLog, r.clock.now(), event.Log{Message: fmt.Sprint("line ", i)}))
	}
	r.headers.Set("Last-Event-ID", "1")
	p := r.do("GET", "/slipway/v1/events?node="+id, nil).want(200)
	text := string(p.body)
	if p.header.Get("Content-Type") != "text/event-stream" || strings.Contains(text, "line 0") || !strings.Contains(text, "id: 2\nevent: log\ndata: {") || !strings.Contains(text, "line 2") {
		t.Errorf("%v %s", p.header, text)
	}
	r.headers.Set("Last-Event-ID", "x")
	r.do("GET", "/slipway/v1/events", nil).want(400)
	r.headers = http.Header{}
	if ct := r.do("GET", "/slipway/v1/events?node=nope", nil).want(404).header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("content type %q", ct)
	}
}
