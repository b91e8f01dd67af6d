package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// nodeColumns is table nodes but for id, secrets and fence.
var nodeColumns = []column[store.Node]{
	{"uuid", func(n *store.Node) field { return text[string]{&n.UUID} }},
	{"name", func(n *store.Node) field { return text[string]{&n.Name} }},
	{"created_at", func(n *store.Node) field { return stamp{&n.CreatedAt} }},
	{"updated_at", func(n *store.Node) field { return stamp{&n.UpdatedAt} }},
	{"driver", func(n *store.Node) field { return text[string]{&n.Driver} }},
	{"driver_info", func(n *store.Node) field { return openDict{&n.DriverInfo} }},
	{"driver_internal_info", func(n *store.Node) field { return openDict{&n.DriverInternalInfo} }},
	{"instance_info", func(n *store.Node) field { return openDict{&n.InstanceInfo} }},
	{"properties", func(n *store.Node) field { return dict[any]{&n.Properties} }},
	{"extra", func(n *store.Node) field { return dict[any]{&n.Extra} }},
	{"network_data", func(n *store.Node) field { return dict[any]{&n.NetworkData} }},
	{"instance_uuid", func(n *store.Node) field { return text[string]{&n.InstanceUUID} }},
	{"instance_name", func(n *store.Node) field { return text[string]{&n.InstanceName} }},
	{"resource_class", func(n *store.Node) field { return text[string]{&n.ResourceClass} }},
	{"owner", func(n *store.Node) field { return text[string]{&n.Owner} }},
	{"lessee", func(n *store.Node) field { return text[string]{&n.Lessee} }},
	{"description", func(n *store.Node) field { return text[string]{&n.Description} }},
	{"conductor_group", func(n *store.Node) field { return text[string]{&n.ConductorGroup} }},
	{"shard", func(n *store.Node) field { return text[string]{&n.Shard} }},
	{"chassis_uuid", func(n *store.Node) field { return text[string]{&n.ChassisUUID} }},
	{"parent_node", func(n *store.Node) field { return text[string]{&n.ParentNode} }},
	{"interfaces", func(n *store.Node) field { return dict[string]{&n.Interfaces} }},
	{"provision_state", func(n *store.Node) field { return text[state.State]{&n.ProvisionState} }},
	{"target_provision_state", func(n *store.Node) field { return text[state.State]{&n.TargetProvisionState} }},
	{"provision_updated_at", func(n *store.Node) field { return stamp{&n.ProvisionUpdatedAt} }},
	{"power_state", func(n *store.Node) field { return text[string]{&n.PowerState} }},
	{"target_power_state", func(n *store.Node) field { return text[string]{&n.TargetPowerState} }},
	{"last_error", func(n *store.Node) field { return text[string]{&n.LastError} }},
	{"maintenance", func(n *store.Node) field { return flag{&n.Maintenance} }},
	{"maintenance_reason", func(n *store.Node) field { return text[string]{&n.MaintenanceReason} }},
	{"fault", func(n *store.Node) field { return text[string]{&n.Fault} }},
	{"automated_clean", func(n *store.Node) field { return tri{&n.AutomatedClean} }},
	{"protected", func(n *store.Node) field { return flag{&n.Protected} }},
	{"protected_reason", func(n *store.Node) field { return text[string]{&n.ProtectedReason} }},
	{"retired", func(n *store.Node) field { return flag{&n.Retired} }},
	{"retired_reason", func(n *store.Node) field { return text[string]{&n.RetiredReason} }},
	{"console_enabled", func(n *store.Node) field { return flag{&n.ConsoleEnabled} }},
	{"disable_power_off", func(n *store.Node) field { return flag{&n.DisablePowerOff} }},
	{"boot_mode", func(n *store.Node) field { return text[string]{&n.BootMode} }},
	{"secure_boot", func(n *store.Node) field { return tri{&n.SecureBoot} }},
	{"clean_step", func(n *store.Node) field { return dict[any]{&n.CleanStep} }},
	{"deploy_step", func(n *store.Node) field { return dict[any]{&n.DeployStep} }},
	{"service_step", func(n *store.Node) field { return dict[any]{&n.ServiceStep} }},
	{"raid_config", func(n *store.Node) field { return dict[any]{&n.RaidConfig} }},
	{"target_raid_config", func(n *store.Node) field { return dict[any]{&n.TargetRaidConfig} }},
	{"inspection_started_at", func(n *store.Node) field { return stamp{&n.InspectionStartedAt} }},
	{"inspection_finished_at", func(n *store.Node) field { return stamp{&n.InspectionFinishedAt} }},
	{"traits", func(n *store.Node) field { return list{&n.Traits} }},
	{"version", func(n *store.Node) field { return integer[int64]{&n.Version} }},
}

