// Package agent holds the wire types of the ironic-python-agent protocol and
// of Slipway's extensions to it. Field names are IPA's (recorded from IPA 13
// and Ironic 39); what is ours travels in fields and headers that a stock peer
// never looks at.
package agent

import (
	"encoding/json"
	"time"
)

// Headers that a Slipway agent adds to lookup. A stock Ironic ignores them.
const (
	HeaderNonce  = "X-Slipway-Nonce"   // single-use boot nonce from the boot payload
	HeaderBootID = "X-Slipway-Boot-Id" // kernel boot id of the ramdisk
)

// BootConfig is the JSON the conductor appends to the ramdisk as the file
// /etc/slipway/boot.json (a cpio made at serve time).
type BootConfig struct {
	// Conductor is the base URL of the API, e.g. "http://10.77.0.1:6385".
	Conductor string `json:"conductor"`
	// CA is a PEM bundle that the conductor's certificate must chain to; empty for plain HTTP.
	CA string `json:"ca,omitempty"`
	// Nonce earns the agent token at lookup, once.
	Nonce string `json:"nonce,omitempty"`
	// NodeUUID is the node this boot was made for; empty for an unknown machine.
	NodeUUID string `json:"node_uuid,omitempty"`
	// BootMAC is the address the firmware booted from (lower case, colons).
	BootMAC string `json:"boot_mac,omitempty"`
	// Slipway is true when the conductor understands Slipway's extensions.
	Slipway bool `json:"slipway"`
	// SSHKeys, when set, are for the operator's debug shell in the ramdisk.
	SSHKeys []string `json:"ssh_keys,omitempty"`
	// LogLevel is a slog level name: debug, info, warn, error.
	LogLevel string `json:"log_level,omitempty"`
}

// Lookup is the answer to GET /v1/lookup.
type Lookup struct {
	Node   LookupNode   `json:"node"`
	Config LookupConfig `json:"config"`
}

// LookupNode is the part of the node that lookup shows.
type LookupNode struct {
	UUID               string          `json:"uuid"`
	Properties         map[string]any  `json:"properties"`
	InstanceInfo       map[string]any  `json:"instance_info"`
	DriverInternalInfo map[string]any  `json:"driver_internal_info"`
	Links              json.RawMessage `json:"links,omitempty"`
}

// LookupConfig is the agent's configuration by the conductor. Only what our
// agent reads or our conductor must send is named here.
type LookupConfig struct {
	Metrics                map[string]any `json:"metrics"`
	MetricsStatsd          map[string]any `json:"metrics_statsd"`
	HeartbeatTimeout       int            `json:"heartbeat_timeout"` // seconds
	AgentContainers        map[string]any `json:"agent_containers,omitempty"`
	AgentToken             string         `json:"agent_token"`
	AgentTokenRequired     bool           `json:"agent_token_required"`
	AgentMD5ChecksumEnable bool           `json:"agent_md5_checksum_enable"`
	DisableDeepInspection  bool           `json:"disable_deep_image_inspection"`
	PermittedImageFormats  []string       `json:"permitted_image_formats"`
	AgentSkipBMCDetect     bool           `json:"agent_skip_bmc_detect"`
	EnableBIOSBootloader   bool           `json:"enable_bios_bootloader_install"`
	TLSMinVersion          string         `json:"tls_min_version,omitempty"`
	TLSCipherSuites        any            `json:"tls_cipher_suites"`
	// Slipway is absent under a stock Ironic.
	Slipway *SlipwayConfig `json:"slipway,omitempty"`
}

// SlipwayConfig is what our conductor adds to the lookup answer.
type SlipwayConfig struct {
	// EventsPath takes POSTed event batches ([]Event), authenticated with the agent token.
	EventsPath string `json:"events_path"`
	// OrdersRequired makes the agent refuse destructive steps without an Order.
	OrdersRequired bool `json:"orders_required"`
	// HeartbeatSeconds is the interval the agent should use now.
	HeartbeatSeconds float64 `json:"heartbeat_seconds"`
	// Inspect asks the agent to post its inventory to InspectPath right after lookup.
	Inspect     bool   `json:"inspect"`
	InspectPath string `json:"inspect_path"`
	// Time is the conductor's clock, RFC 3339; the agent sets its own from it.
	Time time.Time `json:"time"`
}

// Heartbeat is the body of POST /v1/heartbeat/UUID.
type Heartbeat struct {
	CallbackURL   string `json:"callback_url"`
	AgentToken    string `json:"agent_token"`
	AgentVersion  string `json:"agent_version"`
	AgentVerifyCA string `json:"agent_verify_ca,omitempty"`
	AgentStatus   string `json:"agent_status,omitempty"`
	AgentMessage  string `json:"agent_status_message,omitempty"`
}

