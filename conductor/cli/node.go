package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/slipway-metal/slipway/proto/ironic"
)

// NodeCmd is `slipway node`.
type NodeCmd struct {
	List        NodeList        `cmd:"" help:"List nodes."`
	Show        NodeShow        `cmd:"" help:"Show one node."`
	Create      NodeCreate      `cmd:"" help:"Enrol a machine by its BMC."`
	Set         NodeSet         `cmd:"" help:"Change a node's fields."`
	Delete      NodeDelete      `cmd:"" help:"Forget nodes. Their machines are left as they are."`
	Manage      NodeManage      `cmd:"" help:"Check the BMC and take the node under management."`
	Inspect     NodeInspect     `cmd:"" help:"Boot the ramdisk and take inventory."`
	Provide     NodeProvide     `cmd:"" help:"Clean the node and offer it for deployment."`
	Clean       NodeClean       `cmd:"" help:"Run chosen clean steps on a manageable node."`
	Deploy      NodeDeploy      `cmd:"" help:"Write an image and boot it. DESTROYS the root disk; see slipway plan."`
	Undeploy    NodeUndeploy    `cmd:"" help:"Tear the instance down and clean the node. DESTROYS its disks' contents."`
	Abort       NodeAbort       `cmd:"" help:"Stop what the node waits for."`
	Rescue      NodeRescue      `cmd:"" help:"Boot the rescue ramdisk."`
	Power       NodePower       `cmd:"" help:"Switch a machine on, off, or restart it."`
	Maintenance NodeMaintenance `cmd:"" help:"Set or unset maintenance."`
	Watch       NodeWatch       `cmd:"" help:"Follow what happens on a node: hops, steps, progress."`
	Logs        NodeLogs        `cmd:"" help:"Show a node's history and its agent's log."`
}

// NodeList is `slipway node list`.
type NodeList struct {
	State       string `help:"Only nodes in this provision state." placeholder:"STATE"`
	Class       string `help:"Only nodes of this resource class." placeholder:"CLASS"`
	Maintenance bool   `help:"Only nodes in maintenance."`
}

// Run lists.
func (c *NodeList) Run(ctx context.Context, g *Globals) error {
	cl, q := g.client(), url.Values{"detail": {"true"}}
	if c.State != "" {
		q.Set("provision_state", c.State)
	}
	if c.Class != "" {
		q.Set("resource_class", c.Class)
	}
	if c.Maintenance {
		q.Set("maintenance", "true")
	}
	nodes, err := cl.nodes(ctx, q)
	if err != nil {
		return explainError("list nodes", g.URL, err)
	}
	t := table{
		head: []string{"NAME", "UUID", "STATE", "POWER", "MAINTENANCE", "SINCE", "ERROR"},
		wide: []string{"CLASS", "DRIVER", "INSTANCE", "TARGET"},
	}
	for _, n := range nodes {
		maint := "-"
		if n.Maintenance {
			maint = "yes"
		}
		e := dash(n.LastError)
		if r := []rune(e); len(r) > 60 && g.Output != "wide" {
			e = string(r[:59]) + "…"
		}
		t.rows = append(t.rows, []string{
			dash(n.Name), n.UUID, n.ProvisionState, dash(n.PowerState), maint, age(n.ProvisionUpdatedAt, g.Now()), e,
			dash(n.ResourceClass), n.Driver, dash(n.InstanceUUID), dash(n.TargetProvisionState),
		})
	}
	return g.print(nodes, t)
}

// Target is a node argument.
type Target struct {
	Node string `arg:"" help:"Name, UUID, or a unique beginning of either."`
}

// NodeShow is `slipway node show`.
type NodeShow struct{ Target }

// Run shows.
func (c *NodeShow) Run(ctx context.Context, g *Globals) error {
	n, err := g.client().node(ctx, c.Node)
	if err != nil {
		return explainError("show node "+c.Node, g.URL, err)
	}
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	t := table{head: []string{"FIELD", "VALUE"}}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k == "links" {
			continue
		}
		s, ok := m[k].(string)
		if !ok && m[k] != nil {
			b, err := json.Marshal(m[k])
			if err != nil {
				return err
			}
			s = string(b)
		}
		t.rows = append(t.rows, []string{k, s})
	}
	return g.print(n, t)
}

// pairs turns key=value arguments into a dict; a value that is JSON (a number,
// true, an object) is taken as such.
func pairs(args []string) (map[string]any, error) {
	out := map[string]any{}
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return nil, usage(fmt.Sprintf("%q is not key=value", a), "for example: --driver-info redfish_address=https://10.0.0.5")
		}
		var val any
		if json.Unmarshal([]byte(v), &val) != nil {
			val = v
		}
		out[k] = val
	}
	return out, nil
}