// selectNode reads nodes with who holds their work; its first parameter is the time.
var selectNode = "SELECT " + selectList(nodeColumns, "n.") + `, n.secrets, coalesce(w.owner, '')
	FROM nodes n LEFT JOIN work w ON w.node_uuid = n.uuid AND w.lease_end > ?1 `

// querier is a *sql.DB or *sql.Tx.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// scanNode reads a row of selectNode.
func (s *Store) scanNode(scan func(...any) error) (*store.Node, error) {
	n := &store.Node{}
	var box []byte
	if err := scan(append(dests(nodeColumns, n), &box, &n.Reservation)...); err != nil {
		return nil, err
	}
	return n, s.unpack(n, box)
}

// oneNode finds by UUID or name. A name that looks like another's UUID must not
// hide that one: UUID first. It is kept prepared: parsing it takes longer than
// running it.
var oneNode = selectNode + "WHERE n.uuid = ?2 OR n.name = ?2 ORDER BY n.uuid = ?2 DESC LIMIT 1"

// node reads one node, with its inventory, by UUID or name; in a transaction of
// the writer, or without one (nil) by a reader.
func (s *Store) node(ctx context.Context, tx *sql.Tx, ident string) (*store.Node, error) {
	stmt, q := s.readNode, querier(s.read)
	if tx != nil {
		stmt, q = tx.StmtContext(ctx, s.writeNode), tx
	}
	row := stmt.QueryRowContext(ctx, s.now().UnixNano(), ident)
	n, err := s.scanNode(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("node %s: %w", ident, store.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read node %s: %w", ident, err)
	}
	row = q.QueryRowContext(ctx, "SELECT inventory, plugin_data FROM inventories WHERE node_uuid = ?", n.UUID)
	if err := row.Scan(raw{&n.Inventory}, raw{&n.PluginData}); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read node %s: inventory: %w", ident, err)
	}
	return n, nil
}

// Node finds by UUID or name.
func (s *Store) Node(ctx context.Context, ident string) (*store.Node, error) {
	return s.node(ctx, nil, ident)
}

// CreateNode stores n; an empty UUID is filled in, as are state, times and version.
func (s *Store) CreateNode(ctx context.Context, n *store.Node) error {
	if n.UUID == "" {
		n.UUID = uuid.NewString()
	}
	if n.ProvisionState == "" {
		n.ProvisionState = state.Enroll
	}
	if _, known := state.States[n.ProvisionState]; !known {
		return fmt.Errorf("create node %s: %w: unknown provision state %q", n.UUID, store.ErrInvalid, n.ProvisionState)
	}
	if n.CreatedAt.IsZero() {
		n.CreatedAt = s.now()
	}
	n.Version = 1
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		if err := uniqueNode(tx, n, ""); err != nil {
			return nil, err
		}
		if err := insert(tx, "nodes", nodeColumns, n); err != nil {
			return nil, fmt.Errorf("create node %s: %w", n.UUID, err)
		}
		return nil, s.writeRest(tx, &store.Node{}, n)
	})
}

