// Package store keeps nodes, ports, work, boots, evidence and history. It is one
// interface with drivers over database/sql; Advance is the only writer of a
// node's provision state.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/proto/event"
)

// Errors that callers tell apart with errors.Is.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("already exists")
	// ErrStale means the compare-and-swap lost: read again and decide again.
	ErrStale = errors.New("changed meanwhile")
	// ErrFenced means the worker's lease on its work was lost.
	ErrFenced = errors.New("lease lost")
	// ErrInvalid is a request that no state of the store could satisfy: an unknown
	// sort key, a state changed by other means than Advance.
	ErrInvalid = errors.New("invalid")
)

// ExistsError says which object has the value already.
type ExistsError struct{ What, Value, Owner string }

// Error names value and owner.
func (e *ExistsError) Error() string {
	return fmt.Sprintf("a %s with %s already exists", e.What, e.Value)
}

// Unwrap makes it an ErrExists.
func (e *ExistsError) Unwrap() error { return ErrExists }

// Node is a machine with Ironic's fields. Times are UTC; zero means null.
type Node struct {
	UUID, Name                                     string
	CreatedAt, UpdatedAt                           time.Time
	Driver                                         string
	DriverInfo, DriverInternalInfo                 map[string]any // secrets in DriverInfo are sealed at rest
	InstanceInfo, Properties, Extra                map[string]any
	NetworkData                                    map[string]any
	InstanceUUID, InstanceName                     string
	ResourceClass, Owner, Lessee, Description      string
	ConductorGroup, Shard, ChassisUUID, ParentNode string
	Interfaces                                     map[string]string // "boot_interface" → "ipxe", …
	ProvisionState, TargetProvisionState           state.State
	ProvisionUpdatedAt                             time.Time
	PowerState, TargetPowerState                   string // "", "power on", "power off", …
	LastError                                      string
	Maintenance                                    bool
	MaintenanceReason, Fault                       string
	AutomatedClean                                 *bool
	Protected, Retired                             bool
	ProtectedReason, RetiredReason                 string
	ConsoleEnabled, DisablePowerOff                bool
	BootMode                                       string // "", bios, uefi
	SecureBoot                                     *bool
	CleanStep, DeployStep, ServiceStep             map[string]any
	RaidConfig, TargetRaidConfig                   map[string]any
	Reservation                                    string // conductor that holds the work's lease, "" when none
	InspectionStartedAt, InspectionFinishedAt      time.Time
	Inventory                                      json.RawMessage // last inspection, nil before the first
	PluginData                                     json.RawMessage
	Traits                                         []string
	Version                                        int64 // grows with every write; the compare-and-swap's word
}

// Port is a NIC of a node.
type Port struct {
	UUID, NodeUUID, Address, Name  string // Address: lower case, colons
	PhysicalNetwork, PortgroupUUID string
	Description                    string
	PXEEnabled, IsSmartNIC         bool
	LocalLink                      map[string]any
	Extra, InternalInfo            map[string]any
	CreatedAt, UpdatedAt           time.Time
}

// NodeFilter selects nodes; zero values select all. Pointers are tri-state.
type NodeFilter struct {
	ProvisionState              string
	Driver, ResourceClass       string
	Owner, Lessee, InstanceUUID string
	ConductorGroup, Fault       string
	Maintenance, Associated     *bool
	Retired                     *bool
	DescriptionContains         string
	// Marker is the UUID after which the page starts; Limit 0 is all.
	Marker   string
	Limit    int
	SortKey  string // a column of Ironic's API; "" is creation order
	SortDesc bool
}

// PortFilter selects ports.
type PortFilter struct {
	NodeUUID, Address string
	Marker            string
	Limit             int
	SortKey           string
	SortDesc          bool
}

// Work is a leased unit a conductor carries out for a node. A node has at most one.
type Work struct {
	ID       int64
	NodeUUID string
	Kind     string          // state.Work…
	Payload  json.RawMessage // the handler's own record: plan, index, ids; survives a crash
	RunAt    time.Time       // not before
	Deadline time.Time       // of what is waited for; past it the handler is run with Overdue
	Cause    string          // why it waits or retries, for people
	Attempt  int             // consecutive retries
	Fence    int64           // grows with each claim
	Owner    string          // conductor that holds the lease
	LeaseEnd time.Time
	Created  time.Time
}

// Lease proves to Advance and SaveWork that the caller still holds the work. It
// holds until somebody else claims the work or the work is replaced or deleted:
// a lease past its end that nobody took is still good (a paused conductor or a
// jump of the clock loses nothing by itself), and Fence decides, never a clock.
type Lease struct {
	WorkID, Fence int64
	Owner         string
}

// Lease returns the work's lease.
func (w *Work) Lease() *Lease { return &Lease{w.ID, w.Fence, w.Owner} }

// Transition is what Advance carries out in one transaction: the
// compare-and-swap on (state, version), every edge of Verbs in order, the
// changes by Set, one history row, and the work row.
//
// What becomes of the node's work: the last edge with Work != "" replaces it.
// Otherwise, with a Lease, it is parked (Park) or ended; without one (a user's
// verb) it is kept and made due where the new state still needs it (unhold),
// and deleted where the new state rests or has failed (abort).
type Transition struct {
	Node    string // UUID
	From    state.State
	Version int64 // 0 accepts any version as long as the state is From
	Verbs   []state.Verb
	// Target overrides the new target provision state (manual clean:
	// manageable). By default a node keeps its target between states that have
	// the same one in the table (clean wait after a manual cleaning), and takes
	// the table's otherwise: "" when stable.
	Target *state.State
	// Set changes other fields on the way. It sees the node before the move and
	// must not touch states, nor call the store. A user's verb that queues work
	// clears LastError unless Set changes it.
	Set func(*Node) error
	// Payload starts the work that the last edge queues.
	Payload json.RawMessage
	// RunAt delays that work; zero is now.
	RunAt time.Time
	// Lease, when given, must still hold; ErrFenced otherwise.
	Lease *Lease
	// Park keeps the leased work instead of ending it: run at RunAt, with
	// Payload (nil keeps the stored one), Deadline and Cause, its lease given up.
	Park     bool
	Deadline time.Time
	Cause    string
	// Who and Why go to the node's history.
	Who, Why string
}

