package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// identOf reads the node's UUID or name from the path.
func identOf(r *http.Request) (string, error) {
	ident := pathParam(r, "node")
	if !isUUID(ident) && !nameForm.MatchString(ident) {
		return "", edge(http.StatusBadRequest, "Expected UUID or name for node: "+clip(ident))
	}
	return ident, nil
}

// node finds the node that the path names.
func (s *server) node(r *http.Request) (*store.Node, error) {
	ident, err := identOf(r)
	if err != nil {
		return nil, err
	}
	return s.findNode(r.Context(), ident, http.StatusNotFound)
}

func (s *server) findNode(ctx context.Context, ident string, missing int) (*store.Node, error) {
	n, err := s.store.Node(ctx, ident)
	if errors.Is(err, store.ErrNotFound) {
		return nil, client(missing, "Node %s could not be found.", clip(ident))
	}
	if err != nil {
		return nil, fmt.Errorf("find node %s: %w", ident, err)
	}
	return n, nil
}

func (s *server) listNodes(w http.ResponseWriter, r *http.Request) { s.nodeList(w, r, false) }

func (s *server) listNodesDetail(w http.ResponseWriter, r *http.Request) { s.nodeList(w, r, true) }

func (s *server) nodeList(w http.ResponseWriter, r *http.Request, detail bool) {
	p, err := readPage(r, nodes)
	if err == nil && detail && p.fields != nil {
		err = bad("Can't fetch a subset of fields with 'detail' set")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	p.detail = p.detail || detail
	f, keep, err := nodeFilter(p)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	found, err := s.pageOfNodes(r.Context(), p, f, keep)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	v := s.view(r)
	rows := make([]json.RawMessage, len(found))
	for i, n := range found {
		if rows[i], err = nodes.render(v, n, pickOf(p, nodes)); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	body := map[string]any{"nodes": rows}
	if len(found) == p.limit {
		path := "nodes"
		if detail {
			path = "nodes/detail"
		}
		body["next"] = p.next(v, path, found[len(found)-1].UUID)
	}
	s.writeJSON(w, r, http.StatusOK, body)
}

func (s *server) pageOfNodes(ctx context.Context, p *page, f store.NodeFilter, keep func(*store.Node) bool) ([]*store.Node, error) {
	if p.marker != "" {
		if _, err := s.findNode(ctx, p.marker, http.StatusNotFound); err != nil {
			return nil, err
		}
	}
	f.Marker, f.SortKey, f.SortDesc = p.marker, p.sortKey, p.desc
	if keep == nil {
		f.Limit = p.limit
	}
	found, err := s.store.Nodes(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	if keep != nil {
		found = slices.DeleteFunc(found, func(n *store.Node) bool { return !keep(n) })
		found = found[:min(len(found), p.limit)]
	}
	return found, nil
}

// nodeFilter reads the filters. Those the store does not know are the returned
// function's, nil when none is asked for.
func nodeFilter(p *page) (f store.NodeFilter, keep func(*store.Node) bool, err error) {
	var errs []error
	text := func(name string, since minor) string {
		v, err := p.text(name, since)
		errs = append(errs, err)
		return v
	}
	tri := func(name string, since minor) *bool {
		v, err := p.tristate(name, since)
		errs = append(errs, err)
		return v
	}
	f = store.NodeFilter{
		ProvisionState: text("provision_state", 9), Driver: text("driver", 16), ResourceClass: text("resource_class", 21),
		Owner: text("owner", 50), Lessee: text("lessee", 65), InstanceUUID: text("instance_uuid", 1),
		ConductorGroup: text("conductor_group", 46), Fault: text("fault", 42), DescriptionContains: text("description_contains", 51),
		Maintenance: tri("maintenance", 1), Associated: tri("associated", 1), Retired: tri("retired", 61),
	}
	if f.ProvisionState != "" {
		if _, ok := state.States[state.State(f.ProvisionState)]; !ok {
			errs = append(errs, bad("Provision state \"%s\" is not valid", clip(f.ProvisionState)))
		}
	}
	var tests []func(*store.Node) bool
	if v := text("chassis_uuid", 1); v != "" {
		tests = append(tests, func(n *store.Node) bool { return n.ChassisUUID == v })
	}
	if v := text("shard", 82); v != "" {
		tests = append(tests, func(n *store.Node) bool { return slices.Contains(strings.Split(v, ","), n.Shard) })
	}
	if v := tri("sharded", 82); v != nil {
		tests = append(tests, func(n *store.Node) bool { return (n.Shard != "") == *v })
	}
	if v := text("parent_node", 83); v != "" {
		tests = append(tests, func(n *store.Node) bool { return n.ParentNode == v })
	}
	if v := text("instance_name", 104); v != "" {
		tests = append(tests, func(n *store.Node) bool { return n.InstanceName == v })
	}
	tri("include_children", 83) // children are listed like any node
	if len(tests) > 0 {
		keep = func(n *store.Node) bool {
			return !slices.ContainsFunc(tests, func(ok func(*store.Node) bool) bool { return !ok(n) })
		}
	}
	for _, err := range errs {
		if err != nil {
			return f, nil, err
		}
	}
	return f, keep, nil
}

func (s *server) getNode(w http.ResponseWriter, r *http.Request) { show(s, w, r, nodes, s.node) }

func (s *server) createNode(w http.ResponseWriter, r *http.Request) {
	n, err := s.newNode(r)
	if err == nil {
		err = s.store.CreateNode(r.Context(), n)
	}
	if err != nil {
		s.fail(w, r, nodeConflict(err))
		return
	}
	w.Header().Set("Location", s.view(r).base+"/v1/nodes/"+n.UUID)
	write(s, w, r, http.StatusCreated, nodes, n, nodes.all)
}

func (s *server) newNode(r *http.Request) (*store.Node, error) {
	var body map[string]json.RawMessage
	if err := readJSON(r, &body); err != nil {
		return nil, err
	}
	if _, ok := body["driver"]; !ok {
		return nil, bad("Schema error for node: 'driver' is a required property")
	}
	n := &store.Node{
		UUID: newUUID(), ProvisionState: state.Enroll, CreatedAt: s.now().UTC(),
		DriverInfo: map[string]any{}, DriverInternalInfo: map[string]any{}, InstanceInfo: map[string]any{},
		Properties: map[string]any{}, Extra: map[string]any{}, NetworkData: map[string]any{},
	}
	if minorOf(r) < 11 { // before 1.11 nodes were born in "available"
		n.ProvisionState = state.Available
	}
	if err := nodes.assign(minorOf(r), n, body); err != nil {
		return nil, err
	}
	return n, s.checkNode(r.Context(), minorOf(r), n, "create")
}

// checkNode holds what concerns more than one field.
func (s *server) checkNode(ctx context.Context, m minor, n *store.Node, verb string) error {
	if n.Name != "" {
		form := nameForm
		if m < minorUnrestrictedName {
			form = hostForm
		}
		if !form.MatchString(n.Name) || isUUID(n.Name) {
			return bad("Cannot %s node with invalid name '%s'", verb, clip(n.Name))
		}
	}
	if n.ParentNode != "" {
		if n.ParentNode == n.UUID {
			return bad("Node %s can not be its own parent", n.UUID)
		}
		if _, err := s.findNode(ctx, n.ParentNode, http.StatusBadRequest); err != nil {
			return err
		}
	}
	if n.ProtectedReason != "" && !n.Protected {
		return bad("The protected_reason field can only be set when protected is true")
	}
	if n.RetiredReason != "" && !n.Retired {
		return bad("The retired_reason field can only be set when retired is true")
	}
	return s.drivers.fill(n)
}

func nodeConflict(err error) error {
	var e *store.ExistsError
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case strings.HasPrefix(e.Value, "instance"):
		return client(http.StatusConflict, "Instance %s is already associated with a node, it cannot be associated with this other node.", lastWord(e.Value))
	case strings.HasPrefix(e.Value, "name"):
		return client(http.StatusConflict, "A node with name %s already exists.", lastWord(e.Value))
	case strings.HasPrefix(strings.ToLower(e.Value), "uuid"):
		return client(http.StatusConflict, "A node with UUID %s already exists.", lastWord(e.Value))
	}
	return err
}

func lastWord(s string) string { return s[strings.LastIndexByte(s, ' ')+1:] }

func (s *server) deleteNode(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err == nil {
		err = deletable(n)
	}
	if err == nil {
		err = s.idle(r.Context(), n)
	}
	if err == nil {
		err = s.store.DeleteNode(r.Context(), n.UUID)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.live.forget(n.UUID)
	if s.cfg.Logs != nil {
		s.cfg.Logs.Forget(n.UUID)
	}
	w.WriteHeader(http.StatusNoContent)
}

// idle refuses to delete a node whose agent is at work, also in maintenance: it
// would go on writing with nobody left who could switch the machine off.
func (s *server) idle(ctx context.Context, n *store.Node) error {
	if slices.Contains(state.Deletable, n.ProvisionState) || info(n, store.KeyToken) == "" {
		return nil
	}
	_, err := s.store.WorkOf(ctx, n.UUID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("node %s: its work: %w", n.UUID, err)
	}
	return client(http.StatusConflict, "Can not delete node \"%s\" while it is in provision state \"%s\": its agent is at work. Abort that or wait for its end, then delete.", n.UUID, n.ProvisionState)
}

func deletable(n *store.Node) error {
	switch {
	case n.Protected:
		return client(http.StatusForbidden, "Node %s is protected and can not be undeployed, rebuilt or deleted", n.UUID)
	case n.Reservation != "":
		return locked(n)
	case n.Maintenance || slices.Contains(state.Deletable, n.ProvisionState):
		if n.InstanceUUID != "" && !n.Maintenance {
			return client(http.StatusConflict, "Node %s is associated with instance %s.", n.UUID, n.InstanceUUID)
		}
		return nil
	}
	names := make([]string, len(state.Deletable))
	for i, st := range state.Deletable {
		names[i] = "'" + string(st) + "'"
	}
	return client(http.StatusConflict, "Can not delete node \"%s\" while it is in provision state \"%s\". Valid provision states to perform deletion are: \"(%s)\", or set the node into maintenance mode",
		n.UUID, n.ProvisionState, strings.Join(names, ", "))
}

func locked(n *store.Node) error {
	return client(http.StatusConflict, "Node %s is locked by host %s, please retry after the current operation is completed.", n.UUID, n.Reservation)
}

// pathParam is a URL parameter, unescaped.
func pathParam(r *http.Request, name string) string {
	return unescape(chi.URLParam(r, name))
}