// uniqueNode refuses what another node has already. The writer is alone, so
// looking before writing is safe.
func uniqueNode(tx *sql.Tx, n *store.Node, except string) error {
	for _, u := range []struct{ column, value, words string }{
		{"uuid", n.UUID, "UUID " + n.UUID},
		{"name", n.Name, "name " + n.Name},
		{"instance_uuid", n.InstanceUUID, "instance UUID " + n.InstanceUUID},
	} {
		if err := unique(tx, "nodes", "node", "uuid", u.column, u.value, u.words, except); err != nil {
			return err
		}
	}
	return nil
}

// unique returns an *ExistsError when a row of table other than except has value.
func unique(tx *sql.Tx, table, what, ownerColumn, column, value, words, except string) error {
	if value == "" {
		return nil
	}
	var owner string
	err := tx.QueryRow("SELECT "+ownerColumn+" FROM "+table+" WHERE "+column+" = ? AND uuid <> ?", value, except).Scan(&owner)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look for a %s with %s: %w", what, words, err)
	}
	return &store.ExistsError{What: what, Value: words, Owner: owner}
}

// writeRest writes what is not in nodeColumns where it differs: secrets and inventory.
func (s *Store) writeRest(tx *sql.Tx, before, after *store.Node) error {
	was, err := pack(before)
	if err != nil {
		return err
	}
	is, err := pack(after)
	if err != nil {
		return err
	}
	if !bytes.Equal(was, is) {
		var box any
		if is != nil {
			box = s.seal(is, after.UUID)
		}
		if _, err := tx.Exec("UPDATE nodes SET secrets = ? WHERE uuid = ?", box, after.UUID); err != nil {
			return fmt.Errorf("write node %s: secrets: %w", after.UUID, err)
		}
	}
	if bytes.Equal(before.Inventory, after.Inventory) && bytes.Equal(before.PluginData, after.PluginData) {
		return nil
	}
	_, err = tx.Exec(`INSERT INTO inventories (node_uuid, inventory, plugin_data) VALUES (?, ?, ?)
		ON CONFLICT (node_uuid) DO UPDATE SET inventory = excluded.inventory, plugin_data = excluded.plugin_data`,
		after.UUID, raw{&after.Inventory}, raw{&after.PluginData})
	if err != nil {
		return fmt.Errorf("write node %s: inventory: %w", after.UUID, err)
	}
	return nil
}

// restDiffers says whether writeRest would write.
func restDiffers(before, after *store.Node) (bool, error) {
	was, err := pack(before)
	if err != nil {
		return false, err
	}
	is, err := pack(after)
	if err != nil {
		return false, err
	}
	return !bytes.Equal(was, is) || !bytes.Equal(before.Inventory, after.Inventory) || !bytes.Equal(before.PluginData, after.PluginData), nil
}

// snapshot is a node before a caller's function changes it.
type snapshot struct {
	node *store.Node // what writeRest compares; its maps are not the live ones
	vals []any
}

func snap(n *store.Node) (snapshot, error) {
	vals, err := values(nodeColumns, n)
	if err != nil {
		return snapshot{}, fmt.Errorf("node %s: %w", n.UUID, err)
	}
	was := *n
	for _, m := range []*map[string]any{&was.DriverInfo, &was.DriverInternalInfo, &was.InstanceInfo} {
		_, secret := split(*m)
		if secret == nil {
			*m = nil
			continue
		}
		text, err := json.Marshal(secret) // a deep copy
		if err != nil {
			return snapshot{}, fmt.Errorf("node %s: %w", n.UUID, err)
		}
		*m = nil
		if err := json.Unmarshal(text, m); err != nil {
			return snapshot{}, fmt.Errorf("node %s: %w", n.UUID, err)
		}
	}
	was.Inventory, was.PluginData = bytes.Clone(n.Inventory), bytes.Clone(n.PluginData)
	return snapshot{&was, vals}, nil
}

