package api

import (
	"net/http"
)

func version(v *view) map[string]any {
	return map[string]any{
		"id": "v1", "status": "CURRENT", "min_version": "1.1", "version": "1.115",
		"links": []map[string]string{{"href": v.base + "/v1/", "rel": "self"}},
	}
}

func (s *server) root(w http.ResponseWriter, r *http.Request) {
	v := s.view(r)
	s.writeJSON(w, r, http.StatusOK, map[string]any{
		"name":            "OpenStack Ironic API",
		"description":     "Slipway provisions bare-metal machines and speaks Ironic's API.",
		"default_version": version(v),
		"versions":        []any{version(v)},
	})
}

// resources are the collections that GET /v1 names, by microversion.
var resources = []struct {
	name  string
	since minor
}{
	{"chassis", 1}, {"nodes", 1}, {"ports", 1}, {"drivers", 1}, {"lookup", 22}, {"heartbeat", 22}, {"portgroups", 23},
	{"volume", 32}, {"conductors", 49}, {"allocations", 52}, {"events", 54}, {"deploy_templates", 55}, {"shards", 82},
	{"continue_inspection", 84}, {"runbooks", 92}, {"inspection_rules", 96},
}

func (s *server) rootV1(w http.ResponseWriter, r *http.Request) {
	v := s.view(r)
	out := map[string]any{
		"id": "v1", "version": version(v),
		"links": []map[string]string{
			{"href": v.base + "/v1/", "rel": "self"},
			{"href": "https://docs.openstack.org//ironic/latest/contributor//webapi.html", "rel": "describedby", "type": "text/html"},
		},
		"media_types": map[string]string{"base": "application/json", "type": "application/vnd.openstack.ironic.v1+json"},
	}
	for _, c := range resources {
		if c.since <= v.minor {
			out[c.name] = v.link(c.name + "/")
		}
	}
	s.writeJSON(w, r, http.StatusOK, out)
}
