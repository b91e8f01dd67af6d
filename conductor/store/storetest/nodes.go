package storetest

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// full has a value in every field that a caller may set.
func full() *store.Node {
	yes, no := true, false
	at := time.Date(2026, 11, 1, 2, 3, 4, 5000, time.UTC)
	return &store.Node{
		UUID: "11111111-2222-4333-8444-555555555555", Name: "node-1", CreatedAt: at, Driver: "redfish",
		DriverInfo:         map[string]any{"redfish_address": "https://bmc", "redfish_password": "p4ss", "nested": map[string]any{"token": "t0k"}, "n": 1.5},
		DriverInternalInfo: map[string]any{"agent_url": "http://a:9999", "agent_secret_token": "s3cr3t"},
		InstanceInfo:       map[string]any{"image_source": "http://i/x.raw", "configdrive": "H4sI"},
		Properties:         map[string]any{"cpus": 4.0, "capabilities": "boot_mode:uefi"}, Extra: map[string]any{"k": []any{"a", 1.0, nil}},
		NetworkData: map[string]any{"links": []any{}}, InstanceUUID: "i-1", InstanceName: "web", ResourceClass: "bm", Owner: "o", Lessee: "l",
		Description: "d\u00e9j\u00e0", ConductorGroup: "g", Shard: "s", ChassisUUID: "c", ParentNode: "p",
		Interfaces: map[string]string{"boot_interface": "ipxe"}, ProvisionState: state.CleanWait, TargetProvisionState: state.Manageable,
		ProvisionUpdatedAt: at, PowerState: "power on", TargetPowerState: "power off", LastError: "e", Maintenance: true, MaintenanceReason: "m",
		Fault: "f", AutomatedClean: &no, Protected: true, Retired: true, ProtectedReason: "pr", RetiredReason: "rr", ConsoleEnabled: true,
		DisablePowerOff: true, BootMode: "uefi", SecureBoot: &yes, CleanStep: map[string]any{"step": "erase"}, DeployStep: map[string]any{"step": "write"},
		ServiceStep: map[string]any{"step": "s"}, RaidConfig: map[string]any{"a": 1.0}, TargetRaidConfig: map[string]any{"b": 2.0},
		InspectionStartedAt: at, InspectionFinishedAt: at.Add(time.Second), Inventory: json.RawMessage(`{"cpu": {}}`),
		PluginData: json.RawMessage(`{"x":1}`), Traits: []string{"CUSTOM_A", "CUSTOM_B"}, Version: 1,
	}
}