// save writes n where it differs from the snapshot, with a new version. It
// reports whether anything was written.
func (s *Store) save(tx *sql.Tx, was snapshot, n *store.Node) (bool, error) {
	if n.UUID != was.node.UUID || n.Version != was.node.Version || !n.CreatedAt.Equal(was.node.CreatedAt) {
		return false, fmt.Errorf("update node %s: %w: uuid, version and created_at do not change", was.node.UUID, store.ErrInvalid)
	}
	vals, err := values(nodeColumns, n)
	if err != nil {
		return false, fmt.Errorf("update node %s: %w", n.UUID, err)
	}
	rest, err := restDiffers(was.node, n)
	if err != nil {
		return false, fmt.Errorf("update node %s: %w", n.UUID, err)
	}
	if !rest && !differ(was.vals, vals) {
		return false, nil
	}
	if err := uniqueNode(tx, n, n.UUID); err != nil {
		return false, err
	}
	n.Version++
	n.UpdatedAt = s.now().UTC()
	if vals, err = values(nodeColumns, n); err != nil {
		return false, fmt.Errorf("update node %s: %w", n.UUID, err)
	}
	if err := update(tx, "nodes", nodeColumns, was.vals, vals, n.UUID); err != nil {
		return false, fmt.Errorf("update node %s: %w", n.UUID, err)
	}
	return true, s.writeRest(tx, was.node, n)
}

// UpdateNode reads, mutates and writes in one transaction.
func (s *Store) UpdateNode(ctx context.Context, id string, version int64, mutate func(*store.Node) error) (*store.Node, error) {
	var n *store.Node
	err := s.inTx(ctx, func(tx *sql.Tx) (_ []change, err error) {
		n, err = s.mutate(tx, id, version, mutate)
		return nil, err
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// UpdateLeased is UpdateNode under a lease.
func (s *Store) UpdateLeased(ctx context.Context, l *store.Lease, mutate func(*store.Node) error) (*store.Node, error) {
	var n *store.Node
	err := s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		id, err := leased(tx, l)
		if err != nil {
			return nil, err
		}
		n, err = s.mutate(tx, id, 0, mutate)
		return nil, err
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (s *Store) mutate(tx *sql.Tx, id string, version int64, f func(*store.Node) error) (*store.Node, error) {
	n, err := s.node(context.Background(), tx, id)
	if err != nil {
		return nil, err
	}
	if version != 0 && version != n.Version {
		return nil, fmt.Errorf("node %s has version %d, not %d: %w", n.UUID, n.Version, version, store.ErrStale)
	}
	was, err := snap(n)
	if err != nil {
		return nil, err
	}
	if err := f(n); err != nil {
		return nil, err
	}
	if statesDiffer(was.node, n) {
		return nil, fmt.Errorf("update node %s: %w: only Advance changes the provision state", n.UUID, store.ErrInvalid)
	}
	_, err = s.save(tx, was, n)
	return n, err
}

func statesDiffer(a, b *store.Node) bool {
	return a.ProvisionState != b.ProvisionState || a.TargetProvisionState != b.TargetProvisionState ||
		!a.ProvisionUpdatedAt.Equal(b.ProvisionUpdatedAt)
}

// nodeExists returns ErrNotFound where there is no such node.
func nodeExists(tx *sql.Tx, id string) error {
	var found int
	err := tx.QueryRow("SELECT 1 FROM nodes WHERE uuid = ?", id).Scan(&found)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("node %s: %w", id, store.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("look for node %s: %w", id, err)
	}
	return nil
}

// DeleteNode removes the node with all that hangs on it (ON DELETE CASCADE).
func (s *Store) DeleteNode(ctx context.Context, id string) error {
	return s.inTx(ctx, func(tx *sql.Tx) ([]change, error) {
		return nil, one(tx, "node "+id, "DELETE FROM nodes WHERE uuid = ?", id)
	})
}

// one runs a statement that must hit exactly the row that what names.
func one(tx *sql.Tx, what, query string, args ...any) error {
	res, err := tx.Exec(query, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	} else if n == 0 {
		return fmt.Errorf("%s: %w", what, store.ErrNotFound)
	}
	return nil
}
