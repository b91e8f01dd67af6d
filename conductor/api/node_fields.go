package api

import (
	"fmt"

	"github.com/slipway-metal/slipway/conductor/store"
)

// interfaceSince are the node's hardware interfaces and the microversion that showed each.
var interfaceSince = []struct {
	name  string
	since minor
}{
	{"bios_interface", 40}, {"boot_interface", 31}, {"console_interface", 31}, {"deploy_interface", 31},
	{"firmware_interface", 86}, {"inspect_interface", 31}, {"management_interface", 31}, {"network_interface", 20},
	{"power_interface", 31}, {"raid_interface", 31}, {"rescue_interface", 38}, {"storage_interface", 33}, {"vendor_interface", 31},
}

type nodeField = field[*store.Node]

// nodes is the node's table (proto/testdata/fields.json; a test holds them equal).
var nodes = &table[*store.Node]{what: "node", fields: nodeTable()}

// nodeText is a nullable string field of at most limit bytes.
func nodeText(name string, since minor, limit int, at func(*store.Node) *string) nodeField {
	return nodeField{
		name: name, since: since,
		get: func(_ *view, n *store.Node) any { return orNull(*at(n)) },
		set: func(n *store.Node, value any) error { return setText(limit, at(n), value) },
	}
}

func nodeObject(name string, since minor, at func(*store.Node) *map[string]any) nodeField {
	return nodeField{
		name: name, since: since,
		get: func(_ *view, n *store.Node) any { return maskSecrets(*at(n)) },
		set: func(n *store.Node, value any) error { return setObject(at(n), value) },
	}
}

func nodeBool(name string, since minor, at func(*store.Node) *bool) nodeField {
	return nodeField{
		name: name, since: since,
		get: func(_ *view, n *store.Node) any { return *at(n) },
		set: func(n *store.Node, value any) error { return setBool(at(n), value) },
	}
}

func nodeShow(name string, since minor, get func(*store.Node) any) nodeField {
	return nodeField{name: name, since: since, get: func(_ *view, n *store.Node) any { return get(n) }}
}

func nodeLinks(name string, since minor, below string) nodeField {
	return nodeField{name: name, since: since, get: func(v *view, n *store.Node) any { return v.link("nodes/" + n.UUID + below) }}
}

func inBrief(f nodeField) nodeField    { f.brief = true; return f }
func sortable(f nodeField) nodeField   { f.sort = true; return f }
func atCreation(f nodeField) nodeField { f.createOnly = true; return f }

