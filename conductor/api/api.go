// Package api is the conductor's HTTP API: Ironic's REST v1 with microversions
// 1.1 to 1.115, the calls of its agents, and Slipway's own /slipway/v1.
//
// One file holds one resource; field.go the form of the tables that say what a
// resource's fields are; errors.go the only writer of refusals; version.go the
// microversion. What the wire looks like was recorded from Ironic 39
// (proto/testdata); where that answers 500 to bad input, this answers 400, and
// a verb that a state does not take is answered with 409 and the verbs it does take.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

// Power changes a node's power and may also implement BootDevices.
type Power interface {
	// Validate says what power control of the node lacks, without calling its BMC.
	Validate(ctx context.Context, n *store.Node) error
	// SetPower starts the change and returns; the outcome goes to the node's
	// power_state or last_error. target is Ironic's; timeout 0 is the default.
	SetPower(ctx context.Context, nodeUUID, target string, timeout time.Duration) error
}

// Events is the hub of the nodes' events.
type Events interface {
	Publish(e event.Event)
	// Subscribe streams the events with an ID after the given one of one node
	// (UUID), or of all for "". A slow listener loses events. cancel ends it.
	Subscribe(node string, after int64) (events <-chan event.Event, cancel func())
}

// Config is what the API needs. Store is required; the rest has defaults.
type Config struct {
	Store   store.Store
	Events  Events
	Power   Power
	Drivers []Driver
	Live    *Live
	// Logs keeps what agents said; nil keeps nothing.
	Logs interface {
		Tail(nodeUUID string, limit int) ([]event.Event, error)
		Forget(nodeUUID string)
	}
	// Conductor is this conductor's name in replies, "localhost" by default.
	Conductor string
	// PublicURL, when set, is the scheme and host in links instead of what the request used.
	PublicURL string
	// Auth, when set, wraps every route but the version documents and the
	// agents' (these have tokens), and names the caller by WithUser.
	Auth func(http.Handler) http.Handler
	// HeartbeatTimeout goes to stock agents, which call at 0.3 to 0.6 of it. Default 300 s.
	HeartbeatTimeout time.Duration
	// HeartbeatEvery goes to Slipway's agents. Default 10 s.
	HeartbeatEvery time.Duration
	// FastTrack lets agents look up nodes that rest, so that a ramdisk stays useful between steps.
	FastTrack bool
	Now       func() time.Time
	Log       *slog.Logger
}

type server struct {
	cfg     Config
	store   store.Store
	drivers driverSet
	live    *Live
	log     *slog.Logger
	now     func() time.Time
	started time.Time
}

