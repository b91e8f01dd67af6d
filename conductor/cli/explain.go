package cli

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// explanation is /slipway/v1/nodes/X/explain.
type explanation struct {
	Node        string     `json:"node"`
	State       string     `json:"state"`
	Summary     string     `json:"summary"`
	Owner       string     `json:"owner"`
	Expecting   string     `json:"expecting"`
	Since       time.Time  `json:"since"`
	Deadline    *time.Time `json:"deadline"`
	Overdue     bool       `json:"overdue"`
	LikelyCause string     `json:"likely_cause"`
	Next        string     `json:"next"`
	Accepted    []string   `json:"accepted_verbs"`
	Hops        []struct {
		Hop      string         `json:"hop"`
		LastFact string         `json:"last_fact"`
		At       *time.Time     `json:"at"`
		OK       bool           `json:"ok"`
		Detail   map[string]any `json:"detail"`
	} `json:"hops"`
}

// ExplainCmd is `slipway explain`.
type ExplainCmd struct{ Target }

// Run explains.
func (c *ExplainCmd) Run(ctx context.Context, g *Globals) error {
	cl := g.client()
	what := "explain node " + c.Node
	n, err := cl.node(ctx, c.Node)
	if err != nil {
		return explainError(what, g.URL, err)
	}
	var e explanation
	if err := cl.do(ctx, http.MethodGet, "/slipway/v1/nodes/"+n.UUID+"/explain", nil, &e); err != nil {
		return explainError(what, g.URL, err)
	}
	if g.Output == "json" || g.Output == "yaml" {
		return g.print(e, table{})
	}
	now := g.Now()
	fmt.Fprintf(g.Stdout, "%s: %s\n\n", dash(n.Name), clean(e.Summary))
	rows := [][]string{{"state", e.State + ", for " + now.Sub(e.Since).Round(time.Second).String()}, {"whose move", e.Owner}, {"expected next", e.Expecting}}
	if e.Deadline != nil {
		left := e.Deadline.Sub(now).Round(time.Second)
		rows = append(rows, []string{"deadline", e.Deadline.Local().Format("15:04:05") + " (" + left.String() + " from now)"})
	}
	for _, r := range [][]string{{"likely cause", e.LikelyCause}, {"do next", e.Next}, {"accepted verbs", strings.Join(e.Accepted, ", ")}} {
		if r[1] != "" {
			rows = append(rows, r)
		}
	}
	if err := writeTable(g.Stdout, nil, rows); err != nil {
		return err
	}
	fmt.Fprintln(g.Stdout)
	t := [][]string{}
	for _, h := range e.Hops {
		ok, at := "-", "-"
		if h.At != nil {
			at = now.Sub(*h.At).Round(time.Second).String() + " ago"
			ok = map[bool]string{true: "ok", false: "BAD"}[h.OK]
		}
		t = append(t, []string{h.Hop, ok, at, dash(h.LastFact)})
	}
	return writeTable(g.Stdout, []string{"HOP", "", "WHEN", "LAST FACT"}, t)
}
