// Package event holds what the conductor and the agent tell about a node as it
// happens: evidence of each hop, steps, and progress of long work.
package event

import (
	"encoding/json"
	"time"
)

// Kinds of events on /slipway/v1/events.
const (
	KindState    = "state"    // Data is State
	KindEvidence = "evidence" // Data is Evidence
	KindProgress = "progress" // Data is Progress
	KindStep     = "step"     // Data is Step
	KindLog      = "log"      // Data is Log
	KindGap      = "gap"      // Data is Gap; made by the hub for one listener
)

// Event is one line of a node's stream. ID grows within one conductor and is
// what SSE's Last-Event-ID resumes from.
type Event struct {
	ID   int64           `json:"id"`
	Node string          `json:"node"` // UUID
	Time time.Time       `json:"time"`
	Kind string          `json:"kind"`
	Data json.RawMessage `json:"data"`
}

// New builds an event; data that cannot be marshalled is a programming error.
func New(node, kind string, at time.Time, data any) Event {
	raw, err := json.Marshal(data)
	if err != nil {
		panic("event: " + err.Error())
	}
	return Event{Node: node, Time: at, Kind: kind, Data: raw}
}

// State is a change of the provision state.
type State struct {
	From      string `json:"from"`
	To        string `json:"to"`
	Verb      string `json:"verb"`
	Target    string `json:"target,omitempty"`
	LastError string `json:"last_error,omitempty"`
}

// Hops of a node's way, in the order in which they come.
const (
	HopPower     = "power"     // BMC: power and boot device
	HopDHCP      = "dhcp"      // discover, offer, ack
	HopTFTP      = "tftp"      // firmware's iPXE
	HopHTTP      = "http"      // script, kernel, ramdisk, config
	HopLookup    = "lookup"    // the agent asked who it is
	HopInventory = "inventory" // the agent posted its inventory
	HopHeartbeat = "heartbeat" // the agent called
	HopCommand   = "command"   // a command was sent, ran, ended
	HopDisk      = "disk"      // the machine was told to boot its disk
)

// Evidence is a dated fact about one hop.
type Evidence struct {
	Hop    string         `json:"hop"`
	Fact   string         `json:"fact"` // short past tense: "offer sent", "kernel served"
	OK     bool           `json:"ok"`
	Detail map[string]any `json:"detail,omitempty"` // e.g. mac, ip, file, bytes, error
}

// Progress of a step, at most once a second. Rates are bytes a second.
type Progress struct {
	Step       string           `json:"step"`
	Stage      string           `json:"stage"`                // download, write, verify, flush, …
	Done       int64            `json:"done"`                 // bytes of Total
	Total      int64            `json:"total"`                // bytes, 0 when unknown
	Percent    float64          `json:"percent"`              // 0 to 100
	Rate       float64          `json:"rate"`                 // of Done, over the last seconds
	ETA        float64          `json:"eta_seconds"`          // 0 when unknown
	BytesIn    int64            `json:"bytes_in"`             // off the network
	BytesOut   int64            `json:"bytes_out"`            // onto the disk
	Bottleneck string           `json:"bottleneck,omitempty"` // network, decode, digest, disk
	StageNanos map[string]int64 `json:"stage_nanos,omitempty"`
}

// Step tells of a step's begin and end.
type Step struct {
	Step    string  `json:"step"`
	Status  string  `json:"status"` // started, succeeded, failed
	Seconds float64 `json:"seconds,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// Log is one line of the agent's or kernel's log.
type Log struct {
	Level   string `json:"level"`
	Source  string `json:"source"` // agent, kernel
	Message string `json:"message"`
}

// Gap stands where a listener was too slow, or resumed too late, for events that
// are not kept any more.
type Gap struct {
	// Lost counts the events of all nodes in the gap; 0 is unknown (the
	// conductor was started again meanwhile).
	Lost int64 `json:"lost"`
}
