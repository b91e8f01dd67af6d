// Package ironic holds the wire types of Ironic's REST API v1 as a client reads
// and writes them. Field names and meanings are Ironic's at microversion 1.115
// (proto/testdata/fields.json). A JSON null decodes to the zero value.
package ironic

import (
	"encoding/json"
	"fmt"
	"time"
)

// The range of microversions the API speaks, and the headers that carry them.
const (
	MinVersion = "1.1"
	MaxVersion = "1.115"
	MaxMinor   = 115

	HeaderVersion    = "X-OpenStack-Ironic-API-Version"
	HeaderMinVersion = "X-OpenStack-Ironic-API-Minimum-Version"
	HeaderMaxVersion = "X-OpenStack-Ironic-API-Maximum-Version"
	HeaderRequestID  = "X-Openstack-Request-Id"
)

// Mask is what replaces every secret in a reply.
const Mask = "******"

// Link is one hyperlink of a resource.
type Link struct {
	Href string `json:"href"`
	Rel  string `json:"rel"`
	Type string `json:"type,omitempty"`
}

// Node is a machine.
type Node struct {
	UUID                 string         `json:"uuid"`
	Name                 string         `json:"name"`
	CreatedAt            *time.Time     `json:"created_at"`
	UpdatedAt            *time.Time     `json:"updated_at"`
	Driver               string         `json:"driver"`
	DriverInfo           map[string]any `json:"driver_info"`
	DriverInternalInfo   map[string]any `json:"driver_internal_info"`
	InstanceInfo         map[string]any `json:"instance_info"`
	InstanceUUID         string         `json:"instance_uuid"`
	InstanceName         string         `json:"instance_name"`
	Properties           map[string]any `json:"properties"`
	Extra                map[string]any `json:"extra"`
	NetworkData          map[string]any `json:"network_data"`
	ResourceClass        string         `json:"resource_class"`
	ConductorGroup       string         `json:"conductor_group"`
	Conductor            string         `json:"conductor"`
	Owner                string         `json:"owner"`
	Lessee               string         `json:"lessee"`
	Description          string         `json:"description"`
	Shard                string         `json:"shard"`
	ParentNode           string         `json:"parent_node"`
	ChassisUUID          string         `json:"chassis_uuid"`
	AllocationUUID       string         `json:"allocation_uuid"`
	ProvisionState       string         `json:"provision_state"`
	TargetProvisionState string         `json:"target_provision_state"`
	ProvisionUpdatedAt   *time.Time     `json:"provision_updated_at"`
	PowerState           string         `json:"power_state"`
	TargetPowerState     string         `json:"target_power_state"`
	LastError            string         `json:"last_error"`
	Fault                string         `json:"fault"`
	Health               string         `json:"health"`
	Maintenance          bool           `json:"maintenance"`
	MaintenanceReason    string         `json:"maintenance_reason"`
	Protected            bool           `json:"protected"`
	ProtectedReason      string         `json:"protected_reason"`
	Retired              bool           `json:"retired"`
	RetiredReason        string         `json:"retired_reason"`
	AutomatedClean       *bool          `json:"automated_clean"`
	ConsoleEnabled       bool           `json:"console_enabled"`
	DisablePowerOff      bool           `json:"disable_power_off"`
	BootMode             string         `json:"boot_mode"`
	SecureBoot           *bool          `json:"secure_boot"`
	Reservation          string         `json:"reservation"`
	CleanStep            map[string]any `json:"clean_step"`
	DeployStep           map[string]any `json:"deploy_step"`
	ServiceStep          map[string]any `json:"service_step"`
	RaidConfig           map[string]any `json:"raid_config"`
	TargetRaidConfig     map[string]any `json:"target_raid_config"`
	InspectionStartedAt  *time.Time     `json:"inspection_started_at"`
	InspectionFinishedAt *time.Time     `json:"inspection_finished_at"`
	Traits               []string       `json:"traits"`
	BIOSInterface        string         `json:"bios_interface"`
	BootInterface        string         `json:"boot_interface"`
	ConsoleInterface     string         `json:"console_interface"`
	DeployInterface      string         `json:"deploy_interface"`
	FirmwareInterface    string         `json:"firmware_interface"`
	InspectInterface     string         `json:"inspect_interface"`
	ManagementInterface  string         `json:"management_interface"`
	NetworkInterface     string         `json:"network_interface"`
	PowerInterface       string         `json:"power_interface"`
	RaidInterface        string         `json:"raid_interface"`
	RescueInterface      string         `json:"rescue_interface"`
	StorageInterface     string         `json:"storage_interface"`
	VendorInterface      string         `json:"vendor_interface"`
	Links                []Link         `json:"links"`
}

