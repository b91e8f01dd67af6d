package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// HeaderToken carries the agent's token on Slipway's own calls.
const HeaderToken = "X-Slipway-Token"

// Caps of an inventory. A machine beyond them is broken or hostile.
const (
	maxNICs      = 512
	maxDisks     = 2048
	maxInvText   = 1024 // bytes of one string
	maxInvList   = 4096 // elements of one list or object
	maxPluginLen = 512 << 10
)

// continueInspection takes the inventory that an agent posts by itself.
func (s *server) continueInspection(w http.ResponseWriter, r *http.Request) {
	raw, err := readBody(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	insp, inventory, plugin, err := readInspection(raw)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n, err := s.inspected(r, insp)
	if err == nil {
		err = s.portsByInventory(r.Context(), n, &insp.Inventory)
	}
	if err == nil {
		err = s.storeInventory(r.Context(), n, insp, inventory, plugin)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.writeJSON(w, r, http.StatusAccepted, map[string]string{"uuid": n.UUID})
}

// readInspection decodes and sanitises the body of continue_inspection. The raw
// forms keep what a stock agent sends beyond our types.
func readInspection(raw []byte) (insp *agent.Inspection, inventory, plugin json.RawMessage, err error) {
	var body map[string]json.RawMessage
	if err := decodeJSON(raw, &body); err != nil {
		return nil, nil, nil, err
	}
	if _, ok := body["inventory"]; !ok {
		return nil, nil, nil, bad("Schema error for data: 'inventory' is a required property")
	}
	var loose map[string]any
	if json.Unmarshal(body["inventory"], &loose) != nil || loose == nil {
		return nil, nil, nil, bad("Schema error for data: inventory is not of type 'object'")
	}
	nics, _ := loose["interfaces"].([]any)
	disks, _ := loose["disks"].([]any)
	switch {
	case len(nics) == 0:
		return nil, nil, nil, bad("Schema error for data: [] should be non-empty")
	case len(nics) > maxNICs:
		return nil, nil, nil, bad("Schema error for data: inventory.interfaces has %d entries; at most %d are taken", len(nics), maxNICs)
	case len(disks) > maxDisks:
		return nil, nil, nil, bad("Schema error for data: inventory.disks has %d entries; at most %d are taken", len(disks), maxDisks)
	}
	inventory, err = json.Marshal(sanitise(loose))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("encode inventory: %w", err)
	}
	insp = &agent.Inspection{}
	if err := decodeJSON(inventory, &insp.Inventory); err != nil {
		return nil, nil, nil, err
	}
	if err := checkInventory(&insp.Inventory); err != nil {
		return nil, nil, nil, err
	}
	var data map[string]any
	if p := body["plugin_data"]; len(p) > 0 && len(p) <= maxPluginLen && json.Unmarshal(p, &data) == nil && data != nil {
		if plugin, err = json.Marshal(sanitise(data)); err != nil {
			return nil, nil, nil, fmt.Errorf("encode plugin data: %w", err)
		}
	}
	return insp, inventory, plugin, nil
}

// sanitise strips control characters from every string and cuts what is too long.
func sanitise(v any) any {
	switch v := v.(type) {
	case string:
		return clean(v, maxInvText)
	case []any:
		v = v[:min(len(v), maxInvList)]
		for i, e := range v {
			v[i] = sanitise(e)
		}
		return v
	case map[string]any:
		out := make(map[string]any, min(len(v), maxInvList))
		for _, k := range sortedKeys(v) {
			if len(out) == maxInvList {
				break
			}
			out[clean(k, maxInvText)] = sanitise(v[k])
		}
		return out
	}
	return v
}

func checkInventory(inv *agent.Inventory) error {
	for i, nic := range inv.Interfaces {
		if nic.MACAddress == "" {
			continue
		}
		if mac, ok := normalMAC(nic.MACAddress); ok {
			inv.Interfaces[i].MACAddress = mac
		}
	}
	for _, d := range inv.Disks {
		if d.Size < 0 {
			return bad("Schema error for data: disk %s has a negative size", d.Name)
		}
	}
	if inv.Memory.PhysicalMB < 0 || inv.Memory.Total < 0 || inv.CPU.Count < 0 {
		return bad("Schema error for data: memory and CPU counts can not be negative")
	}
	return nil
}

// inspected finds the node that is being inspected: by token where the agent
// has one, and always by MAC, for stock agents send nothing else.
func (s *server) inspected(r *http.Request, insp *agent.Inspection) (*store.Node, error) {
	ctx, token := r.Context(), r.Header.Get(HeaderToken)
	uuids := map[string]bool{}
	if id := r.URL.Query().Get("node_uuid"); isUUID(id) {
		uuids[id] = true
	}
	for _, nic := range insp.Inventory.Interfaces {
		p, err := s.store.PortByAddress(ctx, nic.MACAddress)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return nil, fmt.Errorf("inspection: find port %s: %w", nic.MACAddress, err)
		default:
			uuids[p.NodeUUID] = true
		}
	}
	if len(uuids) > 1 {
		return nil, client(http.StatusConflict, "The inventory has MAC addresses of several nodes: %s. Correct their ports.", strings.Join(sortedKeys(uuids), ", "))
	}
	for id := range uuids {
		n, err := s.store.Node(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("inspection of node %s: %w", id, err)
		}
		if !slices.Contains([]state.State{state.Inspecting, state.InspectWait}, n.ProvisionState) {
			break
		}
		// A machine that earned its token by a nonce proves itself here, too.
		if (token != "" || info(n, store.KeyNonce) != "") && !sameToken(info(n, store.KeyToken), token) {
			s.alarm(ctx, n, event.HopInventory, "inventory without the agent's token", r.RemoteAddr, false)
			return nil, client(http.StatusForbidden, "The inventory of this machine needs the agent's token in the header %s.", HeaderToken)
		}
		return n, nil
	}
	return nil, notFound()
}

