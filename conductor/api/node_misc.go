package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/agent"
)

func (s *server) putMaintenance(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Reason *string `json:"reason"`
	}
	raw, err := readBody(r)
	if err == nil && len(strings.TrimSpace(string(raw))) > 0 {
		err = decodeJSON(raw, &body)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.setMaintenance(w, r, true, body.Reason)
}

func (s *server) deleteMaintenance(w http.ResponseWriter, r *http.Request) {
	s.setMaintenance(w, r, false, nil)
}

func (s *server) setMaintenance(w http.ResponseWriter, r *http.Request, on bool, reason *string) {
	n, err := s.node(r)
	if err == nil {
		_, err = s.store.UpdateNode(r.Context(), n.UUID, 0, func(n *store.Node) error {
			n.Maintenance, n.MaintenanceReason = on, ""
			if reason != nil {
				n.MaintenanceReason = clean(*reason, 4096)
			}
			if !on {
				n.Fault = ""
			}
			return nil
		})
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// validation is one interface's row of GET validate.
type validation struct {
	Result bool   `json:"result"`
	Reason string `json:"reason,omitempty"`
}

func verdict(err error) validation {
	if err != nil {
		return validation{Reason: err.Error()}
	}
	return validation{Result: true}
}

func (s *server) validateNode(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	power := s.cfg.Power.Validate(r.Context(), n)
	out := map[string]validation{
		"power": verdict(power), "management": verdict(power), "network": verdict(nil), "storage": verdict(nil),
		"boot": verdict(s.bootable(r.Context(), n)), "deploy": verdict(s.deployable(n)),
	}
	for kind, since := range map[string]minor{"bios": 40, "console": 1, "firmware": 86, "inspect": 1, "raid": 12, "rescue": 38} {
		if minorOf(r) < since {
			continue
		}
		if impl := n.Interfaces[kind+"_interface"]; strings.HasPrefix(impl, "no-") {
			err := fmt.Errorf("Driver %s does not support %s (disabled or not implemented).", n.Driver, kind) //nolint:staticcheck // Ironic's words
			out[kind] = verdict(err)
			continue
		}
		out[kind] = verdict(nil)
	}
	s.writeJSON(w, r, http.StatusOK, out)
}

// bootable says what a network boot of the node lacks.
func (s *server) bootable(ctx context.Context, n *store.Node) error {
	if n.Interfaces["boot_interface"] == "fake" {
		return nil
	}
	ports, err := s.store.Ports(ctx, store.PortFilter{NodeUUID: n.UUID})
	if err != nil {
		return fmt.Errorf("list ports: %w", err)
	}
	for _, p := range ports {
		if p.PXEEnabled {
			return nil
		}
	}
	return fmt.Errorf("node %s does not have any port with pxe_enabled: create one with the MAC of its boot NIC", n.UUID)
}

// deployable says what a deploy of the node lacks. It is asked before the
// first power-on, so that a typing error costs no boot.
func (s *server) deployable(n *store.Node) error {
	if n.Interfaces["deploy_interface"] == "fake" {
		return nil
	}
	text := func(k string) string { v, _ := n.InstanceInfo[k].(string); return v }
	source := text("image_source")
	switch {
	case source == "":
		return fmt.Errorf("node %s has no instance_info/image_source", n.UUID)
	case strings.HasPrefix(strings.ToLower(source), "file:"):
		return fmt.Errorf("instance_info/image_source %q: file: URLs are refused, for they would read the conductor's own files; serve the image by http or https", clip(source))
	}
	if hints, ok := n.Properties["root_device"]; ok {
		m, ok := hints.(map[string]any)
		if !ok {
			return fmt.Errorf("properties/root_device must be an object of hints")
		}
		if _, err := agent.ParseHints(m); err != nil {
			return err
		}
	}
	return nil
}

// --- boot device ---

// BootDevices is what Config.Power may implement besides: the node's boot device.
type BootDevices interface {
	BootDevice(ctx context.Context, nodeUUID string) (device string, persistent bool, err error)
	SetBootDevice(ctx context.Context, nodeUUID, device string, persistent bool) error
	SupportedBootDevices(ctx context.Context, nodeUUID string) ([]string, error)
}

func (s *server) bootDevices(n *store.Node) (BootDevices, error) {
	bd, ok := s.cfg.Power.(BootDevices)
	if !ok {
		return nil, bad("Driver %s does not support get_boot_device (disabled or not implemented).", n.Driver)
	}
	return bd, nil
}

// overBMC runs f, a call to the node's BMC, and answers with its result.
func (s *server) overBMC(w http.ResponseWriter, r *http.Request, f func(BootDevices, *store.Node) (any, error)) {
	n, err := s.node(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	bd, err := s.bootDevices(n)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	out, err := f(bd, n)
	switch {
	case err != nil:
		s.fail(w, r, client(http.StatusBadRequest, "Node %s: %s", n.UUID, err))
	case out == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		s.writeJSON(w, r, http.StatusOK, out)
	}
}

func (s *server) getBootDevice(w http.ResponseWriter, r *http.Request) {
	s.overBMC(w, r, func(bd BootDevices, n *store.Node) (any, error) {
		device, persistent, err := bd.BootDevice(r.Context(), n.UUID)
		return map[string]any{"boot_device": orNull(device), "persistent": persistent}, err
	})
}

func (s *server) supportedBootDevices(w http.ResponseWriter, r *http.Request) {
	s.overBMC(w, r, func(bd BootDevices, n *store.Node) (any, error) {
		devices, err := bd.SupportedBootDevices(r.Context(), n.UUID)
		return map[string]any{"supported_boot_devices": append([]string{}, devices...)}, err
	})
}

func (s *server) putBootDevice(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Device     *string `json:"boot_device"`
		Persistent bool    `json:"persistent"`
	}
	err := readJSON(r, &body)
	if err == nil && body.Device == nil {
		err = bad("Missing mandatory parameter: boot_device")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.overBMC(w, r, func(bd BootDevices, n *store.Node) (any, error) {
		return nil, bd.SetBootDevice(r.Context(), n.UUID, *body.Device, body.Persistent)
	})
}

// --- what inspection and the past left ---

func (s *server) getInventory(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err == nil && len(n.Inventory) == 0 {
		err = client(http.StatusNotFound, "Node inventory record for node %s could not be found.", n.UUID)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	plugin := n.PluginData
	if len(plugin) == 0 {
		plugin = json.RawMessage("{}")
	}
	s.writeJSON(w, r, http.StatusOK, map[string]json.RawMessage{"inventory": n.Inventory, "plugin_data": plugin})
}

// maxHistory is how many rows of a node's history are shown.
const maxHistory = 300

func (s *server) histories(r *http.Request) (*store.Node, []store.History, error) {
	n, err := s.node(r)
	if err != nil {
		return nil, nil, err
	}
	rows, err := s.store.Histories(r.Context(), n.UUID, maxHistory)
	return n, rows, err
}

func historyRow(v *view, n *store.Node, h store.History, detail bool) map[string]any {
	path := "nodes/" + n.UUID + "/history/" + h.UUID
	out := map[string]any{
		"uuid": h.UUID, "created_at": timeOrNull(h.CreatedAt), "severity": orNull(h.Severity), "event": orNull(h.Event),
		"links": []map[string]string{{"href": v.base + "/v1/" + path, "rel": "self"}},
	}
	if detail {
		out["conductor"], out["event_type"], out["user"] = orNull(h.Conductor), orNull(h.EventType), orNull(h.User)
	}
	return out
}

func (s *server) listHistory(w http.ResponseWriter, r *http.Request) {
	n, rows, err := s.histories(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	detail, err := parseBool(orDefault(r.URL.Query().Get("detail"), "false"))
	if err != nil {
		s.fail(w, r, bad("Invalid detail: %s", err))
		return
	}
	out := make([]any, len(rows))
	for i, h := range rows {
		out[i] = historyRow(s.view(r), n, h, detail)
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{"history": out})
}

func (s *server) getHistory(w http.ResponseWriter, r *http.Request) {
	n, rows, err := s.histories(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	id := pathParam(r, "history")
	for _, h := range rows {
		if h.UUID == id {
			s.writeJSON(w, r, http.StatusOK, historyRow(s.view(r), n, h, true))
			return
		}
	}
	s.fail(w, r, client(http.StatusNotFound, "Node history record %s could not be found.", clip(id)))
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// listChildren lists the UUIDs of the nodes whose parent_node is this one.
func (s *server) listChildren(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	all, err := s.store.Nodes(r.Context(), store.NodeFilter{})
	if err != nil {
		s.fail(w, r, fmt.Errorf("list children of node %s: %w", n.UUID, err))
		return
	}
	out := []string{}
	for _, c := range all {
		if c.ParentNode == n.UUID {
			out = append(out, c.UUID)
		}
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{"children": out})
}

func (s *server) getConsole(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.writeJSON(w, r, http.StatusOK, map[string]any{"console_enabled": n.ConsoleEnabled, "console_info": nil})
}
