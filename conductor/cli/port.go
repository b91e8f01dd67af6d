package cli

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/slipway-metal/slipway/proto/ironic"
)

// PortCmd is `slipway port`.
type PortCmd struct {
	List   PortList   `cmd:"" help:"List ports."`
	Create PortCreate `cmd:"" help:"Add a NIC to a node."`
	Delete PortDelete `cmd:"" help:"Remove ports."`
}

// PortList is `slipway port list`.
type PortList struct {
	Node string `help:"Only ports of this node." placeholder:"NODE"`
}

// Run lists.
func (c *PortList) Run(ctx context.Context, g *Globals) error {
	cl, q := g.client(), url.Values{"detail": {"true"}}
	if c.Node != "" {
		n, err := cl.node(ctx, c.Node)
		if err != nil {
			return explainError("list ports of "+c.Node, g.URL, err)
		}
		q.Set("node_uuid", n.UUID)
	}
	var page ironic.PortList
	if err := cl.do(ctx, http.MethodGet, "/v1/ports?"+q.Encode(), nil, &page); err != nil {
		return explainError("list ports", g.URL, err)
	}
	t := table{head: []string{"UUID", "ADDRESS", "NODE", "PXE"}}
	for _, p := range page.Ports {
		pxe := "no"
		if p.PXEEnabled {
			pxe = "yes"
		}
		t.rows = append(t.rows, []string{p.UUID, p.Address, p.NodeUUID, pxe})
	}
	return g.print(page.Ports, t)
}

// PortCreate is `slipway port create`.
type PortCreate struct {
	MAC   string `arg:"" help:"MAC address."`
	Node  string `help:"The node it belongs to." required:"" placeholder:"NODE"`
	NoPXE bool   `help:"The machine does not boot from this NIC." name:"no-pxe"`
}

// Run creates.
func (c *PortCreate) Run(ctx context.Context, g *Globals) error {
	cl := g.client()
	n, err := cl.node(ctx, c.Node)
	if err != nil {
		return explainError("create port "+c.MAC, g.URL, err)
	}
	pxe := !c.NoPXE
	var p ironic.Port
	if err := cl.do(ctx, http.MethodPost, "/v1/ports", ironic.PortCreate{NodeUUID: n.UUID, Address: strings.ToLower(c.MAC), PXEEnabled: &pxe}, &p); err != nil {
		return explainError("create port "+c.MAC, g.URL, err)
	}
	return g.print(p, table{head: []string{"UUID", "ADDRESS", "NODE"}, rows: [][]string{{p.UUID, p.Address, p.NodeUUID}}})
}

// PortDelete is `slipway port delete`.
type PortDelete struct {
	Ports []string `arg:"" help:"UUIDs of ports."`
}

// Run deletes.
func (c *PortDelete) Run(ctx context.Context, g *Globals) error {
	for _, p := range c.Ports {
		if err := g.client().do(ctx, http.MethodDelete, "/v1/ports/"+url.PathEscape(p), nil, nil); err != nil {
			return explainError("delete port "+p, g.URL, err)
		}
	}
	return nil
}

// DriverCmd is `slipway driver`.
type DriverCmd struct {
	List DriverList `cmd:"" help:"List drivers, or the settings of one."`
}

// DriverList is `slipway driver list`.
type DriverList struct {
	Name string `arg:"" optional:"" help:"Show this driver's driver_info settings."`
}

// Run lists.
func (c *DriverList) Run(ctx context.Context, g *Globals) error {
	if c.Name != "" {
		var props map[string]string
		if err := g.client().do(ctx, http.MethodGet, "/v1/drivers/"+url.PathEscape(c.Name)+"/properties", nil, &props); err != nil {
			return explainError("settings of driver "+c.Name, g.URL, err)
		}
		t := table{head: []string{"DRIVER_INFO", "MEANING"}}
		for _, k := range slices.Sorted(maps.Keys(props)) {
			t.rows = append(t.rows, []string{k, props[k]})
		}
		return g.print(props, t)
	}
	var list struct {
		Drivers []ironic.Driver `json:"drivers"`
	}
	if err := g.client().do(ctx, http.MethodGet, "/v1/drivers", nil, &list); err != nil {
		return explainError("list drivers", g.URL, err)
	}
	t := table{head: []string{"NAME", "CONDUCTORS"}}
	for _, d := range list.Drivers {
		t.rows = append(t.rows, []string{d.Name, strings.Join(d.Hosts, " ")})
	}
	return g.print(list.Drivers, t)
}