// portsByInventory creates the port of the NIC that the machine booted from,
// or of every NIC with a link where that is not told.
func (s *server) portsByInventory(ctx context.Context, n *store.Node, inv *agent.Inventory) error {
	pxe := ""
	if inv.Boot.PXEInterface != nil {
		pxe, _ = normalMAC(*inv.Boot.PXEInterface)
	}
	for _, nic := range inv.Interfaces {
		mac, ok := normalMAC(nic.MACAddress)
		if !ok || pxe != "" && mac != pxe || pxe == "" && !nic.HasCarrier {
			continue
		}
		p := &store.Port{UUID: newUUID(), NodeUUID: n.UUID, Address: mac, PXEEnabled: true, CreatedAt: s.now().UTC(),
			LocalLink: map[string]any{}, Extra: map[string]any{}, InternalInfo: map[string]any{}}
		err := s.store.CreatePort(ctx, p)
		if errors.Is(err, store.ErrExists) {
			continue // this node's: inspected saw to it that no other has one of these
		}
		if err != nil {
			return fmt.Errorf("inspection of node %s: create port %s: %w", n.UUID, mac, err)
		}
	}
	return nil
}

func (s *server) storeInventory(ctx context.Context, n *store.Node, insp *agent.Inspection, inventory, plugin json.RawMessage) error {
	_, err := s.store.UpdateNode(ctx, n.UUID, 0, func(n *store.Node) error {
		if err := ApplyInventory(n, *insp); err != nil {
			return err
		}
		n.Inventory, n.PluginData = inventory, plugin
		n.InspectionFinishedAt = s.now().UTC()
		return nil
	})
	if err != nil {
		return fmt.Errorf("inspection of node %s: store: %w", n.UUID, err)
	}
	s.tell(ctx, n.UUID, event.Evidence{Hop: event.HopInventory, Fact: "inventory received", OK: true,
		Detail: map[string]any{"disks": len(insp.Inventory.Disks), "nics": len(insp.Inventory.Interfaces)}})
	if err := s.store.WakeWork(ctx, n.UUID); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("inspection of node %s: wake its work: %w", n.UUID, err)
	}
	return nil
}

// ApplyInventory sets what an inspection found: the inventory, and the
// properties that Ironic's schedulers read (memory_mb MiB, local_gb GiB).
func ApplyInventory(n *store.Node, insp agent.Inspection) error {
	inv := insp.Inventory
	raw, err := json.Marshal(inv)
	if err != nil {
		return fmt.Errorf("node %s: encode inventory: %w", n.UUID, err)
	}
	n.Inventory = raw
	props := map[string]any{}
	for k, v := range n.Properties {
		props[k] = v
	}
	if inv.CPU.Architecture != "" {
		props["cpu_arch"] = inv.CPU.Architecture
	}
	if inv.CPU.Count > 0 {
		props["cpus"] = inv.CPU.Count
	}
	if inv.Memory.PhysicalMB > 0 {
		props["memory_mb"] = inv.Memory.PhysicalMB
	}
	hints, _ := props["root_device"].(map[string]any)
	if d, err := agent.PickRootDisk(inv.Disks, hints); err == nil {
		props["local_gb"] = d.Size >> 30
	}
	if mode := inv.Boot.CurrentBootMode; mode == "bios" || mode == "uefi" {
		n.BootMode = mode
		caps, _ := props["capabilities"].(string)
		if !strings.Contains(caps, "boot_mode:") {
			props["capabilities"] = strings.Trim(caps+",boot_mode:"+mode, ",")
		}
	}
	n.Properties = props
	return nil
}