// NodeCreate is the body of POST /v1/nodes. Only Driver is needed.
type NodeCreate struct {
	UUID                string         `json:"uuid,omitempty"`
	Name                string         `json:"name,omitempty"`
	Driver              string         `json:"driver"`
	DriverInfo          map[string]any `json:"driver_info,omitempty"`
	Properties          map[string]any `json:"properties,omitempty"`
	Extra               map[string]any `json:"extra,omitempty"`
	InstanceInfo        map[string]any `json:"instance_info,omitempty"`
	NetworkData         map[string]any `json:"network_data,omitempty"`
	ResourceClass       string         `json:"resource_class,omitempty"`
	ConductorGroup      string         `json:"conductor_group,omitempty"`
	Owner               string         `json:"owner,omitempty"`
	Lessee              string         `json:"lessee,omitempty"`
	Description         string         `json:"description,omitempty"`
	AutomatedClean      *bool          `json:"automated_clean,omitempty"`
	BIOSInterface       string         `json:"bios_interface,omitempty"`
	BootInterface       string         `json:"boot_interface,omitempty"`
	ConsoleInterface    string         `json:"console_interface,omitempty"`
	DeployInterface     string         `json:"deploy_interface,omitempty"`
	FirmwareInterface   string         `json:"firmware_interface,omitempty"`
	InspectInterface    string         `json:"inspect_interface,omitempty"`
	ManagementInterface string         `json:"management_interface,omitempty"`
	NetworkInterface    string         `json:"network_interface,omitempty"`
	PowerInterface      string         `json:"power_interface,omitempty"`
	RaidInterface       string         `json:"raid_interface,omitempty"`
	RescueInterface     string         `json:"rescue_interface,omitempty"`
	StorageInterface    string         `json:"storage_interface,omitempty"`
	VendorInterface     string         `json:"vendor_interface,omitempty"`
}

// NodeList is the answer to GET /v1/nodes. Next is the URL of the following
// page, "" on the last.
type NodeList struct {
	Nodes []Node `json:"nodes"`
	Next  string `json:"next,omitempty"`
}

// NodeStates is the answer to GET /v1/nodes/X/states.
type NodeStates struct {
	ConsoleEnabled       bool           `json:"console_enabled"`
	LastError            string         `json:"last_error"`
	PowerState           string         `json:"power_state"`
	ProvisionState       string         `json:"provision_state"`
	TargetPowerState     string         `json:"target_power_state"`
	TargetProvisionState string         `json:"target_provision_state"`
	ProvisionUpdatedAt   *time.Time     `json:"provision_updated_at"`
	RaidConfig           map[string]any `json:"raid_config"`
	TargetRaidConfig     map[string]any `json:"target_raid_config"`
	BootMode             string         `json:"boot_mode"`
	SecureBoot           *bool          `json:"secure_boot"`
}

// Port is a NIC of a node.
type Port struct {
	UUID            string         `json:"uuid"`
	Address         string         `json:"address"` // MAC, lower case with colons
	NodeUUID        string         `json:"node_uuid"`
	Name            string         `json:"name"`
	Description     string         `json:"description"`
	PXEEnabled      bool           `json:"pxe_enabled"`
	IsSmartNIC      bool           `json:"is_smartnic"`
	PhysicalNetwork string         `json:"physical_network"`
	PortgroupUUID   string         `json:"portgroup_uuid"`
	LocalLink       map[string]any `json:"local_link_connection"`
	Extra           map[string]any `json:"extra"`
	InternalInfo    map[string]any `json:"internal_info"`
	CreatedAt       *time.Time     `json:"created_at"`
	UpdatedAt       *time.Time     `json:"updated_at"`
	Links           []Link         `json:"links"`
}

