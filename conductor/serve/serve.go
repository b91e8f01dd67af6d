package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/slipway-metal/slipway/conductor/api"
	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/boot"
	"github.com/slipway-metal/slipway/conductor/boot/dhcp"
	"github.com/slipway-metal/slipway/conductor/clean"
	"github.com/slipway-metal/slipway/conductor/deploy"
	"github.com/slipway-metal/slipway/conductor/events"
	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/inspect"
	"github.com/slipway-metal/slipway/conductor/logs"
	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/store/sqlite"
	"github.com/slipway-metal/slipway/conductor/verify"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/event"
)

// lease is how long a dead conductor's work rests before another takes it.
const lease = 20 * time.Second

// eventsKept is how many events a listener that reconnects can still be given.
const eventsKept = 20000

// Run starts the conductor and returns when ctx ends or a part can't go on.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.check(); err != nil {
		return err
	}
	key, err := loadKey(cfg.Data)
	if err != nil {
		return err
	}
	unlock, err := lockData(cfg.Data)
	if err != nil {
		return err
	}
	defer unlock()
	st, err := sqlite.Open(filepath.Join(cfg.Data, database), key, time.Now)
	if err != nil {
		return err
	}
	defer st.Close() //nolint:errcheck // every write was committed
	g, ctx := errgroup.WithContext(ctx)
	c, err := build(ctx, cfg, st, key, log)
	if err != nil {
		return err
	}
	defer c.bmcs.Close(context.WithoutCancel(ctx)) //nolint:errcheck // sessions end by themselves, too
	for _, part := range c.parts {
		g.Go(func() error { return part(ctx) })
	}
	return g.Wait()
}

// conductor is one process's parts.
type conductor struct {
	cfg   Config
	log   *slog.Logger
	name  string // in replies, and as the owner of work
	store store.Store
	hub   *events.Hub
	live  *api.Live
	logs  *logs.Keeper
	bmcs  *bmc.Manager
	deps  *flow.Deps
	parts []func(context.Context) error
}

func build(ctx context.Context, cfg Config, st store.Store, key []byte, log *slog.Logger) (*conductor, error) {
	c := &conductor{cfg: cfg, log: log, store: st, hub: events.New(eventsKept), live: api.NewLive()}
	var err error
	if c.name, err = os.Hostname(); err != nil {
		c.name = "localhost"
	}
	if c.logs, err = logs.New(filepath.Join(cfg.Data, "logs"), log); err != nil {
		return nil, err
	}
	c.bmcs = bmc.NewManager(bmc.Builtin(), bmc.Options{Logger: log, Timeouts: bmc.Timeouts{Request: cfg.BMCTimeout, Power: cfg.PowerTimeout}},
		func(node string) bmc.PowerRecord { return record{st, node} })
	c.deps = c.flowDeps(key)
	st.OnChange(func(n *store.Node, t *store.Transition) { publishState(c.hub, n, t) })
	handler, err := c.api(ctx)
	if err != nil {
		return nil, err
	}
	c.parts = append(c.parts, c.keepLogs, c.deps.HaltOrphans, c.engine().Run)
	if cfg.PowerSync > 0 {
		c.parts = append(c.parts, func(ctx context.Context) error { return c.deps.SyncPower(ctx, cfg.PowerSync) })
	}
	if err := c.listen(handler); err != nil {
		return nil, err
	}
	if cfg.BootInterface == "" && cfg.ProvisionListen == "" {
		return c, nil
	}
	return c, c.provision(handler)
}

// keepLogs writes what agents say to files.
func (c *conductor) keepLogs(ctx context.Context) error {
	all, cancel := c.hub.Subscribe("", 0)
	defer cancel()
	return c.logs.Run(ctx, all)
}

