package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/slipway-metal/slipway/proto/event"
	"github.com/slipway-metal/slipway/proto/ironic"
)

// BuildVersion is set by main.
var BuildVersion = "unknown"

// VersionCmd is `slipway version`.
type VersionCmd struct{}

// Run prints.
func (c *VersionCmd) Run(ctx context.Context, g *Globals) error {
	rows := [][]string{{"command", BuildVersion + " (" + runtime.Version() + ")"}}
	var root struct {
		Default struct {
			Version string `json:"version"`
		} `json:"default_version"`
	}
	server := "no answer from " + g.URL
	if err := g.client().do(ctx, http.MethodGet, "/", nil, &root); err == nil {
		server = "Ironic API up to " + root.Default.Version + " at " + g.URL
	}
	rows = append(rows, []string{"conductor", server})
	return g.print(map[string]string{"command": BuildVersion, "conductor": server}, table{head: []string{"WHAT", "VERSION"}, rows: rows})
}

// DoctorCmd is `slipway doctor`.
type DoctorCmd struct{}

// check is one finding; Next is empty when all is well.
type check struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Why  string `json:"why"`
	Next string `json:"next,omitempty"`
}

// Run checks; it fails when a finding is bad.
func (c *DoctorCmd) Run(ctx context.Context, g *Globals) error {
	checks := append(hostChecks(), conductorChecks(ctx, g)...)
	t := table{head: []string{"OK", "WHAT", "FOUND", "NEXT"}}
	bad := 0
	for _, k := range checks {
		ok := "yes"
		if !k.OK {
			ok = "NO"
			bad++
		}
		t.rows = append(t.rows, []string{ok, k.What, k.Why, dash(k.Next)})
	}
	if err := g.print(checks, t); err != nil {
		return err
	}
	if bad > 0 {
		return &Error{What: fmt.Sprintf("%d of %d checks are bad", bad, len(checks)), Next: "the table's last column", Code: ExitFailed}
	}
	return nil
}

func hostChecks() []check {
	var out []check
	file := func(what, next string, paths ...string) {
		k := check{What: what, Next: next}
		for _, p := range paths {
			if _, err := os.Stat(p); err == nil {
				k.OK, k.Why, k.Next = true, p, ""
				break
			}
		}
		if !k.OK {
			k.Why = "not found: " + strings.Join(paths, ", ")
		}
		out = append(out, k)
	}
	file("iPXE for BIOS machines", "apt-get install ipxe", "/usr/lib/ipxe/undionly.kpxe")
	file("iPXE for UEFI machines", "apt-get install ipxe", "/usr/lib/ipxe/ipxe.efi")
	if os.Geteuid() == 0 {
		out = append(out, check{What: "DHCP and TFTP ports", OK: true, Why: "root may bind them"})
	} else {
		out = append(out, check{What: "DHCP and TFTP ports", OK: true, Why: "not root: serve --boot-interface needs CAP_NET_BIND_SERVICE and CAP_NET_RAW"})
	}
	if p, err := exec.LookPath("qemu-system-x86_64"); err == nil {
		out = append(out, check{What: "QEMU for labs", OK: true, Why: p})
	} else {
		out = append(out, check{What: "QEMU for labs", OK: true, Why: "not installed; only slipway-lab needs it"})
	}
	return out
}

func conductorChecks(ctx context.Context, g *Globals) []check {
	cl := g.client()
	if err := cl.do(ctx, http.MethodGet, "/v1", nil, nil); err != nil {
		return []check{{What: "conductor", Why: explainError("ask "+g.URL, g.URL, err).Error(), Next: "slipway serve, or name another --url"}}
	}
	out := []check{{What: "conductor", OK: true, Why: "answers at " + g.URL}}
	nodes, err := cl.nodes(ctx, url.Values{"detail": {"true"}})
	if err != nil {
		return append(out, check{What: "nodes", Why: err.Error(), Next: "the conductor's log"})
	}
	sick := 0
	for _, n := range nodes {
		if !failed(n.ProvisionState) && !n.Maintenance {
			continue
		}
		sick++
		out = append(out, check{What: "node " + n.Name + " " + n.UUID, Why: n.ProvisionState + " " + n.LastError, Next: "slipway explain " + n.UUID})
	}
	return append(out, check{What: "nodes", OK: true, Why: fmt.Sprintf("%d, of which %d failed or in maintenance", len(nodes), sick)})
}

// NodeLogs is `slipway node logs`.
type NodeLogs struct{ Target }

// Run prints the history, then the log lines that the conductor still holds.
func (c *NodeLogs) Run(ctx context.Context, g *Globals) error {
	cl := g.client()
	n, err := cl.node(ctx, c.Node)
	if err != nil {
		return explainError("logs of node "+c.Node, g.URL, err)
	}
	var hist struct {
		History []ironic.History `json:"history"`
	}
	if err := cl.do(ctx, http.MethodGet, "/v1/nodes/"+n.UUID+"/history?detail=true", nil, &hist); err != nil {
		return explainError("logs of node "+c.Node, g.URL, err)
	}
	var log struct {
		Events []event.Event `json:"events"`
	}
	if err := cl.do(ctx, http.MethodGet, "/slipway/v1/nodes/"+n.UUID+"/log", nil, &log); err != nil && !isNotFound(err) {
		return explainError("logs of node "+c.Node, g.URL, err)
	}
	t := table{head: []string{"TIME", "WHAT"}}
	for _, h := range hist.History {
		at := "-"
		if h.CreatedAt != nil {
			at = h.CreatedAt.Local().Format("01-02 15:04:05")
		}
		t.rows = append(t.rows, []string{at, dash(h.Severity) + "  " + h.Event})
	}
	for _, e := range log.Events {
		if line := describe(e); line != "" {
			t.rows = append(t.rows, []string{e.Time.Local().Format("01-02 15:04:05"), line})
		}
	}
	return g.print(map[string]any{"history": hist.History, "events": log.Events}, t)
}