func nodeTable() []nodeField {
	type n = *store.Node
	fields := []nodeField{
		sortable(inBrief(atCreation(nodeField{name: "uuid", since: 1,
			get: func(_ *view, o n) any { return o.UUID },
			set: func(o n, value any) error {
				text, ok := value.(string)
				if !ok || !isUUID(text) {
					return fmt.Errorf("%s is not a 'uuid'", brief(value))
				}
				o.UUID = text
				return nil
			}}))),
		sortable(nodeShow("created_at", 1, func(o n) any { return timeOrNull(o.CreatedAt) })),
		sortable(nodeShow("updated_at", 1, func(o n) any { return timeOrNull(o.UpdatedAt) })),
		{name: "automated_clean", since: 47,
			get: func(_ *view, o n) any { return o.AutomatedClean },
			set: func(o n, value any) error { return setTristate(&o.AutomatedClean, value) }},
		nodeShow("boot_mode", 75, func(o n) any { return orNull(o.BootMode) }),
		{name: "chassis_uuid", since: 1,
			get: func(_ *view, o n) any { return orNull(o.ChassisUUID) },
			set: func(o n, value any) error {
				if value != nil {
					return fmt.Errorf("chassis %s could not be found", brief(value))
				}
				o.ChassisUUID = ""
				return nil
			}},
		nodeShow("clean_step", 7, func(o n) any { return object(o.CleanStep) }),
		{name: "conductor_group", since: 46,
			get: func(_ *view, o n) any { return o.ConductorGroup },
			set: func(o n, value any) error { return setText(maxText, &o.ConductorGroup, value) }},
		nodeShow("console_enabled", 1, func(o n) any { return o.ConsoleEnabled }),
		nodeBool("disable_power_off", 95, func(o n) *bool { return &o.DisablePowerOff }),
		nodeShow("deploy_step", 44, func(o n) any { return object(o.DeployStep) }),
		nodeText("description", 51, 4096, func(o n) *string { return &o.Description }),
		sortable(nodeText("driver", 1, maxText, func(o n) *string { return &o.Driver })),
		{name: "driver_info", since: 1,
			get: func(_ *view, o n) any { return maskInfo(o.DriverInfo) },
			set: func(o n, value any) error { return setObject(&o.DriverInfo, value) }},
		nodeShow("driver_internal_info", 3, func(o n) any { return maskInfo(o.DriverInternalInfo) }),
		nodeObject("extra", 1, func(o n) *map[string]any { return &o.Extra }),
		nodeShow("fault", 42, func(o n) any { return orNull(o.Fault) }),
		nodeShow("health", 109, func(n) any { return nil }),
		nodeShow("inspection_finished_at", 6, func(o n) any { return timeOrNull(o.InspectionFinishedAt) }),
		nodeShow("inspection_started_at", 6, func(o n) any { return timeOrNull(o.InspectionStartedAt) }),
		{name: "instance_info", since: 1,
			get: func(_ *view, o n) any { return maskInstance(o.InstanceInfo) },
			set: func(o n, value any) error { return setObject(&o.InstanceInfo, value) }},
		nodeText("instance_name", 104, maxText, func(o n) *string { return &o.InstanceName }),
		sortable(inBrief(nodeField{name: "instance_uuid", since: 1,
			get: func(_ *view, o n) any { return orNull(o.InstanceUUID) },
			set: func(o n, value any) error {
				if text, ok := value.(string); value != nil && (!ok || !isUUID(text)) {
					return fmt.Errorf("%s is not a 'uuid'", brief(value))
				}
				return setText(maxText, &o.InstanceUUID, value)
			}})),
		nodeShow("last_error", 1, func(o n) any { return orNull(o.LastError) }),
		sortable(nodeText("lessee", 65, maxText, func(o n) *string { return &o.Lessee })),
		sortable(inBrief(nodeBool("maintenance", 1, func(o n) *bool { return &o.Maintenance }))),
		nodeShow("maintenance_reason", 1, func(o n) any { return orNull(o.MaintenanceReason) }),
		sortable(inBrief(nodeText("name", 5, maxText, func(o n) *string { return &o.Name }))),
		nodeObject("network_data", 66, func(o n) *map[string]any { return &o.NetworkData }),
		sortable(nodeText("owner", 50, maxText, func(o n) *string { return &o.Owner })),
		nodeText("parent_node", 83, 36, func(o n) *string { return &o.ParentNode }),
		sortable(inBrief(nodeShow("power_state", 1, func(o n) any { return orNull(o.PowerState) }))),
		nodeObject("properties", 1, func(o n) *map[string]any { return &o.Properties }),
		nodeBool("protected", 48, func(o n) *bool { return &o.Protected }),
		nodeText("protected_reason", 48, 4096, func(o n) *string { return &o.ProtectedReason }),
		sortable(inBrief(nodeShow("provision_state", 1, func(o n) any { return string(o.ProvisionState) }))),
		sortable(nodeShow("provision_updated_at", 1, func(o n) any { return timeOrNull(o.ProvisionUpdatedAt) })),
		nodeShow("raid_config", 12, func(o n) any { return object(o.RaidConfig) }),
		nodeShow("reservation", 1, func(o n) any { return orNull(o.Reservation) }),
		sortable(nodeText("resource_class", 21, 80, func(o n) *string { return &o.ResourceClass })),
		nodeBool("retired", 61, func(o n) *bool { return &o.Retired }),
		nodeText("retired_reason", 61, 4096, func(o n) *string { return &o.RetiredReason }),
		nodeShow("secure_boot", 75, func(o n) any { return o.SecureBoot }),
		nodeShow("service_step", 87, func(o n) any { return object(o.ServiceStep) }),
		nodeText("shard", 82, maxText, func(o n) *string { return &o.Shard }),
		nodeShow("target_power_state", 1, func(o n) any { return orNull(o.TargetPowerState) }),
		nodeShow("target_provision_state", 1, func(o n) any { return orNull(string(o.TargetProvisionState)) }),
		nodeShow("target_raid_config", 12, func(o n) any { return object(o.TargetRaidConfig) }),
		nodeShow("traits", 37, func(o n) any { return append([]string{}, o.Traits...) }),
		inBrief(nodeLinks("links", 1, "")),
		{name: "conductor", since: 49, get: func(v *view, _ n) any { return v.conductor }},
		nodeShow("allocation_uuid", 52, func(n) any { return nil }),
		nodeLinks("ports", 1, "/ports"),
		nodeLinks("states", 14, "/states"),
		nodeLinks("portgroups", 24, "/portgroups"),
		nodeLinks("volume", 32, "/volume"),
	}
	for _, i := range interfaceSince {
		fields = append(fields, nodeField{name: i.name, since: i.since,
			get: func(_ *view, o n) any { return orNull(o.Interfaces[i.name]) },
			set: func(o n, value any) error {
				var text string
				if err := setText(maxText, &text, value); err != nil {
					return err
				}
				if o.Interfaces == nil {
					o.Interfaces = map[string]string{}
				}
				o.Interfaces[i.name] = text
				return nil
			}})
	}
	return fields
}

// stateFields are the fields of GET /v1/nodes/X/states.
var stateFields = []string{
	"console_enabled", "last_error", "power_state", "provision_state", "target_power_state", "target_provision_state",
	"provision_updated_at", "raid_config", "target_raid_config", "boot_mode", "secure_boot",
}