func (c *conductor) flowDeps(key []byte) *flow.Deps {
	cfg, log := c.cfg, c.log
	deps := &flow.Deps{
		Store: c.store, Dial: flow.DialAgent, LastHeartbeat: c.live.LastHeartbeat, ApplyInventory: api.ApplyInventory,
		BMC:     func(n *store.Node) (bmc.BMC, error) { return c.bmcs.For(n.UUID, n.Driver, n.DriverInfo) },
		Secrets: flow.Secrets{Key: key}, Now: time.Now, Log: log, Config: flow.Defaults,
	}
	if cfg.CallbackTimeout > 0 {
		deps.Config.Callback = cfg.CallbackTimeout
	}
	if cfg.AgentSilence > 0 {
		deps.Config.Silence = cfg.AgentSilence
	}
	deps.Record = func(ctx context.Context, node string, e event.Evidence) {
		log.LogAttrs(ctx, slog.LevelInfo, e.Hop+": "+e.Fact, slog.String("node", node), slog.Any("detail", e.Detail))
		c.keep(ctx, node, "", e)
	}
	return deps
}

func (c *conductor) api(ctx context.Context) (http.Handler, error) {
	var auth func(http.Handler) http.Handler
	if c.cfg.Auth == "http_basic" {
		var err error
		if auth, err = api.BasicAuth(c.cfg.Htpasswd); err != nil {
			return nil, err
		}
	}
	return api.New(api.Config{
		Store: c.store, Events: c.hub, Live: c.live, Logs: c.logs, Power: &power{ctx, c.deps, c.log, powerLimit}, Drivers: api.StandardDrivers(driverProperties),
		Conductor: c.name, Auth: auth, FastTrack: true, Now: time.Now, Log: c.log,
	})
}

func (c *conductor) engine() *work.Engine {
	deps := c.deps
	return &work.Engine{
		Store: c.store, Owner: c.name, Workers: c.cfg.Workers, Lease: lease, Log: c.log,
		Handlers: map[string]work.Handler{
			state.WorkVerify:   verify.Handler(deps),
			state.WorkAdopt:    verify.Adopt(deps),
			state.WorkInspect:  inspect.Handler(deps),
			state.WorkClean:    clean.Handler(deps),
			state.WorkDeploy:   deploy.Handler(deps),
			state.WorkUndeploy: deploy.UndeployHandler(deps),
			state.WorkRescue:   verify.Unsupported("rescue"),
			state.WorkUnrescue: verify.Unsupported("rescue"),
			state.WorkService:  verify.Unsupported("service"),
		},
	}
}

// keep stores evidence and streams it.
func (c *conductor) keep(ctx context.Context, node, mac string, e event.Evidence) {
	now := time.Now().UTC()
	if node == "" && mac != "" { // TFTP knows nothing but addresses
		if p, err := c.store.PortByAddress(ctx, mac); err == nil {
			node = p.NodeUUID
		}
	}
	// A boot that a client aborts still is a fact: don't lose it with the request.
	if err := c.store.AddEvidence(context.WithoutCancel(ctx), &store.Evidence{NodeUUID: node, MAC: mac, Time: now, Evidence: e}); err != nil {
		c.log.Error("evidence lost", "node", node, "mac", mac, "fact", e.Fact, "error", err)
	}
	if node != "" {
		c.hub.Publish(event.New(node, event.KindEvidence, now, e))
	}
}

func publishState(hub *events.Hub, n *store.Node, t *store.Transition) {
	if n == nil || t == nil || len(t.Verbs) == 0 {
		return
	}
	hub.Publish(event.New(n.UUID, event.KindState, n.ProvisionUpdatedAt, event.State{
		From: string(t.From), To: string(n.ProvisionState), Verb: string(t.Verbs[len(t.Verbs)-1]),
		Target: string(n.TargetProvisionState), LastError: n.LastError,
	}))
}

// server is an http.Server that outlasts slow readers of events, not slow
// senders of headers.
func server(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// serveOn runs srv on ln until ctx ends; running requests get a moment.
func serveOn(srv *http.Server, ln net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		srv.BaseContext = func(net.Listener) context.Context { return ctx }
		done := make(chan error, 1)
		go func() { done <- srv.Serve(ln) }()
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			srv.Close() //nolint:errcheck // the listener is closed, which is all that matters now
		}
		return nil
	}
}