// NodeCreate is `slipway node create`.
type NodeCreate struct {
	Name       string   `arg:"" optional:"" help:"Name for the node."`
	Driver     string   `help:"How to reach its BMC: redfish, manual-management, fake-hardware." default:"redfish"`
	DriverInfo []string `help:"Setting of the driver, key=value; repeatable. See slipway driver list." placeholder:"K=V" sep:"none"`
	Property   []string `help:"Property, key=value; root_device hints go here." placeholder:"K=V" sep:"none"`
	Class      string   `help:"Resource class." placeholder:"CLASS"`
	MAC        []string `help:"MAC address of a NIC that network-boots; repeatable. Creates the port too." placeholder:"MAC" sep:"none"`
}

// Run creates.
func (c *NodeCreate) Run(ctx context.Context, g *Globals) error {
	info, err := pairs(c.DriverInfo)
	if err != nil {
		return err
	}
	props, err := pairs(c.Property)
	if err != nil {
		return err
	}
	cl := g.client()
	var n ironic.Node
	body := ironic.NodeCreate{Name: c.Name, Driver: c.Driver, DriverInfo: info, Properties: props, ResourceClass: c.Class}
	if err := cl.do(ctx, http.MethodPost, "/v1/nodes", body, &n); err != nil {
		return explainError("create node "+c.Name, g.URL, err)
	}
	for _, mac := range c.MAC {
		if err := cl.do(ctx, http.MethodPost, "/v1/ports", ironic.PortCreate{NodeUUID: n.UUID, Address: mac}, nil); err != nil {
			return explainError("create port "+mac+" of node "+n.UUID+" (the node was created)", g.URL, err)
		}
	}
	return g.print(n, table{head: []string{"NAME", "UUID", "STATE"}, rows: [][]string{{dash(n.Name), n.UUID, n.ProvisionState}}})
}

// NodeSet is `slipway node set`.
type NodeSet struct {
	Target
	Name         string   `help:"New name." placeholder:"NAME"`
	Driver       string   `help:"New driver." placeholder:"DRIVER"`
	Class        string   `help:"New resource class." placeholder:"CLASS"`
	DriverInfo   []string `help:"driver_info key=value; repeatable." placeholder:"K=V" sep:"none"`
	Property     []string `help:"Property key=value; repeatable." placeholder:"K=V" sep:"none"`
	InstanceInfo []string `help:"instance_info key=value; repeatable." placeholder:"K=V" sep:"none"`
	Unset        []string `help:"Field to remove, as a path: driver_info/x, name; repeatable." placeholder:"PATH" sep:"none"`
}

// Run sets.
func (c *NodeSet) Run(ctx context.Context, g *Globals) error {
	var ops []ironic.PatchOp
	for path, v := range map[string]string{"/name": c.Name, "/driver": c.Driver, "/resource_class": c.Class} {
		if v != "" {
			ops = append(ops, ironic.PatchOp{Op: "add", Path: path, Value: v})
		}
	}
	for _, group := range []struct {
		field string
		args  []string
	}{{"driver_info", c.DriverInfo}, {"properties", c.Property}, {"instance_info", c.InstanceInfo}} {
		m, err := pairs(group.args)
		if err != nil {
			return err
		}
		ops = append(ops, patchDict(group.field, m)...)
	}
	for _, p := range c.Unset {
		ops = append(ops, ironic.PatchOp{Op: "remove", Path: "/" + strings.TrimPrefix(p, "/")})
	}
	if len(ops) == 0 {
		return usage("nothing to set", "name at least one field: slipway node set --help")
	}
	cl := g.client()
	n, err := cl.node(ctx, c.Node)
	if err != nil {
		return explainError("set node "+c.Node, g.URL, err)
	}
	return explainError("set node "+c.Node, g.URL, cl.do(ctx, http.MethodPatch, "/v1/nodes/"+n.UUID, ops, nil))
}

// patchDict adds every key of m under field; keys are escaped by RFC 6901.
func patchDict(field string, m map[string]any) []ironic.PatchOp {
	esc := strings.NewReplacer("~", "~0", "/", "~1")
	ops := make([]ironic.PatchOp, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		ops = append(ops, ironic.PatchOp{Op: "add", Path: "/" + field + "/" + esc.Replace(k), Value: m[k]})
	}
	return ops
}

// NodeDelete is `slipway node delete`.
type NodeDelete struct {
	Nodes []string `arg:"" help:"Nodes to forget."`
}

// Run deletes.
func (c *NodeDelete) Run(ctx context.Context, g *Globals) error {
	cl := g.client()
	for _, ident := range c.Nodes {
		n, err := cl.node(ctx, ident)
		if err == nil {
			err = cl.do(ctx, http.MethodDelete, "/v1/nodes/"+n.UUID, nil, nil)
		}
		if err != nil {
			return explainError("delete node "+ident, g.URL, err)
		}
	}
	return nil
}
