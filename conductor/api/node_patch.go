package api

import (
	"net/http"
	"slices"
	"strings"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// updatable are the moving states in which PATCH is taken all the same
// (Ironic's UPDATE_ALLOWED_STATES).
var updatable = []state.State{
	state.DeployFailed, state.Inspecting, state.InspectFailed, state.InspectWait, state.CleanFailed,
	state.Error, state.Verifying, state.AdoptFailed, state.RescueFailed, state.UnrescueFailed, state.ServiceFailed,
}

// interfacesChangeable are the states in which an interface or the driver may change.
var interfacesChangeable = []state.State{state.Enroll, state.Inspecting, state.InspectWait, state.Manageable, state.Available}

func (s *server) patchNode(w http.ResponseWriter, r *http.Request) {
	ops, err := readPatch(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	reset, err := resetInterfaces(r, ops)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n, err := s.node(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n, err = s.store.UpdateNode(r.Context(), n.UUID, 0, func(n *store.Node) error {
		return s.applyNodePatch(r, n, ops, reset)
	})
	if err != nil {
		s.fail(w, r, nodeConflict(err))
		return
	}
	write(s, w, r, http.StatusOK, nodes, n, nodes.all)
}

func resetInterfaces(r *http.Request, ops []patchOp) (bool, error) {
	text := r.URL.Query().Get("reset_interfaces")
	if text == "" {
		return false, nil
	}
	if minorOf(r) < minorResetInterfaces {
		return false, notAcceptable()
	}
	reset, err := parseBool(text)
	if err != nil {
		return false, bad("Invalid reset_interfaces: %s", err)
	}
	if reset && !slices.ContainsFunc(ops, func(o patchOp) bool { return o.path == "/driver" }) {
		return false, bad("The reset_interfaces parameter can only be used when changing the node's driver.")
	}
	return reset, nil
}

func (s *server) applyNodePatch(r *http.Request, n *store.Node, ops []patchOp, reset bool) error {
	before := *n
	dropsInstance := len(ops) == 1 && ops[0].op == "remove" && ops[0].path == "/instance_uuid"
	moving := n.TargetProvisionState != "" && !slices.Contains(updatable, n.ProvisionState)
	if moving && !n.Maintenance && !dropsInstance {
		return client(http.StatusConflict, "Node %s can not be updated while a state transition is in progress.", n.UUID)
	}
	interfaces := make(map[string]string, len(n.Interfaces))
	for k, v := range n.Interfaces {
		interfaces[k] = v
	}
	n.Interfaces = interfaces
	touched, err := nodes.patch(minorOf(r), n, ops, nodeDoc(n), "driver")
	if err != nil {
		return err
	}
	if err := nodeRules(&before, n, touched); err != nil {
		return err
	}
	if reset {
		for name := range n.Interfaces {
			if !slices.Contains(touched, name) {
				delete(n.Interfaces, name)
			}
		}
	}
	if slices.Contains(touched, "maintenance") && !n.Maintenance {
		n.MaintenanceReason, n.Fault = "", ""
	}
	if !n.Protected && before.Protected {
		n.ProtectedReason = ""
	}
	if !n.Retired && before.Retired {
		n.RetiredReason = ""
	}
	return s.checkNode(r.Context(), minorOf(r), n, "update")
}

// nodeRules are Ironic's rules on what may change when.
func nodeRules(before, n *store.Node, touched []string) error {
	for _, name := range touched {
		if (name == "driver" || strings.HasSuffix(name, "_interface")) && !n.Maintenance && !slices.Contains(interfacesChangeable, n.ProvisionState) {
			return client(http.StatusConflict, "Node %s can not have %s updated unless it is in one of allowed (%s) states or in maintenance mode.", n.UUID, name, joinStates(interfacesChangeable))
		}
	}
	switch {
	case before.InstanceUUID != "" && n.InstanceUUID != "" && before.InstanceUUID != n.InstanceUUID:
		return client(http.StatusConflict, "Node %s is associated with instance %s.", n.UUID, before.InstanceUUID)
	case n.Retired && !before.Retired && n.ProvisionState == state.Available:
		return client(http.StatusConflict, "Node %s can not have 'retired' set in 'available' state, use 'manage' first", n.UUID)
	case n.ResourceClass != before.ResourceClass && before.ResourceClass != "" && n.InstanceUUID != "" && n.ProvisionState == state.Active:
		return client(http.StatusConflict, "Node %s can not have resource_class updated while it is in state active", n.UUID)
	case n.Protected && !before.Protected && n.ProvisionState != state.Active && n.ProvisionState != state.Rescue:
		return client(http.StatusConflict, "Node %s can not be protected unless it is in one of allowed (active, rescue) states", n.UUID)
	}
	return nil
}

func joinStates(states []state.State) string {
	out := make([]string, len(states))
	for i, st := range states {
		out[i] = string(st)
	}
	return strings.Join(out, ", ")
}

// nodeDoc is the document that a patch is applied to: real values, secrets too.
func nodeDoc(n *store.Node) map[string]any {
	v := &view{minor: minorMax}
	doc := map[string]any{}
	for i := range nodes.fields {
		if f := &nodes.fields[i]; f.set != nil {
			doc[f.name] = f.get(v, n)
		}
	}
	for name, m := range map[string]map[string]any{
		"driver_info": n.DriverInfo, "instance_info": n.InstanceInfo, "properties": n.Properties, "extra": n.Extra, "network_data": n.NetworkData,
	} {
		doc[name] = map[string]any{}
		if m != nil {
			doc[name] = deepCopy(m)
		}
	}
	return doc
}
