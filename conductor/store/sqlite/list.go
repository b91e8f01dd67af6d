package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/slipway-metal/slipway/conductor/store"
)

// query builds a SELECT of one page: conditions, order, marker, limit.
type query struct {
	table, alias string            // of the listed objects
	what         string            // for errors: "node"
	sortable     map[string]string // column → what stands for NULL in it, so that NULL sorts first
	where        []string
	args         []any
}

func (q *query) eq(column, value string) {
	if value != "" {
		q.where = append(q.where, column+" = ?")
		q.args = append(q.args, value)
	}
}

func (q *query) is(expr string, want *bool) {
	if want != nil {
		q.where = append(q.where, "("+expr+") = ?")
		q.args = append(q.args, bit(*want))
	}
}

// page appends order, marker and limit. Rows are ordered by (key, id), so that a
// page starts right after its marker even where keys are equal or missing.
func (q *query) page(ctx context.Context, db querier, marker string, limit int, sortKey string, desc bool) (string, error) {
	key := q.alias + ".id"
	if sortKey != "" {
		none, ok := q.sortable[sortKey]
		if !ok {
			return "", fmt.Errorf("list %ss: %w: the sort_key value %q is an invalid field for sorting", q.what, store.ErrInvalid, sortKey)
		}
		key = "coalesce(" + q.alias + "." + sortKey + ", " + none + ")"
	}
	op, dir := ">", "ASC"
	if desc {
		op, dir = "<", "DESC"
	}
	if marker != "" {
		var id int64
		var after any
		err := db.QueryRowContext(ctx, "SELECT "+q.alias+".id, "+key+" FROM "+q.table+" "+q.alias+" WHERE "+q.alias+".uuid = ?", marker).Scan(&id, &after)
		if errors.Is(err, sql.ErrNoRows) {
			return "", fmt.Errorf("list %ss: marker: %s %s: %w", q.what, q.what, marker, store.ErrNotFound)
		}
		if err != nil {
			return "", fmt.Errorf("list %ss: marker %s: %w", q.what, marker, err)
		}
		q.where = append(q.where, "("+key+", "+q.alias+".id) "+op+" (?, ?)")
		q.args = append(q.args, after, id)
	}
	var b strings.Builder
	if len(q.where) > 0 {
		b.WriteString("WHERE " + strings.Join(q.where, " AND "))
	}
	b.WriteString(" ORDER BY " + key + " " + dir + ", " + q.alias + ".id " + dir)
	if limit > 0 {
		b.WriteString(" LIMIT ?")
		q.args = append(q.args, limit)
	}
	return b.String(), nil
}

// nodeSortable are Ironic's sort keys of nodes; dictionaries do not sort.
var nodeSortable = sortable(
	[]string{"uuid", "name", "driver", "instance_uuid", "instance_name", "resource_class", "owner", "lessee", "description",
		"conductor_group", "shard", "chassis_uuid", "parent_node", "provision_state", "target_provision_state", "power_state",
		"target_power_state", "last_error", "maintenance_reason", "fault", "protected_reason", "retired_reason", "boot_mode"},
	[]string{"id", "created_at", "updated_at", "provision_updated_at", "inspection_started_at", "inspection_finished_at",
		"maintenance", "automated_clean", "protected", "retired", "console_enabled", "disable_power_off", "secure_boot"},
)

// portSortable are Ironic's sort keys of ports.
var portSortable = sortable(
	[]string{"uuid", "node_uuid", "address", "name", "physical_network", "portgroup_uuid", "description"},
	[]string{"id", "pxe_enabled", "is_smartnic", "created_at", "updated_at"},
)

func sortable(texts, integers []string) map[string]string {
	m := make(map[string]string, len(texts)+len(integers))
	for _, c := range texts {
		m[c] = "''"
	}
	for _, c := range integers {
		m[c] = "-1"
	}
	return m
}

// Nodes lists nodes.
func (s *Store) Nodes(ctx context.Context, f store.NodeFilter) ([]*store.Node, error) {
	q := &query{table: "nodes", alias: "n", what: "node", sortable: nodeSortable, args: []any{s.now().UnixNano()}}
	q.eq("n.provision_state", f.ProvisionState)
	q.eq("n.driver", f.Driver)
	q.eq("n.resource_class", f.ResourceClass)
	q.eq("n.owner", f.Owner)
	q.eq("n.lessee", f.Lessee)
	q.eq("n.instance_uuid", f.InstanceUUID)
	q.eq("n.conductor_group", f.ConductorGroup)
	q.eq("n.fault", f.Fault)
	q.is("n.maintenance", f.Maintenance)
	q.is("n.instance_uuid IS NOT NULL", f.Associated)
	q.is("n.retired", f.Retired)
	if f.DescriptionContains != "" {
		q.where = append(q.where, "instr(n.description, ?) > 0")
		q.args = append(q.args, f.DescriptionContains)
	}
	tail, err := q.page(ctx, s.read, f.Marker, f.Limit, f.SortKey, f.SortDesc)
	if err != nil {
		return nil, err
	}
	return collect(ctx, s.read, "list nodes", selectNode+tail, q.args, s.scanNode)
}

// collect runs a SELECT and scans every row.
func collect[T any](ctx context.Context, db querier, what, query string, args []any, scan func(func(...any) error) (T, error)) (_ []T, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var out []T
	for rows.Next() {
		v, err := scan(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return out, nil
}
