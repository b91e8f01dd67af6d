// Package life is one life of the agent on a machine whose network is up: from
// looking itself up until the machine is to go. main and tests give it a machine.
package life

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/agent/api"
	"github.com/slipway-metal/slipway/agent/beat"
	"github.com/slipway-metal/slipway/agent/bootconf"
	"github.com/slipway-metal/slipway/agent/commands"
	"github.com/slipway-metal/slipway/agent/events"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/logring"
	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/agent/sequence"
	"github.com/slipway-metal/slipway/agent/steps"
	"github.com/slipway-metal/slipway/proto/event"
)

// haltGrace is how long after a power-off's result the machine stays: the
// conductor may still ask for the result.
const haltGrace = time.Second

// Life is what an agent lives with.
type Life struct {
	Conf    bootconf.Config
	Machine host.Host
	State   string // file of its identity, for as long as this boot lasts
	Listen  string // address of its API
	Memory  int64  // what an image's decoder may take, bytes
	Log     *slog.Logger
	Ring    *logring.Log // where Log goes
	// LastWords are those of the agent before this one, when it died.
	LastWords string
	// Ready returns when the conductor can be reached; nil is at once.
	Ready func(ctx context.Context) error
}

// Run lives until ctx ends or the machine is to go; it returns how, 0 for ctx's
// end. The caller halts the machine.
func (l *Life) Run(ctx context.Context) (host.Action, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log, machine := l.Log, l.Machine
	state, err := beat.LoadState(l.State)
	if err != nil {
		return 0, err
	}
	client, err := beat.NewClient(l.Conf, machine.BootID())
	if err != nil {
		return 0, err
	}
	ringEvents := events.NewRing(sender(client, state), state.Node, slog.New(slog.DiscardHandler))
	l.Ring.Tap(func(level slog.Level, line string) {
		ringEvents.Emit(event.KindLog, event.Log{Level: strings.ToLower(level.String()), Source: "agent", Message: line})
	})
	if l.LastWords != "" {
		log.Error("the agent before this one died", "last_words", l.LastWords)
	}
	b := &beat.Beat{Client: client, State: state, Machine: machine, Log: log, NodeUUID: l.Conf.NodeUUID, InspectURL: l.Conf.InspectURL}
	b.Init()
	halts := make(chan host.Action, 1)
	registry := steps.All(steps.Deps{
		Log: log, HTTP: imageClient(l.Conf), AllowMD5: state.MD5, SetRoot: state.SetRoot, Root: state.Root, Memory: l.Memory,
	})
	set := commands.New(commands.Deps{
		Host: machine, Registry: registry, AgentLog: l.Ring.Bytes, Emit: ringEvents.Emit,
		Slipway: func() bool { return state.Slipway() != nil },
		Orders:  orders.NewBook(state, machine.BootID(), time.Now),
	})
	runner := sequence.New(ctx, set, sequence.Hooks{
		Emit: ringEvents.Emit, Done: b.Kick, Print: (&console{ring: l.Ring}).progress,
		Halt: func(a host.Action) {
			select {
			case halts <- a:
			default: // one end is enough
			}
		},
	}, log)
	if l.Ready != nil {
		if err := l.Ready(ctx); err != nil {
			return 0, err
		}
	}
	listener, err := net.Listen("tcp", l.Listen)
	if err != nil {
		return 0, fmt.Errorf("agent API: %w", err)
	}
	if tcp, ok := listener.Addr().(*net.TCPAddr); ok {
		b.Port = tcp.Port
	}
	server := api.Listener(api.New(runner, state.Token, log))
	var wg sync.WaitGroup
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
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close() // a caller that held its connection open
	}
	wg.Wait()
	runner.Wait()
	return action, err
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
