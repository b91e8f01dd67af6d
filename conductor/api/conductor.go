package api

import (
	"net/http"
)

func (s *server) renderConductor(v *view, detail bool) map[string]any {
	out := map[string]any{
		"hostname": s.cfg.Conductor, "conductor_group": "", "alive": true, "links": v.link("conductors/" + s.cfg.Conductor),
	}
	if detail {
		names := make([]string, len(s.drivers))
		for i, d := range s.drivers {
			names[i] = d.Name
		}
		out["drivers"], out["created_at"], out["updated_at"] = names, timeOrNull(s.started), timeOrNull(s.started)
	}
	return out
}

func (s *server) listConductors(w http.ResponseWriter, r *http.Request) {
	detail, err := parseBool(orDefault(r.URL.Query().Get("detail"), "false"))
	if err != nil {
		s.fail(w, r, bad("Invalid detail: %s", err))
		return
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{"conductors": []any{s.renderConductor(s.view(r), detail)}})
}

func (s *server) getConductor(w http.ResponseWriter, r *http.Request) {
	if name := pathParam(r, "conductor"); name != s.cfg.Conductor {
		s.fail(w, r, client(http.StatusNotFound, "Conductor %s could not be found.", clip(name)))
		return
	}
	s.writeJSON(w, r, http.StatusOK, s.renderConductor(s.view(r), true))
}