// History is a row of a node's history (Ironic's fields).
type History struct {
	UUID, NodeUUID, Event, EventType, Severity, Conductor, User string
	CreatedAt                                                   time.Time
}

// Boot is one network boot that was prepared for a node: what earns the token.
type Boot struct {
	Nonce    string // stored hashed
	NodeUUID string
	MAC      string
	Path     string // secret path element of the boot's own URLs
	Created  time.Time
	Used     time.Time // zero until lookup spent it
}

// Evidence is a stored proto/event.Evidence.
type Evidence struct {
	ID       int64
	NodeUUID string
	MAC      string // for machines without a node
	Time     time.Time
	event.Evidence
}

// Store is the interface. Every method may return ctx's error; those that name
// one object return ErrNotFound when it is not there. Functions passed to a
// store (Set, mutate, OnChange's) run inside its write path: they must be quick
// and must not call the store.
type Store interface {
	Close() error
	// Ping says whether the database answers.
	Ping(ctx context.Context) error

	// CreateNode stores n in state.Enroll (or the state n already has) with Version 1.
	CreateNode(ctx context.Context, n *Node) error
	// Node finds by UUID or name.
	Node(ctx context.Context, ident string) (*Node, error)
	// Nodes lists nodes without Inventory and PluginData, which are large.
	Nodes(ctx context.Context, f NodeFilter) ([]*Node, error)
	// UpdateNode reads, mutates and writes in one transaction; version 0 accepts any.
	// A change of a state field by mutate is refused (ErrInvalid). A mutate that
	// changes nothing writes nothing.
	UpdateNode(ctx context.Context, uuid string, version int64, mutate func(*Node) error) (*Node, error)
	// UpdateLeased is UpdateNode of the node whose work the lease is on, or ErrFenced.
	UpdateLeased(ctx context.Context, l *Lease, mutate func(*Node) error) (*Node, error)
	// DeleteNode removes the node with its ports, work, boots, evidence and history.
	DeleteNode(ctx context.Context, uuid string) error

	CreatePort(ctx context.Context, p *Port) error
	Port(ctx context.Context, ident string) (*Port, error) // UUID or name
	PortByAddress(ctx context.Context, mac string) (*Port, error)
	Ports(ctx context.Context, f PortFilter) ([]*Port, error)
	UpdatePort(ctx context.Context, uuid string, mutate func(*Port) error) (*Port, error)
	DeletePort(ctx context.Context, uuid string) error

	// Advance moves a node. Errors: *state.NotAcceptedError, ErrStale, ErrFenced.
	Advance(ctx context.Context, t Transition) (*Node, error)

	// ClaimWork leases one due row (RunAt passed, no live lease), or ErrNotFound.
	ClaimWork(ctx context.Context, owner string, lease time.Duration) (*Work, error)
	// NextWork says when the next row is due; zero time when none is.
	NextWork(ctx context.Context) (time.Time, error)
	RenewWork(ctx context.Context, l *Lease, lease time.Duration) error
	// ReleaseWork gives up every lease that owner holds; a conductor calls it once
	// as it starts, for what it held when it died.
	ReleaseWork(ctx context.Context, owner string) error
	// SaveWork stores the payload under the lease, before or after a side effect.
	SaveWork(ctx context.Context, l *Lease, payload json.RawMessage) error
	// ParkWork gives the lease up: run again at runAt (zero is now), or earlier by
	// WakeWork. A nil payload keeps the stored one.
	ParkWork(ctx context.Context, l *Lease, payload json.RawMessage, runAt, deadline time.Time, attempt int, cause string) error
	// WakeWork makes a node's parked work due now. Work that runs meanwhile is due
	// again as soon as it is parked: a wake-up is never lost. It is not an error
	// when there is none.
	WakeWork(ctx context.Context, nodeUUID string) error
	// WorkOf returns a node's work, or ErrNotFound.
	WorkOf(ctx context.Context, nodeUUID string) (*Work, error)

	CreateBoot(ctx context.Context, b *Boot) error
	BootByPath(ctx context.Context, path string) (*Boot, error)
	// SpendNonce marks the node's boot with this nonce used and returns it;
	// ErrNotFound for an unknown nonce, ErrExists for one spent before.
	SpendNonce(ctx context.Context, nonce string, at time.Time) (*Boot, error)

	AddEvidence(ctx context.Context, e *Evidence) error
	// LastEvidence returns the newest row of each hop since t, oldest first.
	LastEvidence(ctx context.Context, nodeUUID string, since time.Time) ([]Evidence, error)

	AddHistory(ctx context.Context, h *History) error
	Histories(ctx context.Context, nodeUUID string, limit int) ([]History, error)

	// OnChange registers f, called after each commit of Advance (with the moved
	// node and the transition) and of ParkWork and WakeWork (node nil), in the
	// order of the commits and before those methods return. f must not block.
	OnChange(f func(n *Node, t *Transition))
}
