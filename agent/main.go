// Command slipway-agent runs in the ramdisk as /init's child: it brings the
// network up, tells the conductor what machine this is, and does what the
// conductor asks for. It touches no disk on its own.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/slipway-metal/slipway/agent/api"
	"github.com/slipway-metal/slipway/agent/beat"
	"github.com/slipway-metal/slipway/agent/bootconf"
	"github.com/slipway-metal/slipway/agent/commands"
	"github.com/slipway-metal/slipway/agent/events"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/linux"
	"github.com/slipway-metal/slipway/agent/logring"
	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/agent/sequence"
	"github.com/slipway-metal/slipway/agent/steps"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// haltGrace is how long after a power-off's result the machine stays: the
// conductor may still ask for the result.
const haltGrace = time.Second

type options struct {
	root, state, listen string
	noNetwork           bool
}

func main() {
	var o options
	flag.StringVar(&o.root, "root", "/", "directory with etc/slipway/boot.json and proc/cmdline")
	flag.StringVar(&o.state, "state", "/run/slipway/agent.json", "where the agent keeps its identity for as long as this boot lasts")
	flag.StringVar(&o.listen, "listen", fmt.Sprintf(":%d", agent.AgentAPIPort), "address of the agent's API")
	flag.BoolVar(&o.noNetwork, "no-network", false, "leave links and addresses as they are")
	flag.Parse()
	level := new(slog.LevelVar)
	ring := logring.New(os.Stderr, level)
	log := slog.New(ring)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, level, ring, log); err != nil {
		log.Error("agent ends", "error", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// run builds everything and stays until ctx ends or the machine is to go.
func run(ctx context.Context, o options, level *slog.LevelVar, ring *logring.Log, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conf, err := bootconf.Load(os.DirFS(o.root))
	if err != nil {
		return err
	}
	if conf.LogLevel != "" {
		if err := level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
			log.Warn("log level of the boot configuration", "error", err)
		}
	}
	machine := linux.New(log, conf.BootMAC)
	memory := limitMemory(log)
	log.Info("agent starts", "conductor", conf.Conductor, "from", conf.Source, "boot_id", machine.BootID())

	state, err := beat.LoadState(o.state)
	if err != nil {
		return err
	}
	client, err := beat.NewClient(conf, machine.BootID())
	if err != nil {
		return err
	}
	ringEvents := events.NewRing(sender(client, state), state.Node, slog.New(slog.DiscardHandler))
	ring.Tap(func(l slog.Level, line string) {
		ringEvents.Emit(event.KindLog, event.Log{Level: strings.ToLower(l.String()), Source: "agent", Message: line})
	})
	if crash := linux.LastCrash(); crash != "" {
		log.Error("the agent before this one died", "last_words", crash)
	}

	b := &beat.Beat{Client: client, State: state, Machine: machine, Log: log, NodeUUID: conf.NodeUUID, InspectURL: conf.InspectURL}
	b.Init()
	halts := make(chan host.Action, 1)
	registry := steps.All(steps.Deps{
		Log: log, HTTP: imageClient(conf), AllowMD5: state.MD5, SetRoot: state.SetRoot, Root: state.Root, Memory: memory,
	})
	set := commands.New(commands.Deps{
		Host: machine, Registry: registry, AgentLog: ring.Bytes, Emit: ringEvents.Emit,
		Slipway: func() bool { return state.Slipway() != nil },
		Orders:  orders.NewBook(state, machine.BootID(), time.Now),
	})
	runner := sequence.New(ctx, set, sequence.Hooks{
		Emit: ringEvents.Emit, Done: b.Kick, Print: (&console{ring: ring}).progress,
		Halt: func(a host.Action) {
			select {
			case halts <- a:
			default: // one end is enough
			}
		},
	}, log)

	var wg sync.WaitGroup
	if !o.noNetwork {
		network := machine.StartNetwork(ctx)
		defer network.Wait()
		select {
		case <-network.Ready():
		case <-ctx.Done():
			return nil
		}
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("agent API: %w", err)
	}
	if tcp, ok := listener.Addr().(*net.TCPAddr); ok {
		b.Port = tcp.Port
	}
	server := api.Listener(api.New(runner, state.Token, log))
	wg.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("agent API ended", "error", err)
			cancel()
		}
	})
	wg.Go(func() { b.Run(ctx) })
	wg.Go(func() { ringEvents.Run(ctx) })

	var action host.Action
	select {
	case action = <-halts:
		log.Info("machine goes", "action", action.String())
		select {
		case <-time.After(haltGrace):
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	cancel()
	done, cancelDone := context.WithTimeout(context.Background(), haltGrace)
	defer cancelDone()
	err = server.Shutdown(done)
	wg.Wait()
	runner.Wait()
	if action != 0 {
		if err := machine.Halt(action); err != nil {
			return err
		}
		if action == host.Lockdown {
			select {} // the conductor's BMC ends this
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil // a caller that held its connection open
	}
	return err
}

// sender posts events when this conductor takes them.
func sender(client *beat.Client, state *beat.State) events.Send {
	return func(ctx context.Context, batch []event.Event) error {
		s := state.Slipway()
		if s == nil || s.EventsPath == "" {
			return nil
		}
		return client.Events(ctx, s.EventsPath, state.Token(), batch)
	}
}

// limitMemory keeps the Go heap to a share of a small machine's RAM: the
// ramdisk itself and the kernel's buffers live in the rest. It returns what an
// image's decoder may take, bytes: an xz made with -9 wants 64 MiB.
func limitMemory(log *slog.Logger) int64 {
	const least, most = 40 << 20, 256 << 20
	total := linux.MemoryTotal()
	limit := min(max(total/5, least), most)
	debug.SetMemoryLimit(limit)
	log.Debug("memory limit", "bytes", limit)
	return min(max(total/3, 48<<20), 512<<20)
}

// imageClient fetches images and config drives: from the conductor by its own
// CA, from others by whatever CAs the ramdisk has.
func imageClient(conf bootconf.Config) *http.Client {
	if conf.CA == "" && !conf.Insecure {
		return nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	pool.AppendCertsFromPEM([]byte(conf.CA)) // beat.NewClient has refused a bad one
	return &http.Client{Transport: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		DisableCompression:    true,                                                                                        // the digest is of the bytes as stored
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, InsecureSkipVerify: conf.Insecure}, //nolint:gosec // ipa-insecure=1 is the operator's word
	}}
}

// console prints progress for who looks at the machine's screen.
type console struct {
	ring *logring.Log
	mu   sync.Mutex
	last time.Time
	line string
}

// consoleEvery: a serial line is slow, and nobody reads faster.
const consoleEvery = 5 * time.Second

func (c *console) progress(p event.Progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.Stage == c.line && time.Since(c.last) < consoleEvery {
		return
	}
	c.last, c.line = time.Now(), p.Stage
	c.ring.Line(progressLine(p))
}

// progressLine reads "write_image: write 41 % 68 MB/s ETA 12 s".
func progressLine(p event.Progress) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", p.Step, p.Stage)
	if p.Total > 0 {
		fmt.Fprintf(&b, " %.0f %%", p.Percent)
	} else if p.Done > 0 {
		fmt.Fprintf(&b, " %d MB", p.Done/1e6)
	}
	if p.Rate > 0 {
		fmt.Fprintf(&b, " %.0f MB/s", p.Rate/1e6)
	}
	if p.ETA > 0 {
		fmt.Fprintf(&b, " ETA %.0f s", p.ETA)
	}
	return b.String()
}