var nodeTests = []test{
	{"every field comes back as it was stored, also after a crash", func(b *bench) {
		want := full()
		b.must(b.CreateNode(b.ctx, full()))
		for name, s := range map[string]store.Store{"running": b.Store, "after a crash": b.crash()} {
			for _, ident := range []string{want.UUID, want.Name} {
				got, err := s.Node(b.ctx, ident)
				b.must(err)
				if d := cmp.Diff(want, got); d != "" {
					b.Errorf("%s, by %s (-stored +read):\n%s", name, ident, d)
				}
			}
		}
	}},
	{"an empty node gets identity, state, time and version, and reads without nil maps", func(b *bench) {
		n := &store.Node{Driver: "fake-hardware"}
		b.must(b.CreateNode(b.ctx, n))
		got := b.read(n.UUID)
		if got.UUID == "" || got.ProvisionState != state.Enroll || !got.CreatedAt.Equal(b.clock.Now()) || got.Version != 1 || !got.UpdatedAt.IsZero() {
			b.Errorf("created %+v", got)
		}
		got.Extra["writable"] = true
		if d := cmp.Diff(n, b.read(n.UUID), cmpopts.EquateEmpty()); d != "" {
			b.Errorf("(-created +read):\n%s", d)
		}
	}},
	{"UUID, name and instance are unique, and the error names the value and its owner", func(b *bench) {
		b.must(b.CreateNode(b.ctx, full()))
		for words, n := range map[string]*store.Node{
			"UUID " + full().UUID:                  {UUID: full().UUID},
			"name node-1":                          {Name: "node-1"},
			"instance UUID " + full().InstanceUUID: {InstanceUUID: full().InstanceUUID},
		} {
			err := b.CreateNode(b.ctx, n)
			b.want(err, store.ErrExists)
			var e *store.ExistsError
			if !errors.As(err, &e) || e.Owner != full().UUID || e.Error() != "a node with "+words+" already exists" {
				b.Errorf("%s: got %#v", words, err)
			}
		}
		other := b.node("node-2", state.Enroll)
		_, err := b.UpdateNode(b.ctx, other.UUID, 0, func(n *store.Node) error { n.Name = "node-1"; return nil })
		b.want(err, store.ErrExists)
		b.node("", state.Enroll)
		b.node("", state.Enroll) // no name is no duplicate
	}},
	{"an update writes once, grows the version and stamps the time", func(b *bench) {
		n := b.node("a", state.Enroll)
		b.clock.Add(time.Minute)
		got, err := b.UpdateNode(b.ctx, n.UUID, 1, func(n *store.Node) error {
			n.Extra["k"], n.DriverInfo["ipmi_password"], n.Inventory = "v", "s", json.RawMessage(`{}`)
			return nil
		})
		b.must(err)
		if got.Version != 2 || !got.UpdatedAt.Equal(b.clock.Now()) {
			b.Errorf("version %d at %v", got.Version, got.UpdatedAt)
		}
		if d := cmp.Diff(got, b.read("a")); d != "" {
			b.Errorf("(-returned +read):\n%s", d)
		}
		got, err = b.UpdateNode(b.ctx, n.UUID, 0, func(n *store.Node) error { delete(n.DriverInfo, "ipmi_password"); return nil })
		b.must(err)
		if len(b.read("a").DriverInfo) != 0 || got.Version != 3 {
			b.Errorf("a removed secret stayed, or the removal did not count: %+v", got)
		}
	}},
	{"an update that changes nothing writes nothing", func(b *bench) {
		b.must(b.CreateNode(b.ctx, full()))
		b.clock.Add(time.Minute)
		_, err := b.UpdateNode(b.ctx, full().UUID, 0, func(n *store.Node) error { n.Extra["k"] = []any{"a", 1.0, nil}; return nil })
		b.must(err)
		if d := cmp.Diff(full(), b.read("node-1")); d != "" {
			b.Error(d)
		}
	}},
	{"a secret changed in place is written", func(b *bench) {
		b.must(b.CreateNode(b.ctx, full()))
		_, err := b.UpdateNode(b.ctx, full().UUID, 0, func(n *store.Node) error {
			n.DriverInfo["nested"].(map[string]any)["token"] = "new"
			return nil
		})
		b.must(err)
		if got := b.read("node-1").DriverInfo["nested"].(map[string]any)["token"]; got != "new" {
			b.Errorf("token %v", got)
		}
	}},
	{"an update of an old version, of a state, or with an error leaves the node alone", func(b *bench) {
		b.must(b.CreateNode(b.ctx, full()))
		id := full().UUID
		_, err := b.UpdateNode(b.ctx, id, 7, func(*store.Node) error { return nil })
		b.want(err, store.ErrStale)
		_, err = b.UpdateNode(b.ctx, id, 0, func(n *store.Node) error { n.ProvisionState = state.Active; return nil })
		b.want(err, store.ErrInvalid)
		_, err = b.UpdateNode(b.ctx, id, 0, func(n *store.Node) error { n.UUID = "x"; return nil })
		b.want(err, store.ErrInvalid)
		boom := errors.New("boom")
		_, err = b.UpdateNode(b.ctx, id, 0, func(n *store.Node) error { n.Name = "x"; return boom })
		b.want(err, boom)
		_, err = b.UpdateNode(b.ctx, "nobody", 0, func(*store.Node) error { return nil })
		b.want(err, store.ErrNotFound)
		if d := cmp.Diff(full(), b.read(id)); d != "" {
			b.Error(d)
		}
	}},
	{"a panic in a caller's function is the caller's, and the store goes on", func(b *bench) {
		n := b.node("a", state.Enroll)
		func() {
			defer func() {
				if recover() == nil {
					b.Error("the panic was swallowed")
				}
			}()
			_, _ = b.UpdateNode(b.ctx, n.UUID, 0, func(n *store.Node) error { n.Name = "x"; panic("boom") })
		}()
		_, err := b.UpdateNode(b.ctx, n.UUID, 1, func(n *store.Node) error { n.Description = "d"; return nil })
		b.must(err)
	}},
	{"of many concurrent updates none is lost", func(b *bench) {
		n := b.node("a", state.Enroll)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				_, err := b.UpdateNode(b.ctx, n.UUID, 0, func(n *store.Node) error {
					was, _ := n.Extra["n"].(float64)
					n.Extra["n"] = was + 1
					return nil
				})
				if err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		if got := b.read("a"); got.Extra["n"] != 50.0 || got.Version != 51 {
			b.Errorf("counted %v, version %d", got.Extra["n"], got.Version)
		}
	}},
	{"a deleted node takes everything along", func(b *bench) {
		n := b.node("a", state.Enroll)
		b.must(b.CreatePort(b.ctx, &store.Port{NodeUUID: n.UUID, Address: "52:54:00:00:00:01"}))
		b.verb(n, state.VerbManage)
		b.must(b.CreateBoot(b.ctx, &store.Boot{Nonce: "n", Path: "p", NodeUUID: n.UUID}))
		b.must(b.DeleteNode(b.ctx, n.UUID))
		_, err := b.Node(b.ctx, n.UUID)
		b.want(err, store.ErrNotFound)
		_, err = b.PortByAddress(b.ctx, "52:54:00:00:00:01")
		b.want(err, store.ErrNotFound)
		_, err = b.WorkOf(b.ctx, n.UUID)
		b.want(err, store.ErrNotFound)
		_, err = b.BootByPath(b.ctx, "p")
		b.want(err, store.ErrNotFound)
		b.want(b.DeleteNode(b.ctx, n.UUID), store.ErrNotFound)
		b.node("a", state.Enroll) // the name is free
	}},
	{"an unknown state is refused", func(b *bench) {
		b.want(b.CreateNode(b.ctx, &store.Node{ProvisionState: "lost"}), store.ErrInvalid)
	}},
}

