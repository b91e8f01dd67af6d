package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/slipway-metal/slipway/conductor/store"
)

// portColumns is table ports but for id.
var portColumns = []column[store.Port]{
	{"uuid", func(p *store.Port) field { return text[string]{&p.UUID} }},
	{"node_uuid", func(p *store.Port) field { return text[string]{&p.NodeUUID} }},
	{"address", func(p *store.Port) field { return text[string]{&p.Address} }},
	{"name", func(p *store.Port) field { return text[string]{&p.Name} }},
	{"physical_network", func(p *store.Port) field { return text[string]{&p.PhysicalNetwork} }},
	{"portgroup_uuid", func(p *store.Port) field { return text[string]{&p.PortgroupUUID} }},
	{"description", func(p *store.Port) field { return text[string]{&p.Description} }},
	{"pxe_enabled", func(p *store.Port) field { return flag{&p.PXEEnabled} }},
	{"is_smartnic", func(p *store.Port) field { return flag{&p.IsSmartNIC} }},
	{"local_link", func(p *store.Port) field { return dict[any]{&p.LocalLink} }},
	{"extra", func(p *store.Port) field { return dict[any]{&p.Extra} }},
	{"internal_info", func(p *store.Port) field { return dict[any]{&p.InternalInfo} }},
	{"created_at", func(p *store.Port) field { return stamp{&p.CreatedAt} }},
	{"updated_at", func(p *store.Port) field { return stamp{&p.UpdatedAt} }},
}

var selectPort = "SELECT " + selectList(portColumns, "p.") + " FROM ports p "

func scanPort(scan func(...any) error) (*store.Port, error) {
	p := &store.Port{}
	return p, scan(dests(portColumns, p)...)
}

// port reads one port.
func port(ctx context.Context, q querier, what, where string, args ...any) (*store.Port, error) {
	p, err := scanPort(q.QueryRowContext(ctx, selectPort+where, args...).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("port %s: %w", what, store.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read port %s: %w", what, err)
	}
	return p, nil
}

// Port finds by UUID or name.
func (s *Store) Port(ctx context.Context, ident string) (*store.Port, error) {
	return port(ctx, s.read, ident, "WHERE p.uuid = ? OR p.name = ? ORDER BY p.uuid = ? DESC LIMIT 1", ident, ident, ident)
}

// PortByAddress finds by MAC address, in any case.
func (s *Store) PortByAddress(ctx context.Context, mac string) (*store.Port, error) {
	return port(ctx, s.read, mac, "WHERE p.address = ?", strings.ToLower(mac))
}

// Ports lists ports.
func (s *Store) Ports(ctx context.Context, f store.PortFilter) ([]*store.Port, error) {
	q := &query{table: "ports", alias: "p", what: "port", sortable: portSortable}
	q.eq("p.node_uuid", f.NodeUUID)
	q.eq("p.address", strings.ToLower(f.Address))
	tail, err := q.page(ctx, s.read, f.Marker, f.Limit, f.SortKey, f.SortDesc)
	if err != nil {
		return nil, err
	}
	return collect(ctx, s.read, "list ports", selectPort+tail, q.args, scanPort)
}

// CreatePort stores p; an empty UUID is filled in, as is the time.
func (s *Store) CreatePort(ctx context.Context, p *store.Port) error {
	if p.UUID == "" {
		p.UUID = uuid.NewString()
	}
	p.Address = strings.ToLower(p.Address)
	if p.CreatedAt.IsZero() {
		p.CreatedAt = s.now()
	}
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		if err := checkPort(tx, p, ""); err != nil {
			return nil, err
		}
		if err := insert(tx, "ports", portColumns, p); err != nil {
			return nil, fmt.Errorf("create port %s: %w", p.Address, err)
		}
		return nil, nil
	})
}

// checkPort refuses a port without a node, or with what another port has. The
// owner that its ExistsError names is that port's node.
func checkPort(tx *sql.Tx, p *store.Port, except string) error {
	if err := nodeExists(tx, p.NodeUUID); err != nil {
		return fmt.Errorf("port %s: %w", p.Address, err)
	}
	if p.Address == "" {
		return fmt.Errorf("port %s: %w: it has no address", p.UUID, store.ErrInvalid)
	}
	for _, u := range []struct{ column, value, words string }{
		{"address", p.Address, "MAC address " + p.Address},
		{"uuid", p.UUID, "UUID " + p.UUID},
		{"name", p.Name, "name " + p.Name},
	} {
		if err := unique(tx, "ports", "port", "node_uuid", u.column, u.value, u.words, except); err != nil {
			return err
		}
	}
	return nil
}

// UpdatePort reads, mutates and writes in one transaction.
func (s *Store) UpdatePort(ctx context.Context, id string, mutate func(*store.Port) error) (*store.Port, error) {
	var p *store.Port
	err := s.inTx(ctx, func(tx *sql.Tx) (_ []change, err error) {
		if p, err = port(context.Background(), tx, id, "WHERE p.uuid = ?", id); err != nil {
			return nil, err
		}
		before, err := values(portColumns, p)
		if err != nil {
			return nil, fmt.Errorf("update port %s: %w", id, err)
		}
		if err := mutate(p); err != nil {
			return nil, err
		}
		if p.UUID != id {
			return nil, fmt.Errorf("update port %s: %w: the uuid does not change", id, store.ErrInvalid)
		}
		p.Address = strings.ToLower(p.Address)
		after, err := values(portColumns, p)
		if err != nil {
			return nil, fmt.Errorf("update port %s: %w", id, err)
		}
		if !differ(before, after) {
			return nil, nil
		}
		if err := checkPort(tx, p, id); err != nil {
			return nil, err
		}
		p.UpdatedAt = s.now().UTC()
		if after, err = values(portColumns, p); err != nil {
			return nil, fmt.Errorf("update port %s: %w", id, err)
		}
		if err := update(tx, "ports", portColumns, before, after, id); err != nil {
			return nil, fmt.Errorf("update port %s: %w", id, err)
		}
		return nil, nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// DeletePort removes a port.
func (s *Store) DeletePort(ctx context.Context, id string) error {
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		return nil, one(tx, "port "+id, "DELETE FROM ports WHERE uuid = ?", id)
	})
}
