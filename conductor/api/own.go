package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/slipway-metal/slipway/conductor/explain"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// routesOwn is Slipway's API: what Ironic's has no word for.
func (s *server) routesOwn(r chi.Router) {
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		s.problem(w, r, client(http.StatusNotFound, "There is no such resource."))
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		s.problem(w, r, client(http.StatusMethodNotAllowed, "The resource does not take %s.", r.Method))
	})
	r.With(limits(maxBody)).Post("/agent/{node}/events", s.agentEvents)
	r.With(limits(maxBody)).Get("/health", s.health)
	r.Group(func(r chi.Router) {
		r.Use(s.cfg.Auth)
		r.Get("/events", s.streamEvents) // streams: no time limit
		r.With(limits(maxBody)).Get("/nodes/{node}/explain", s.explainNode)
		r.With(limits(maxBody)).Get("/nodes/{node}/plan", s.planNode)
		r.With(limits(maxBody)).Get("/nodes/{node}/log", s.nodeLog)
	})
}

// problem answers with problem+json (RFC 9457).
func (s *server) problem(w http.ResponseWriter, r *http.Request, err error) {
	f := s.faultOf(r, err)
	raw, err := json.Marshal(map[string]any{
		"type": "about:blank", "title": http.StatusText(f.status), "status": f.status, "detail": f.text, "instance": r.URL.Path, "request_id": requestID(r),
	})
	if err != nil { // strings and a number always marshal
		raw = []byte("{}")
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(f.status)
	w.Write(raw) //nolint:errcheck // the client is gone; nobody is left to tell
}

func (s *server) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := s.store.Ping(ctx); err != nil {
		s.log.ErrorContext(ctx, "health: the database does not answer", "error", err.Error())
		s.problem(w, r, client(http.StatusServiceUnavailable, "The database does not answer; the conductor's log has the reason."))
		return
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{"status": "ok", "conductor": s.cfg.Conductor, "time": s.now().UTC()})
}

func (s *server) explainNode(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err != nil {
		s.problem(w, r, err)
		return
	}
	in := explain.Input{Node: n, Heartbeat: s.live.LastHeartbeat(n.UUID), HeartbeatEvery: s.cfg.HeartbeatEvery, Now: s.now()}
	in.Progress, in.ProgressAt = s.live.Progress(n.UUID)
	var from time.Time // a node at rest tells the last of every hop
	in.Work, err = s.store.WorkOf(r.Context(), n.UUID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		in.Work = nil
	case err != nil:
		s.problem(w, r, err)
		return
	default:
		from = in.Work.Created
	}
	if in.Evidence, err = s.store.LastEvidence(r.Context(), n.UUID, from); err != nil {
		s.problem(w, r, err)
		return
	}
	s.writeJSON(w, r, http.StatusOK, explain.Explain(in))
}

// logLines is how many kept events GET log shows at most.
const logLines = 2000

// nodeLog shows what the node's agent said last, and the hops and steps beside it.
func (s *server) nodeLog(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err == nil && s.cfg.Logs == nil {
		err = client(http.StatusNotFound, "This conductor keeps no logs of nodes.")
	}
	var kept []event.Event
	if err == nil {
		kept, err = s.cfg.Logs.Tail(n.UUID, logLines)
	}
	if err != nil {
		s.problem(w, r, err)
		return
	}
	if kept == nil {
		kept = []event.Event{}
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{"events": kept})
}

// Plan is what a deploy of the node would do to its disks.
type Plan struct {
	Node string `json:"node"`
	// Target is the disk that would be overwritten; nil with Error when none can be told.
	Target *PlanDisk  `json:"target"`
	Error  string     `json:"error,omitempty"`
	Disks  []PlanDisk `json:"disks"`
	Hints  string     `json:"root_device_hints"` // "" when the node has none
	Image  string     `json:"image_source"`
	// InspectedAt is how old the knowledge of the disks is.
	InspectedAt *time.Time `json:"inspected_at"`
}

// PlanDisk is one disk of the plan.
type PlanDisk struct {
	Name     string              `json:"name"`
	Identity agent.DiskIdentity  `json:"identity"`
	Model    string              `json:"model"`
	Size     int64               `json:"size"` // bytes
	Content  []agent.DiskContent `json:"content"`
	Destroy  bool                `json:"destroy"`
}

func (s *server) planNode(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err == nil && len(n.Inventory) == 0 {
		err = client(http.StatusConflict, "Node %s was never inspected, so its disks are unknown. Inspect it first.", n.UUID)
	}
	var p *Plan
	if err == nil {
		p, err = planOf(n)
	}
	if err != nil {
		s.problem(w, r, err)
		return
	}
	s.writeJSON(w, r, http.StatusOK, p)
}

func planOf(n *store.Node) (*Plan, error) {
	inv, err := n.Hardware()
	if err != nil {
		return nil, err
	}
	p := &Plan{Node: n.UUID, Disks: make([]PlanDisk, len(inv.Disks))}
	p.Image, _ = n.InstanceInfo["image_source"].(string)
	if at := n.InspectionFinishedAt; !at.IsZero() {
		p.InspectedAt = &at
	}
	hints, err := n.RootHints()
	if hs, err := agent.ParseHints(hints); err == nil {
		p.Hints = hs.String()
	}
	var root agent.Disk
	if err == nil {
		root, err = agent.PickRootDisk(inv.Disks, hints)
	}
	if err != nil {
		p.Error = err.Error()
	}
	for i, d := range inv.Disks {
		row := PlanDisk{Name: d.Name, Identity: d.Identity(), Size: d.Size, Content: append([]agent.DiskContent{}, d.Content...)}
		if d.Model != nil {
			row.Model = *d.Model
		}
		row.Destroy = err == nil && d.Name == root.Name && row.Identity == root.Identity()
		p.Disks[i] = row
		if row.Destroy {
			p.Target = &p.Disks[i]
		}
	}
	return p, nil
}