var listTests = []test{
	{"filters select", func(b *bench) {
		b.must(b.CreateNode(b.ctx, full()))
		b.node("other", state.Enroll)
		yes, no := true, false
		for name, x := range map[string]struct {
			f    store.NodeFilter
			want string
		}{
			"all":            {store.NodeFilter{}, "node-1 other"},
			"state":          {store.NodeFilter{ProvisionState: "enroll"}, "other"},
			"driver":         {store.NodeFilter{Driver: "redfish"}, "node-1"},
			"class":          {store.NodeFilter{ResourceClass: "bm"}, "node-1"},
			"owner":          {store.NodeFilter{Owner: "o"}, "node-1"},
			"lessee":         {store.NodeFilter{Lessee: "x"}, ""},
			"instance":       {store.NodeFilter{InstanceUUID: "i-1"}, "node-1"},
			"group":          {store.NodeFilter{ConductorGroup: "g"}, "node-1"},
			"fault":          {store.NodeFilter{Fault: "f"}, "node-1"},
			"maintenance":    {store.NodeFilter{Maintenance: &yes}, "node-1"},
			"no maintenance": {store.NodeFilter{Maintenance: &no}, "other"},
			"associated":     {store.NodeFilter{Associated: &yes}, "node-1"},
			"not associated": {store.NodeFilter{Associated: &no}, "other"},
			"retired":        {store.NodeFilter{Retired: &yes}, "node-1"},
			"description":    {store.NodeFilter{DescriptionContains: "\u00e9j"}, "node-1"},
			"wildcards":      {store.NodeFilter{DescriptionContains: "%"}, ""},
			"two together":   {store.NodeFilter{Driver: "redfish", ProvisionState: "enroll"}, ""},
		} {
			if got := b.names(x.f); got != x.want {
				b.Errorf("%s: listed %q, want %q", name, got, x.want)
			}
		}
	}},
	{"pages follow their marker in every order", func(b *bench) {
		for _, n := range []struct{ name, class string }{{"c", "x"}, {"a", "x"}, {"e", ""}, {"b", "y"}, {"d", "x"}} {
			b.must(b.CreateNode(b.ctx, &store.Node{Name: n.name, ResourceClass: n.class}))
		}
		for _, x := range []struct {
			key  string
			desc bool
			want string
		}{
			{"", false, "c a e b d"}, {"", true, "d b e a c"}, {"name", false, "a b c d e"}, {"name", true, "e d c b a"},
			{"resource_class", false, "e c a d b"}, {"resource_class", true, "b d a c e"},
			{"created_at", false, "c a e b d"}, {"updated_at", false, "c a e b d"}, {"maintenance", true, "d b e a c"},
		} {
			for size := 1; size <= 6; size++ {
				var got []string
				f := store.NodeFilter{SortKey: x.key, SortDesc: x.desc, Limit: size}
				for {
					page, err := b.Nodes(b.ctx, f)
					b.must(err)
					for _, n := range page {
						got = append(got, n.Name)
					}
					if len(page) < size {
						break
					}
					f.Marker = page[len(page)-1].UUID
				}
				if s := strings.Join(got, " "); s != x.want {
					b.Errorf("sort by %q, desc %v, pages of %d: %q, want %q", x.key, x.desc, size, s, x.want)
				}
			}
		}
	}},
	{"an unknown sort key and an unknown marker are refused", func(b *bench) {
		for _, key := range []string{"zz", "driver_info", "secrets", "uuid; DROP TABLE nodes"} {
			_, err := b.Nodes(b.ctx, store.NodeFilter{SortKey: key})
			b.want(err, store.ErrInvalid)
		}
		_, err := b.Nodes(b.ctx, store.NodeFilter{Marker: "nobody"})
		b.want(err, store.ErrNotFound)
	}},
	{"lists leave the inventory out and carry everything else", func(b *bench) {
		b.must(b.CreateNode(b.ctx, full()))
		got, err := b.Nodes(b.ctx, store.NodeFilter{})
		b.must(err)
		want := full()
		want.Inventory, want.PluginData = nil, nil
		if d := cmp.Diff([]*store.Node{want}, got); d != "" {
			b.Error(d)
		}
	}},
}

