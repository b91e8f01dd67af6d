package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/slipway-metal/slipway/conductor/store"
)

type portField = field[*store.Port]

// ports is the port's table (proto/testdata/fields.json; a test holds them equal).
var ports = &table[*store.Port]{what: "port", fields: portTable()}

func portText(name string, since minor, at func(*store.Port) *string) portField {
	return portField{
		name: name, since: since,
		get: func(_ *view, p *store.Port) any { return orNull(*at(p)) },
		set: func(p *store.Port, value any) error { return setText(maxText, at(p), value) },
	}
}

// portNull is a field of Ironic's that Slipway does not keep: always null.
func portNull(name string, since minor) portField {
	return portField{name: name, since: since, get: func(*view, *store.Port) any { return nil }}
}

func portTable() []portField {
	type p = *store.Port
	show := func(name string, since minor, get func(p) any) portField {
		return portField{name: name, since: since, sort: true, get: func(_ *view, o p) any { return get(o) }}
	}
	uuid := show("uuid", 1, func(o p) any { return o.UUID })
	uuid.brief, uuid.createOnly = true, true
	uuid.set = func(o p, value any) error {
		text, ok := value.(string)
		if !ok || !isUUID(text) {
			return fmt.Errorf("%s is not a 'uuid'", brief(value))
		}
		o.UUID = text
		return nil
	}
	address := show("address", 1, func(o p) any { return o.Address })
	address.brief = true
	address.set = func(o p, value any) error {
		text, _ := value.(string)
		mac, ok := normalMAC(text)
		if !ok {
			return fmt.Errorf("Expected valid MAC address for address: %s", clip(fmt.Sprint(value)))
		}
		o.Address = mac
		return nil
	}
	node := show("node_uuid", 1, func(o p) any { return o.NodeUUID })
	node.set = func(o p, value any) error {
		text, ok := value.(string)
		if !ok || !isUUID(text) {
			return fmt.Errorf("Expected a UUID but received %s", clip(fmt.Sprint(value)))
		}
		o.NodeUUID = text
		return nil
	}
	pxe := show("pxe_enabled", 19, func(o p) any { return o.PXEEnabled })
	pxe.set = func(o p, value any) error {
		if value == nil {
			o.PXEEnabled = true
			return nil
		}
		return setBool(&o.PXEEnabled, value)
	}
	smart := show("is_smartnic", 53, func(o p) any { return o.IsSmartNIC })
	smart.set = func(o p, value any) error { return setBool(&o.IsSmartNIC, value) }
	group := portText("portgroup_uuid", 24, func(o p) *string { return &o.PortgroupUUID })
	group.set = func(o p, value any) error {
		if value != nil {
			return fmt.Errorf("portgroup %s could not be found", brief(value))
		}
		o.PortgroupUUID = ""
		return nil
	}
	links := portField{name: "links", since: 1, brief: true, get: func(v *view, o p) any { return v.link("ports/" + o.UUID) }}
	return []portField{
		uuid,
		show("created_at", 1, func(o p) any { return timeOrNull(o.CreatedAt) }),
		show("updated_at", 1, func(o p) any { return timeOrNull(o.UpdatedAt) }),
		address,
		{name: "extra", since: 1,
			get: func(_ *view, o p) any { return maskSecrets(o.Extra) },
			set: func(o p, value any) error { return setObject(&o.Extra, value) }},
		{name: "internal_info", since: 18, get: func(_ *view, o p) any { return maskSecrets(o.InternalInfo) }},
		smart,
		{name: "local_link_connection", since: 19,
			get: func(_ *view, o p) any { return object(o.LocalLink) },
			set: func(o p, value any) error { return setObject(&o.LocalLink, value) }},
		portText("physical_network", 34, func(o p) *string { return &o.PhysicalNetwork }),
		pxe, node,
		portText("name", 88, func(o p) *string { return &o.Name }),
		portText("description", 97, func(o p) *string { return &o.Description }),
		portNull("vendor", 100),
		portNull("category", 101),
		{name: "available_for_dynamic_portgroup", since: 111, get: func(*view, p) any { return true }},
		links, group,
	}
}

func (s *server) listPorts(w http.ResponseWriter, r *http.Request) { s.portList(w, r, "", false) }

func (s *server) listPortsDetail(w http.ResponseWriter, r *http.Request) { s.portList(w, r, "", true) }