// New returns the handler of the whole API.
func New(cfg Config) (http.Handler, error) {
	if cfg.Store == nil {
		return nil, errors.New("api: Config.Store is required")
	}
	if cfg.Power == nil {
		cfg.Power = noPower{}
	}
	if cfg.Events == nil {
		cfg.Events = noEvents{}
	}
	if cfg.Live == nil {
		cfg.Live = NewLive()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Conductor == "" {
		cfg.Conductor = "localhost"
	}
	if cfg.HeartbeatTimeout == 0 {
		cfg.HeartbeatTimeout = 300 * time.Second
	}
	if cfg.HeartbeatEvery == 0 {
		cfg.HeartbeatEvery = 10 * time.Second
	}
	if cfg.Auth == nil {
		cfg.Auth = func(next http.Handler) http.Handler { return next }
	}
	if err := cfg.Live.Load(context.Background(), cfg.Store); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	s := &server{cfg: cfg, store: cfg.Store, drivers: cfg.Drivers, live: cfg.Live, log: cfg.Log, now: cfg.Now, started: cfg.Now()}
	r := chi.NewRouter()
	r.Use(withRequestID, s.guard, middleware.StripSlashes)
	r.NotFound(func(w http.ResponseWriter, _ *http.Request) { writeFault(w, hidden()) })
	r.MethodNotAllowed(func(w http.ResponseWriter, _ *http.Request) { writeFault(w, edge(http.StatusMethodNotAllowed, "")) })
	r.With(microversion).HandleFunc("/", s.root)
	r.Route("/v1", s.routesV1)
	r.Route("/slipway/v1", s.routesOwn)
	return r, nil
}

// routesV1 is Ironic's API. since gives the microversion and the refusal that
// proto/testdata/routes.json records for older requests.
func (s *server) routesV1(r chi.Router) {
	r.Use(microversion)
	r.Get("/", s.rootV1)
	r.Group(func(r chi.Router) { // the agents' routes
		r.Use(limits(maxBody))
		r.With(since(22, notFound)).Get("/lookup", s.lookup)
		r.Post("/heartbeat/{node}", s.heartbeat)
		r.Post("/continue_inspection", s.continueInspection)
	})
	r.Group(func(r chi.Router) {
		r.Use(s.cfg.Auth)
		r.With(limits(maxDriveBody)).Put("/nodes/{node}/states/provision", s.putProvision)
		r.With(limits(maxDriveBody)).Patch("/nodes/{node}", s.patchNode)
		r.With(limits(maxDriveBody)).Post("/nodes", s.createNode)
		r.Group(func(r chi.Router) {
			r.Use(limits(maxBody))
			s.nodeRoutes(r)
			s.portRoutes(r)
			s.otherRoutes(r)
		})
	})
}

func (s *server) nodeRoutes(r chi.Router) {
	r.Get("/nodes", s.listNodes)
	r.Get("/nodes/detail", s.listNodesDetail)
	r.Get("/nodes/{node}", s.getNode)
	r.Delete("/nodes/{node}", s.deleteNode)
	r.Get("/nodes/{node}/validate", s.validateNode)
	r.Put("/nodes/{node}/maintenance", s.putMaintenance)
	r.Delete("/nodes/{node}/maintenance", s.deleteMaintenance)
	r.Get("/nodes/{node}/states", s.getStates)
	r.Put("/nodes/{node}/states/power", s.putPower)
	r.Get("/nodes/{node}/states/console", s.getConsole)
	r.Get("/nodes/{node}/management/boot_device", s.getBootDevice)
	r.Put("/nodes/{node}/management/boot_device", s.putBootDevice)
	r.Get("/nodes/{node}/management/boot_device/supported", s.supportedBootDevices)
	traits := r.With(since(37, notAcceptable))
	traits.Get("/nodes/{node}/traits", s.listTraits)
	traits.Put("/nodes/{node}/traits", s.putTraits)
	traits.Delete("/nodes/{node}/traits", s.deleteTraits)
	traits.Put("/nodes/{node}/traits/{trait}", s.putTrait)
	traits.Delete("/nodes/{node}/traits/{trait}", s.deleteTrait)
	vifs := r.With(since(28, hidden))
	vifs.Get("/nodes/{node}/vifs", s.listVIFs)
	vifs.Post("/nodes/{node}/vifs", s.attachVIF)
	vifs.Delete("/nodes/{node}/vifs/{vif}", s.detachVIF)
	r.With(since(40, hidden)).Get("/nodes/{node}/bios", s.emptyOf("bios"))
	r.With(since(40, hidden)).Get("/nodes/{node}/bios/{setting}", s.noBIOSSetting)
	r.With(since(86, hidden)).Get("/nodes/{node}/firmware", s.emptyOf("firmware"))
	r.With(since(78, hidden)).Get("/nodes/{node}/history", s.listHistory)
	r.With(since(78, hidden)).Get("/nodes/{node}/history/{history}", s.getHistory)
	r.With(since(81, hidden)).Get("/nodes/{node}/inventory", s.getInventory)
	r.With(since(52, hidden)).Get("/nodes/{node}/allocation", s.noAllocation)
	r.With(since(83, hidden)).Get("/nodes/{node}/children", s.listChildren)
	r.With(since(24, hidden)).Get("/nodes/{node}/portgroups", s.emptyOf("portgroups"))
	r.With(since(32, notInVersion)).Get("/nodes/{node}/volume", s.volumeRoot("node"))
	r.With(since(32, hidden)).Get("/nodes/{node}/volume/connectors", s.emptyOf("connectors"))
	r.With(since(32, hidden)).Get("/nodes/{node}/volume/targets", s.emptyOf("targets"))
	r.Get("/nodes/{node}/vendor_passthru/methods", s.emptyMethods)
	r.Get("/nodes/{node}/ports", s.listNodePorts)
	r.Get("/nodes/{node}/ports/detail", s.listNodePortsDetail)
}

func (s *server) portRoutes(r chi.Router) {
	r.Get("/ports", s.listPorts)
	r.Post("/ports", s.createPort)
	r.Get("/ports/detail", s.listPortsDetail)
	r.Get("/ports/{port}", s.getPort)
	r.Patch("/ports/{port}", s.patchPort)
	r.Delete("/ports/{port}", s.deletePort)
}

func (s *server) otherRoutes(r chi.Router) {
	r.Get("/drivers", s.listDrivers)
	r.Get("/drivers/{driver}", s.getDriver)
	r.Get("/drivers/{driver}/properties", s.driverProperties)
	r.With(since(49, notInVersion)).Get("/conductors", s.listConductors)
	r.With(since(49, notInVersion)).Get("/conductors/{conductor}", s.getConductor)
	r.Get("/chassis", s.empty("chassis"))
	r.Get("/chassis/detail", s.empty("chassis"))
	r.With(since(23, notInVersion)).Get("/portgroups", s.empty("portgroups"))
	r.With(since(23, notInVersion)).Get("/portgroups/detail", s.empty("portgroups"))
	r.With(since(52, noAllocationsYet)).Get("/allocations", s.empty("allocations"))
	r.With(since(55, hidden)).Get("/deploy_templates", s.empty("deploy_templates"))
	r.With(since(92, hidden)).Get("/runbooks", s.empty("runbooks"))
	r.With(since(96, noRulesYet)).Get("/inspection_rules", s.empty("inspection_rules"))
	r.With(since(82, noShardsYet)).Get("/shards", s.empty("shards"))
	r.With(since(32, notInVersion)).Get("/volume", s.volumeRoot(""))
	r.With(since(32, hidden)).Get("/volume/connectors", s.empty("connectors"))
	r.With(since(32, hidden)).Get("/volume/targets", s.empty("targets"))
}

// unescape undoes a path element's escapes; what does not unescape stays, and
// is refused as an identifier.
func unescape(s string) string {
	out, err := url.PathUnescape(s)
	if err != nil {
		return s
	}
	return out
}

// noPower is the Power of a conductor that has none.
type noPower struct{}

var errNoPower = errors.New("this conductor controls no power")

func (noPower) Validate(context.Context, *store.Node) error { return errNoPower }
func (noPower) SetPower(context.Context, string, string, time.Duration) error {
	return errNoPower
}

// noEvents drops what is published and streams nothing.
type noEvents struct{}

func (noEvents) Publish(event.Event) {}
func (noEvents) Subscribe(string, int64) (<-chan event.Event, func()) {
	return nil, func() {}
}