// names lists the names that a filter selects, in order.
func (b *bench) names(f store.NodeFilter) string {
	b.Helper()
	nodes, err := b.Nodes(b.ctx, f)
	b.must(err)
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	return strings.Join(names, " ")
}

var portTests = []test{
	{"every field comes back, found by UUID, name and address in any case", func(b *bench) {
		n := b.node("a", state.Enroll)
		p := &store.Port{NodeUUID: n.UUID, Address: "52:54:00:AA:BB:CC", Name: "eth0", PhysicalNetwork: "p", PortgroupUUID: "g", Description: "d",
			PXEEnabled: true, IsSmartNIC: true, LocalLink: map[string]any{"port_id": "1"}, Extra: map[string]any{"a": 1.0}, InternalInfo: map[string]any{"b": 2.0}}
		b.must(b.CreatePort(b.ctx, p))
		for _, s := range []store.Store{b.Store, b.crash()} {
			byUUID, err := s.Port(b.ctx, p.UUID)
			b.must(err)
			byName, err := s.Port(b.ctx, "eth0")
			b.must(err)
			byMAC, err := s.PortByAddress(b.ctx, "52:54:00:aa:BB:cc")
			b.must(err)
			if d := cmp.Diff([]*store.Port{p, p, p}, []*store.Port{byUUID, byName, byMAC}); d != "" {
				b.Error(d)
			}
		}
		if p.Address != "52:54:00:aa:bb:cc" {
			b.Errorf("address %q is not lower case", p.Address)
		}
	}},
	{"addresses are unique in any case, and the error names the node that has it", func(b *bench) {
		a, c := b.node("a", state.Enroll), b.node("c", state.Enroll)
		b.must(b.CreatePort(b.ctx, &store.Port{NodeUUID: a.UUID, Address: "52:54:00:aa:bb:cc"}))
		err := b.CreatePort(b.ctx, &store.Port{NodeUUID: c.UUID, Address: "52:54:00:AA:BB:CC"})
		var e *store.ExistsError
		if !errors.As(err, &e) || e.Owner != a.UUID || e.Error() != "a port with MAC address 52:54:00:aa:bb:cc already exists" {
			b.Errorf("got %#v", err)
		}
		other := &store.Port{NodeUUID: c.UUID, Address: "52:54:00:aa:bb:cd"}
		b.must(b.CreatePort(b.ctx, other))
		_, err = b.UpdatePort(b.ctx, other.UUID, func(p *store.Port) error { p.Address = "52:54:00:AA:BB:CC"; return nil })
		b.want(err, store.ErrExists)
	}},
	{"a port needs a node and an address", func(b *bench) {
		b.want(b.CreatePort(b.ctx, &store.Port{NodeUUID: "nobody", Address: "52:54:00:aa:bb:cc"}), store.ErrNotFound)
		b.want(b.CreatePort(b.ctx, &store.Port{NodeUUID: b.node("a", state.Enroll).UUID}), store.ErrInvalid)
	}},
	{"update, list and delete", func(b *bench) {
		a, c := b.node("a", state.Enroll), b.node("c", state.Enroll)
		for i, n := range []*store.Node{a, c, a} {
			b.must(b.CreatePort(b.ctx, &store.Port{NodeUUID: n.UUID, Address: "52:54:00:00:00:0" + string(rune('1'+i))}))
		}
		ports, err := b.Ports(b.ctx, store.PortFilter{NodeUUID: a.UUID, SortKey: "address", SortDesc: true})
		b.must(err)
		if len(ports) != 2 || ports[0].Address != "52:54:00:00:00:03" {
			b.Fatalf("listed %+v", ports)
		}
		next, err := b.Ports(b.ctx, store.PortFilter{NodeUUID: a.UUID, SortKey: "address", SortDesc: true, Marker: ports[0].UUID, Limit: 5})
		b.must(err)
		if d := cmp.Diff(ports[1:], next); d != "" {
			b.Error(d)
		}
		b.clock.Add(time.Minute)
		got, err := b.UpdatePort(b.ctx, ports[0].UUID, func(p *store.Port) error { p.PXEEnabled = true; return nil })
		b.must(err)
		if !got.UpdatedAt.Equal(b.clock.Now()) {
			b.Errorf("updated at %v", got.UpdatedAt)
		}
		b.must(b.DeletePort(b.ctx, got.UUID))
		b.want(b.DeletePort(b.ctx, got.UUID), store.ErrNotFound)
		_, err = b.UpdatePort(b.ctx, got.UUID, func(*store.Port) error { return nil })
		b.want(err, store.ErrNotFound)
		_, err = b.Port(b.ctx, got.UUID)
		b.want(err, store.ErrNotFound)
	}},
}