// PortCreate is the body of POST /v1/ports.
type PortCreate struct {
	UUID            string         `json:"uuid,omitempty"`
	NodeUUID        string         `json:"node_uuid"`
	Address         string         `json:"address"`
	Name            string         `json:"name,omitempty"`
	PXEEnabled      *bool          `json:"pxe_enabled,omitempty"`
	PhysicalNetwork string         `json:"physical_network,omitempty"`
	LocalLink       map[string]any `json:"local_link_connection,omitempty"`
	Extra           map[string]any `json:"extra,omitempty"`
}

// PortList is the answer to GET /v1/ports.
type PortList struct {
	Ports []Port `json:"ports"`
	Next  string `json:"next,omitempty"`
}

// PatchOp is one operation of a JSON Patch: op is add, replace or remove.
type PatchOp struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// ProvisionRequest is the body of PUT /v1/nodes/X/states/provision.
type ProvisionRequest struct {
	Target string `json:"target"` // a verb, or active / deleted
	// ConfigDrive is a string (base64 of a gzipped ISO, or a URL) or an object
	// with meta_data, user_data, network_data, vendor_data.
	ConfigDrive    any              `json:"configdrive,omitempty"`
	CleanSteps     []map[string]any `json:"clean_steps,omitempty"`
	DeploySteps    []map[string]any `json:"deploy_steps,omitempty"`
	ServiceSteps   []map[string]any `json:"service_steps,omitempty"`
	RescuePassword string           `json:"rescue_password,omitempty"`
	Runbook        string           `json:"runbook,omitempty"`
	DisableRamdisk bool             `json:"disable_ramdisk,omitempty"`
}

// PowerRequest is the body of PUT /v1/nodes/X/states/power.
type PowerRequest struct {
	Target  string `json:"target"`            // power on, power off, rebooting, soft …
	Timeout int    `json:"timeout,omitempty"` // seconds
}

// Validation is one interface's word in the answer to GET /v1/nodes/X/validate.
// Result is nil when the driver has no such interface.
type Validation struct {
	Result *bool  `json:"result"`
	Reason string `json:"reason,omitempty"`
}

// History is one row of a node's history.
type History struct {
	UUID      string     `json:"uuid"`
	CreatedAt *time.Time `json:"created_at"`
	Severity  string     `json:"severity"`
	Event     string     `json:"event"`
	EventType string     `json:"event_type,omitempty"`
	Conductor string     `json:"conductor,omitempty"`
	User      string     `json:"user,omitempty"`
}

// Driver is a hardware type as GET /v1/drivers lists it.
type Driver struct {
	Name  string   `json:"name"`
	Hosts []string `json:"hosts"`
	Type  string   `json:"type"`
}

// Error is a refusal by the API, unwrapped from Ironic's two nested bodies.
type Error struct {
	Status  int    // HTTP status
	Code    string // Client or Server
	Message string
}

// Error says what the API said.
func (e *Error) Error() string { return fmt.Sprintf("%s (HTTP %d)", e.Message, e.Status) }

// ParseError reads an error reply: {"error_message": "<JSON in a string>"}, with
// a faultstring from the API itself or a title and description from its edge; or
// the problem+json of /slipway/v1.
func ParseError(status int, body []byte) *Error {
	out := &Error{Status: status, Code: "Client", Message: fmt.Sprintf("the server answered %d without a reason", status)}
	if status >= 500 {
		out.Code = "Server"
	}
	var outer struct {
		Message json.RawMessage `json:"error_message"`
		Detail  string          `json:"detail"`
	}
	if json.Unmarshal(body, &outer) != nil {
		return out
	}
	if len(outer.Message) == 0 {
		if outer.Detail != "" {
			out.Message = outer.Detail
		}
		return out
	}
	inner := []byte(outer.Message)
	var text string
	if json.Unmarshal(outer.Message, &text) == nil {
		inner = []byte(text)
	}
	var f struct {
		Code        string `json:"faultcode"`
		Fault       string `json:"faultstring"`
		Title       string `json:"title"`
		Description string `json:"description"`
	}
	switch err := json.Unmarshal(inner, &f); {
	case err != nil && text != "":
		out.Message = text
	case f.Fault != "":
		out.Message = f.Fault
	case f.Description != "":
		out.Message = f.Description
	case f.Title != "":
		out.Message = f.Title
	}
	if f.Code != "" {
		out.Code = f.Code
	}
	return out
}
