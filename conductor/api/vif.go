package api

import (
	"net/http"
	"sort"

	"github.com/slipway-metal/slipway/conductor/store"
)

// vifKey is where Ironic keeps a port's attached VIF, in internal_info.
const vifKey = "tenant_vif_port_id"

func vifOf(p *store.Port) string {
	id, _ := p.InternalInfo[vifKey].(string)
	return id
}

func (s *server) nodePorts(r *http.Request) (*store.Node, []*store.Port, error) {
	n, err := s.node(r)
	if err != nil {
		return nil, nil, err
	}
	ports, err := s.store.Ports(r.Context(), store.PortFilter{NodeUUID: n.UUID})
	return n, ports, err
}

func (s *server) listVIFs(w http.ResponseWriter, r *http.Request) {
	_, ports, err := s.nodePorts(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	out := []map[string]string{}
	for _, p := range ports {
		if id := vifOf(p); id != "" {
			out = append(out, map[string]string{"id": id})
		}
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{"vifs": out})
}

func (s *server) attachVIF(w http.ResponseWriter, r *http.Request) {
	var body struct {
		ID       string `json:"id"`
		PortUUID string `json:"port_uuid"`
	}
	err := readJSON(r, &body)
	switch {
	case err != nil:
	case body.ID == "":
		err = bad("Schema error for vif: 'id' is a required property")
	case !isUUID(body.ID) && !nameForm.MatchString(body.ID):
		err = bad("Schema error for vif: id '%s' is neither a UUID nor a name", clip(body.ID))
	case body.PortUUID != "" && minorOf(r) < 67:
		err = notAcceptable()
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n, ports, err := s.nodePorts(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	sort.SliceStable(ports, func(i, j int) bool { return ports[i].PXEEnabled && !ports[j].PXEEnabled })
	free := ""
	for _, p := range ports {
		switch vif := vifOf(p); {
		case vif == body.ID:
			s.fail(w, r, client(http.StatusConflict, "Unable to attach VIF because VIF %s is already attached to Ironic Port %s", body.ID, p.UUID))
			return
		case vif == "" && free == "" && (body.PortUUID == "" || body.PortUUID == p.UUID):
			free = p.UUID
		}
	}
	if free == "" {
		s.fail(w, r, bad("Unable to attach VIF %s, not enough free physical ports on node %s.", body.ID, n.UUID))
		return
	}
	s.storeVIF(w, r, free, body.ID)
}

func (s *server) detachVIF(w http.ResponseWriter, r *http.Request) {
	n, ports, err := s.nodePorts(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	id := pathParam(r, "vif")
	for _, p := range ports {
		if vifOf(p) == id {
			s.storeVIF(w, r, p.UUID, "")
			return
		}
	}
	s.fail(w, r, bad("Unable to detach VIF %s from node %s because it is not attached to it.", clip(id), n.UUID))
}

func (s *server) storeVIF(w http.ResponseWriter, r *http.Request, port, vif string) {
	_, err := s.store.UpdatePort(r.Context(), port, func(p *store.Port) error {
		info := map[string]any{}
		for k, v := range p.InternalInfo {
			info[k] = v
		}
		delete(info, vifKey)
		if vif != "" {
			info[vifKey] = vif
		}
		p.InternalInfo = info
		return nil
	})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
