package api

import (
	"net/http"
)

// empty answers a list of a resource that this release has none of, so that
// clients which list it go on.
func (s *server) empty(key string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.writeJSON(w, r, http.StatusOK, map[string]any{key: []any{}})
	}
}

// emptyOf is empty below a node, which must exist.
func (s *server) emptyOf(key string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.node(r); err != nil {
			s.fail(w, r, err)
			return
		}
		s.writeJSON(w, r, http.StatusOK, map[string]any{key: []any{}})
	}
}

func (s *server) noBIOSSetting(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err == nil {
		err = client(http.StatusNotFound, "Node %s doesn't have a BIOS setting '%s'", n.UUID, clip(pathParam(r, "setting")))
	}
	s.fail(w, r, err)
}

func (s *server) noAllocation(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err == nil {
		err = client(http.StatusNotFound, "Allocation for node %s was not found", n.UUID)
	}
	s.fail(w, r, err)
}

func (s *server) emptyMethods(w http.ResponseWriter, r *http.Request) {
	if _, err := s.node(r); err != nil {
		s.fail(w, r, err)
		return
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{})
}

func (s *server) volumeRoot(path string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v := s.view(r)
		below := "volume/"
		if path != "" {
			n, err := s.node(r)
			if err != nil {
				s.fail(w, r, err)
				return
			}
			below = "nodes/" + n.UUID + "/volume/"
		}
		s.writeJSON(w, r, http.StatusOK, map[string]any{
			"links": v.link(below), "connectors": v.link(below + "connectors"), "targets": v.link(below + "targets"),
		})
	}
}