func (s *server) listNodePorts(w http.ResponseWriter, r *http.Request) { s.portsOfNode(w, r, false) }

func (s *server) listNodePortsDetail(w http.ResponseWriter, r *http.Request) {
	s.portsOfNode(w, r, true)
}

func (s *server) portsOfNode(w http.ResponseWriter, r *http.Request, detail bool) {
	n, err := s.node(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.portList(w, r, n.UUID, detail)
}

// portList lists the ports of one node, or of all when node is "".
func (s *server) portList(w http.ResponseWriter, r *http.Request, node string, detail bool) {
	p, err := readPage(r, ports)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	p.detail = p.detail || detail
	f, none, err := s.portFilter(r.Context(), p, node)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	var found []*store.Port
	if !none {
		if found, err = s.store.Ports(r.Context(), f); err != nil {
			if errors.Is(err, store.ErrNotFound) {
				err = client(http.StatusNotFound, "Port %s could not be found.", clip(p.marker))
			}
			s.fail(w, r, err)
			return
		}
	}
	v := s.view(r)
	rows := make([]json.RawMessage, len(found))
	for i, o := range found {
		if rows[i], err = ports.render(v, o, pickOf(p, ports)); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	body := map[string]any{"ports": rows}
	if len(found) == p.limit {
		path := strings.TrimPrefix(strings.TrimSuffix(r.URL.Path, "/"), "/v1/")
		body["next"] = p.next(v, path, found[len(found)-1].UUID)
	}
	s.writeJSON(w, r, http.StatusOK, body)
}

// portFilter reads the filters; none is true when nothing can match.
func (s *server) portFilter(ctx context.Context, p *page, node string) (f store.PortFilter, none bool, err error) {
	f = store.PortFilter{NodeUUID: node, Marker: p.marker, Limit: p.limit, SortKey: p.sortKey, SortDesc: p.desc}
	if a := p.query.Get("address"); a != "" {
		mac, ok := normalMAC(a)
		if !ok {
			return f, false, bad("Expected valid MAC address for address: %s", clip(a))
		}
		f.Address = mac
	}
	ident := p.query.Get("node_uuid")
	if name, err := p.text("node", 6); err != nil || name != "" {
		if err != nil {
			return f, false, err
		}
		ident = name
	}
	if ident != "" {
		n, err := s.findNode(ctx, ident, http.StatusNotFound)
		if err != nil {
			var gone *fault
			if errors.As(err, &gone) && isUUID(ident) {
				return f, true, nil // Ironic: no ports, rather than no such node
			}
			return f, false, err
		}
		if node != "" && n.UUID != node {
			return f, true, nil
		}
		f.NodeUUID = n.UUID
	}
	if group, err := p.text("portgroup", 24); err != nil || group != "" {
		return f, true, err
	}
	return f, false, nil
}

func (s *server) port(r *http.Request) (*store.Port, error) {
	ident := pathParam(r, "port")
	if !isUUID(ident) && (minorOf(r) < 88 || !nameForm.MatchString(ident)) {
		return nil, edge(http.StatusBadRequest, "Expected UUID for port: "+clip(ident))
	}
	p, err := s.store.Port(r.Context(), ident)
	if errors.Is(err, store.ErrNotFound) {
		return nil, client(http.StatusNotFound, "Port %s could not be found.", clip(ident))
	}
	return p, err
}

func (s *server) getPort(w http.ResponseWriter, r *http.Request) { show(s, w, r, ports, s.port) }

func (s *server) createPort(w http.ResponseWriter, r *http.Request) {
	p, err := s.newPort(r)
	if err == nil {
		err = s.portConflict(r.Context(), p, s.store.CreatePort(r.Context(), p))
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Location", s.view(r).base+"/v1/ports/"+p.UUID)
	write(s, w, r, http.StatusCreated, ports, p, ports.all)
}

func (s *server) newPort(r *http.Request) (*store.Port, error) {
	var body map[string]json.RawMessage
	if err := readJSON(r, &body); err != nil {
		return nil, err
	}
	for _, name := range []string{"address", "node_uuid"} {
		if _, ok := body[name]; !ok {
			return nil, bad("Schema error for port: '%s' is a required property", name)
		}
	}
	p := &store.Port{UUID: newUUID(), PXEEnabled: true, CreatedAt: s.now().UTC(),
		LocalLink: map[string]any{}, Extra: map[string]any{}, InternalInfo: map[string]any{}}
	if err := ports.assign(minorOf(r), p, body); err != nil {
		return nil, plainSchema(err)
	}
	return p, s.checkPort(r.Context(), p)
}

// plainSchema drops the prefix from the MAC's refusal, which Ironic words without it.
func plainSchema(err error) error {
	var f *fault
	if errors.As(err, &f) {
		if i := strings.Index(f.text, "Expected "); i > 0 {
			return bad("%s", f.text[i:])
		}
	}
	return err
}

func (s *server) checkPort(ctx context.Context, p *store.Port) error {
	if p.Name != "" && (!nameForm.MatchString(p.Name) || isUUID(p.Name)) {
		return bad("Cannot create or update port with invalid name '%s'", clip(p.Name))
	}
	_, err := s.findNode(ctx, p.NodeUUID, http.StatusBadRequest)
	return err
}

// portConflict names the machine that has the address already.
func (s *server) portConflict(ctx context.Context, p *store.Port, err error) error {
	var e *store.ExistsError
	if !errors.As(err, &e) {
		return err
	}
	other, lookErr := s.store.PortByAddress(ctx, p.Address)
	if lookErr != nil || other.UUID == p.UUID {
		return client(http.StatusConflict, "%s.", e.Error())
	}
	return client(http.StatusConflict, "A port with MAC address %s already exists. It is port %s of node %s.", p.Address, other.UUID, other.NodeUUID)
}

func (s *server) patchPort(w http.ResponseWriter, r *http.Request) {
	ops, err := readPatch(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	p, err := s.port(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	wanted := *p
	p, err = s.store.UpdatePort(r.Context(), p.UUID, func(p *store.Port) error {
		was := *p
		touched, err := ports.patch(minorOf(r), p, ops, portDoc(p), "address", "node_uuid")
		if err != nil {
			return plainSchema(err)
		}
		wanted = *p
		return s.portRules(r.Context(), &was, p, touched)
	})
	if err != nil {
		s.fail(w, r, s.portConflict(r.Context(), &wanted, err))
		return
	}
	write(s, w, r, http.StatusOK, ports, p, ports.all)
}

// portRules are Ironic's rules on when a port may change: what the network
// boot depends on rests while a machine boots by it.
func (s *server) portRules(ctx context.Context, was, p *store.Port, touched []string) error {
	if err := s.checkPort(ctx, p); err != nil {
		return err
	}
	n, err := s.findNode(ctx, was.NodeUUID, http.StatusBadRequest)
	if err != nil {
		return err
	}
	if slices.Contains(touched, "address") && was.Address != p.Address && !n.Maintenance {
		if n.InstanceUUID != "" || n.TargetProvisionState != "" && !slices.Contains(updatable, n.ProvisionState) {
			return client(http.StatusConflict, "Cannot update the address of port %s while node %s has an instance or a state transition in progress; set maintenance first", p.UUID, n.UUID)
		}
	}
	return nil
}

func portDoc(p *store.Port) map[string]any {
	v := &view{minor: minorMax}
	doc := map[string]any{}
	for i := range ports.fields {
		if f := &ports.fields[i]; f.set != nil {
			doc[f.name] = f.get(v, p)
		}
	}
	doc["extra"], doc["local_link_connection"] = map[string]any{}, map[string]any{}
	if p.Extra != nil {
		doc["extra"] = deepCopy(p.Extra)
	}
	if p.LocalLink != nil {
		doc["local_link_connection"] = deepCopy(p.LocalLink)
	}
	return doc
}

func (s *server) deletePort(w http.ResponseWriter, r *http.Request) {
	ident := pathParam(r, "port")
	if !isUUID(ident) {
		s.fail(w, r, bad("Expected UUID for port_uuid: %s", clip(ident)))
		return
	}
	p, err := s.port(r)
	var n *store.Node
	if err == nil {
		n, err = s.findNode(r.Context(), p.NodeUUID, http.StatusNotFound)
	}
	switch {
	case err != nil:
	case n.Reservation != "":
		err = locked(n)
	case vifOf(p) != "" && !n.Maintenance:
		err = client(http.StatusConflict, "Cannot delete the port %s as it has the VIF %s attached; detach it first", p.UUID, vifOf(p))
	default:
		err = s.store.DeletePort(r.Context(), p.UUID)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