func (c *conductor) listen(h http.Handler) error {
	cfg, log := c.cfg, c.log
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("API: %w; is another conductor running? --listen takes another address", err)
	}
	scheme := "http"
	if cfg.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
		if err != nil {
			return errors.Join(fmt.Errorf("API certificate: %w", err), ln.Close())
		}
		ln, scheme = tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}), "https"
	}
	log.Info("API ready", "url", scheme+"://"+ln.Addr().String())
	c.parts = append(c.parts, serveOn(server(h, log), ln))
	return nil
}

// provisionPort is where machines find boot files, images and the agents' API.
const provisionPort = "8080"

func (c *conductor) provision(h http.Handler) error {
	cfg, log := c.cfg, c.log
	var prefix netip.Prefix
	listen := cfg.ProvisionListen
	if cfg.BootInterface != "" {
		var err error
		if prefix, err = interfaceAddr(cfg.BootInterface); err != nil {
			return err
		}
		if listen == "" {
			listen = net.JoinHostPort(prefix.Addr().String(), provisionPort)
		}
	}
	base := "http://" + listen
	if len(cfg.KernelArgs) == 0 {
		cfg.KernelArgs = defaultKernelArgs
	}
	res := &resolver{store: c.store, secrets: c.deps.Secrets, conductor: base, ramdisk: cfg.Ramdisk, kernelArgs: cfg.KernelArgs}
	for _, f := range []string{"vmlinuz", "initramfs.cpio.zst"} {
		if _, err := os.Stat(filepath.Join(cfg.Ramdisk, f)); err != nil {
			return &RefusedError{fmt.Sprintf("the ramdisk is not there: %v", err), "build it (make ramdisk) or name its directory (--ramdisk)"}
		}
	}
	bc := boot.Config{
		Resolver: res, Log: log, BaseURL: base, FirmwareDir: cfg.IPXE,
		Record: c.keep,
	}
	if cfg.BootInterface != "" && cfg.DHCP != "off" {
		bc.DHCP, bc.Interface, bc.Address = dhcp.Mode(cfg.DHCP), cfg.BootInterface, prefix.Addr()
		if cfg.DHCP == "full" {
			subnet, err := dhcpSubnet(prefix, cfg.DHCPRange)
			if err != nil {
				return err
			}
			bc.Subnets = []dhcp.Subnet{subnet}
			leases, err := dhcp.OpenFileLeases(filepath.Join(cfg.Data, "dhcp-leases.json"))
			if err != nil {
				return err
			}
			bc.Leases = leases
		}
	}
	bs, err := boot.New(bc)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("provisioning: %w; --provision-listen takes another address", err)
	}
	log.Info("provisioning ready", "url", base, "dhcp", cfg.DHCP, "interface", cfg.BootInterface)
	c.parts = append(c.parts, bs.Run, serveOn(server(provisioning(h, bs.Handler(), cfg.Images), log), ln))
	return nil
}

func dhcpSubnet(p netip.Prefix, rng string) (dhcp.Subnet, error) {
	s := dhcp.Subnet{Prefix: p.Masked()}
	s.First, s.Last = upperHalf(p)
	if rng == "" {
		return s, nil
	}
	a, b, ok := strings.Cut(rng, "-")
	first, err1 := netip.ParseAddr(strings.TrimSpace(a))
	last, err2 := netip.ParseAddr(strings.TrimSpace(b))
	if !ok || err1 != nil || err2 != nil || !p.Contains(first) || !p.Contains(last) || last.Less(first) {
		return s, &RefusedError{fmt.Sprintf("--dhcp-range %q is not first-last within %s", rng, p.Masked()), "for example --dhcp-range " + s.First.String() + "-" + s.Last.String()}
	}
	s.First, s.Last = first, last
	return s, nil
}
