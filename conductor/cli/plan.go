package cli

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// plan is /slipway/v1/nodes/X/plan.
type plan struct {
	Node        string     `json:"node"`
	Target      *planDisk  `json:"target"`
	Error       string     `json:"error,omitempty"`
	Disks       []planDisk `json:"disks"`
	Hints       string     `json:"root_device_hints"`
	Image       string     `json:"image_source"`
	InspectedAt *time.Time `json:"inspected_at"`
}

type planDisk struct {
	Name     string `json:"name"`
	Identity struct {
		WWN    string `json:"wwn"`
		Serial string `json:"serial"`
		Path   string `json:"path"`
	} `json:"identity"`
	Model   string `json:"model"`
	Size    int64  `json:"size"` // bytes
	Content []struct {
		Kind  string `json:"kind"`
		Type  string `json:"type"`
		Label string `json:"label"`
		Size  int64  `json:"size"` // bytes
	} `json:"content"`
	Destroy bool `json:"destroy"`
}

// PlanCmd is `slipway plan`.
type PlanCmd struct{ Target }

// Run shows; it fails when no root disk can be told.
func (c *PlanCmd) Run(ctx context.Context, g *Globals) error {
	cl := g.client()
	what := "plan node " + c.Node
	n, err := cl.node(ctx, c.Node)
	if err != nil {
		return explainError(what, g.URL, err)
	}
	var p plan
	if err := cl.do(ctx, http.MethodGet, "/slipway/v1/nodes/"+n.UUID+"/plan", nil, &p); err != nil {
		return explainError(what, g.URL, err)
	}
	t := table{head: []string{"DISK", "SIZE", "IDENTITY", "MODEL", "A DEPLOY", "ON IT NOW"}}
	for _, d := range p.Disks {
		id := d.Identity.WWN
		if id == "" {
			id = d.Identity.Serial
		}
		if id == "" {
			id = d.Identity.Path
		}
		fate := "leaves it"
		if d.Destroy {
			fate = "OVERWRITES it"
		}
		var on []string
		for _, x := range d.Content {
			on = append(on, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s", x.Kind, x.Type, x.Label)), " "))
		}
		if len(on) == 0 {
			on = []string{"nothing known"}
		}
		t.rows = append(t.rows, []string{d.Name, size(float64(d.Size)), dash(id), dash(d.Model), fate, strings.Join(on, ", ")})
	}
	if err := g.print(p, t); err != nil {
		return err
	}
	if p.Error != "" {
		return &Error{What: what + ": a deploy would fail", Why: p.Error, Next: "set hints: slipway node set " + c.Node + ` --property root_device='{"serial": "…"}'`, Code: ExitFailed}
	}
	return nil
}