// Command statuses of the agent API.
const (
	Running                      = "RUNNING"
	Succeeded                    = "SUCCEEDED"
	Failed                       = "FAILED"
	CleanVersionMismatch         = "CLEAN_VERSION_MISMATCH"
	FaultClient                  = "Client"
	FaultServer                  = "Server"
	InspectionCallbackPath       = "/v1/continue_inspection"
	AgentAPIPort                 = 9999
	AgentVersion                 = "13.0.0" // the IPA release whose protocol we speak
	HardwareManagerName          = "slipway_hardware_manager"
	HardwareManagerVersion       = "1.0"
	EventsPathFormat             = "/slipway/v1/agent/%s/events"
	MaxCommandBody         int64 = 8 << 20 // bytes; a config drive travels inside
)

// CommandRequest is the body of POST /v1/commands/.
type CommandRequest struct {
	Name   string          `json:"name"` // extension.command
	Params json.RawMessage `json:"params"`
}

// CommandResult is one command as the agent API shows it.
type CommandResult struct {
	ID            string          `json:"id"`
	CommandName   string          `json:"command_name"` // without the extension
	CommandStatus string          `json:"command_status"`
	CommandError  *CommandError   `json:"command_error"`
	CommandResult json.RawMessage `json:"command_result"`
}

// CommandError says why a command failed.
type CommandError struct {
	Type    string `json:"type"`
	Code    int    `json:"code"`
	Message string `json:"message"`
	Details string `json:"details"`
}

// Fault is the agent API's error body outside a command.
type Fault struct {
	Code    string `json:"faultcode"`
	Message string `json:"faultstring"`
}

// Step is Ironic's step dict.
type Step struct {
	Step            string          `json:"step"`
	Interface       string          `json:"interface"`
	Priority        int             `json:"priority"`
	Args            map[string]any  `json:"args,omitempty"`
	RebootRequested bool            `json:"reboot_requested,omitempty"`
	Abortable       bool            `json:"abortable,omitempty"`
	RequiresRamdisk bool            `json:"requires_ramdisk,omitempty"`
	ArgsInfo        json.RawMessage `json:"argsinfo,omitempty"`
	Destructive     bool            `json:"slipway_destructive,omitempty"`
}

// StepParams are the params of execute_{clean,deploy,service}_step.
type StepParams struct {
	Step  Step            `json:"step"`
	Node  json.RawMessage `json:"node"`
	Ports json.RawMessage `json:"ports"`
	// CommandID is ours: the agent gives a repeated command with the same id the
	// first one's result instead of running it again.
	CommandID string `json:"slipway_command_id,omitempty"`
	// Order is ours: the permission for a destructive step. See order.go.
	Order *Order `json:"slipway_order,omitempty"`
	// Version guards against a changed hardware manager between get and execute.
	CleanVersion   map[string]string `json:"clean_version,omitempty"`
	DeployVersion  map[string]string `json:"deploy_version,omitempty"`
	ServiceVersion map[string]string `json:"service_version,omitempty"`
}

// StepsResult is the result of get_*_steps; the map key is "clean_steps",
// "deploy_steps" or "service_steps", by kind, inside it by hardware manager.
type StepsResult struct {
	CleanSteps             map[string][]Step `json:"clean_steps,omitempty"`
	DeploySteps            map[string][]Step `json:"deploy_steps,omitempty"`
	ServiceSteps           map[string][]Step `json:"service_steps,omitempty"`
	HardwareManagerVersion map[string]string `json:"hardware_manager_version"`
}

// StepDone is the result of execute_*_step.
type StepDone struct {
	CleanResult   any   `json:"clean_result,omitempty"`
	DeployResult  any   `json:"deploy_result,omitempty"`
	ServiceResult any   `json:"service_result,omitempty"`
	CleanStep     *Step `json:"clean_step,omitempty"`
	DeployStep    *Step `json:"deploy_step,omitempty"`
	ServiceStep   *Step `json:"service_step,omitempty"`
}

// ImageInfo is the image_info argument of write_image, as Ironic's direct
// deploy interface sends it.
type ImageInfo struct {
	ID              string   `json:"id"`
	URLs            []string `json:"urls"`
	DiskFormat      string   `json:"disk_format"`
	ContainerFormat string   `json:"container_format"`
	StreamRaw       bool     `json:"stream_raw_images"`
	Checksum        string   `json:"checksum"`
	OSHashAlgo      string   `json:"os_hash_algo"`  // sha256 or sha512
	OSHashValue     string   `json:"os_hash_value"` // lower-case hex of the bytes at the URL
	NodeUUID        string   `json:"node_uuid"`
	// ConfigDrive is base64 of a gzipped ISO (as Ironic's) or an http(s) URL of one.
	ConfigDrive string `json:"configdrive,omitempty"`
	// RootDevice are the root device hints, by the node's properties.
	RootDevice map[string]any `json:"root_device,omitempty"`
}
