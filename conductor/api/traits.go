package api

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"

	"github.com/slipway-metal/slipway/conductor/store"
)

// maxTraits is Ironic's limit a node.
const maxTraits = 50

// traitForm takes custom traits and the name spaces of os-traits.
var traitForm = regexp.MustCompile(`^(CUSTOM|COMPUTE|HW|STORAGE|MISC|OWNER|ACCELERATOR|HOST|NET)_[A-Z0-9_]{1,248}$`)

func checkTrait(t string) error {
	if !traitForm.MatchString(t) {
		return bad("Schema error for trait: '%s' is not valid under any of the given schemas. Possible root cause: '%s' does not match '^CUSTOM_[A-Z0-9_]+$'", clip(t), clip(t))
	}
	return nil
}

func (s *server) listTraits(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{"traits": append([]string{}, n.Traits...)})
}

// changeTraits stores what change makes of the node's traits.
func (s *server) changeTraits(w http.ResponseWriter, r *http.Request, change func(n *store.Node) error) {
	n, err := s.node(r)
	if err == nil {
		_, err = s.store.UpdateNode(r.Context(), n.UUID, 0, func(n *store.Node) error {
			if err := change(n); err != nil {
				return err
			}
			if len(n.Traits) > maxTraits {
				return bad("Node %s can have at most %d traits", n.UUID, maxTraits)
			}
			return nil
		})
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) putTraits(w http.ResponseWriter, r *http.Request) {
	var body map[string]json.RawMessage
	if err := readJSON(r, &body); err != nil {
		s.fail(w, r, err)
		return
	}
	if _, ok := body["traits"]; !ok {
		s.fail(w, r, bad("A single node trait may be added via PUT /v1/nodes/<node identifier>/traits/<trait> with no body, or all node traits may be replaced via PUT /v1/nodes/<node identifier>/traits with the list of traits specified in the request body."))
		return
	}
	var list []string
	if json.Unmarshal(body["traits"], &list) != nil {
		s.fail(w, r, bad("Schema error for traits: %s is not of type 'array' of strings", brief(body["traits"])))
		return
	}
	for _, t := range list {
		if err := checkTrait(t); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	s.changeTraits(w, r, func(n *store.Node) error { n.Traits = list; return nil })
}

func (s *server) putTrait(w http.ResponseWriter, r *http.Request) {
	t := pathParam(r, "trait")
	if err := checkTrait(t); err != nil {
		s.fail(w, r, err)
		return
	}
	s.changeTraits(w, r, func(n *store.Node) error {
		if !slices.Contains(n.Traits, t) {
			n.Traits = append(slices.Clone(n.Traits), t)
		}
		return nil
	})
}

func (s *server) deleteTraits(w http.ResponseWriter, r *http.Request) {
	s.changeTraits(w, r, func(n *store.Node) error { n.Traits = nil; return nil })
}

func (s *server) deleteTrait(w http.ResponseWriter, r *http.Request) {
	t := pathParam(r, "trait")
	s.changeTraits(w, r, func(n *store.Node) error {
		i := slices.Index(n.Traits, t)
		if i < 0 {
			return client(http.StatusNotFound, "Node %s doesn't have a trait '%s'", n.UUID, clip(t))
		}
		n.Traits = slices.Delete(slices.Clone(n.Traits), i, i+1)
		return nil
	})
}
