package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/proto/event"
	"github.com/slipway-metal/slipway/proto/ironic"
)

// follower prints a node's events and, beside them, polls its state.
type follower struct {
	g      *Globals
	cl     *client
	node   string
	events chan event.Event
	cancel context.CancelFunc
	drawn  bool      // a progress line is on the screen
	last   time.Time // of the last progress line off a terminal
	stage  string
}

func newFollower(g *Globals, cl *client, node string) *follower {
	return &follower{g: g, cl: cl, node: node, events: make(chan event.Event, 256)}
}

func (f *follower) start(ctx context.Context) context.Context {
	ctx, f.cancel = context.WithCancel(ctx)
	go f.cl.stream(ctx, f.node, f.events)
	return ctx
}

func (f *follower) stop() {
	f.cancel()
	f.wipe()
}

// pollEvery is how often the state is asked for beside the events.
const pollEvery = time.Second

// until returns when the node rests in one of ends (nil), failed, or time is up.
func (f *follower) until(ctx context.Context, what string, timeout time.Duration, ends ...string) error {
	var deadline <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		deadline = t.C
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case e, ok := <-f.events:
			if !ok {
				return ctx.Err()
			}
			f.print(e)
			if e.Kind != event.KindState {
				continue
			}
		case <-deadline:
			return &Error{What: what + ": not there after " + timeout.String(), Why: "the work goes on in the conductor", Next: "slipway explain " + f.node, Code: ExitTimeout}
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := f.arrived(ctx, what, ends); !errors.Is(err, errGoesOn) {
			return err
		}
	}
}

var errGoesOn = errors.New("goes on")

func (f *follower) arrived(ctx context.Context, what string, ends []string) error {
	var st ironic.NodeStates
	if err := f.cl.do(ctx, http.MethodGet, "/v1/nodes/"+f.node+"/states", nil, &st); err != nil {
		e := explainError(what, f.g.URL, err)
		if ExitCode(e) == ExitUnreachable { // the conductor restarts: its work goes on after
			return errGoesOn
		}
		return e
	}
	switch {
	case st.TargetProvisionState != "" && !failed(st.ProvisionState):
		return errGoesOn
	case slices.Contains(ends, st.ProvisionState):
		f.drain()
		return nil
	case st.ProvisionState == "" || !failed(st.ProvisionState) && st.LastError == "":
		return errGoesOn
	}
	f.drain()
	why := st.LastError
	if why == "" {
		why = "the node went to " + st.ProvisionState
	}
	return &Error{What: what + ": the node is now in state " + st.ProvisionState, Why: clean(why), Next: "slipway explain " + f.node, Code: ExitFailed}
}

func failed(state string) bool { return strings.HasSuffix(state, "failed") || state == "error" }

// drain prints what has come already.
func (f *follower) drain() {
	for {
		select {
		case e, ok := <-f.events:
			if !ok {
				return
			}
			f.print(e)
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

func (f *follower) wipe() {
	if f.drawn {
		fmt.Fprint(f.g.Stderr, "\r\x1b[K") //nolint:errcheck // a terminal
		f.drawn = false
	}
}

// offTerminal is how often progress is printed where it can't be redrawn.
const offTerminal = 5 * time.Second

func (f *follower) print(e event.Event) {
	if f.g.Output == "json" {
		json.NewEncoder(f.g.Stdout).Encode(e) //nolint:errcheck // a closed pipe ends the command
		return
	}
	if e.Kind == event.KindProgress {
		f.progress(e)
		return
	}
	if line := describe(e); line != "" {
		f.wipe()
		fmt.Fprintf(f.g.Stderr, "%s  %s\n", e.Time.Local().Format("15:04:05"), line) //nolint:errcheck // a terminal
	}
}

func (f *follower) progress(e event.Event) {
	var p event.Progress
	if json.Unmarshal(e.Data, &p) != nil {
		return
	}
	line := describeProgress(p)
	if f.g.TTY {
		fmt.Fprintf(f.g.Stderr, "\r\x1b[K%s  %s", e.Time.Local().Format("15:04:05"), line) //nolint:errcheck // a terminal
		f.drawn = true
		return
	}
	if p.Stage == f.stage && e.Time.Sub(f.last) < offTerminal && p.Percent < 100 {
		return
	}
	f.last, f.stage = e.Time, p.Stage
	fmt.Fprintf(f.g.Stderr, "%s  %s\n", e.Time.Local().Format("15:04:05"), line) //nolint:errcheck // a terminal
}

func describeProgress(p event.Progress) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-10s %s", clean(p.Step), clean(p.Stage))
	if p.Total > 0 {
		fmt.Fprintf(&b, "  %5.1f %%  %s of %s", p.Percent, size(float64(p.Done)), size(float64(p.Total)))
	} else {
		fmt.Fprintf(&b, "  %s", size(float64(p.Done)))
	}
	fmt.Fprintf(&b, "  %s/s", size(p.Rate))
	if p.ETA > 0 {
		fmt.Fprintf(&b, "  ETA %s", time.Duration(p.ETA*float64(time.Second)).Round(time.Second))
	}
	if p.Bottleneck != "" {
		fmt.Fprintf(&b, "  (%s bound)", clean(p.Bottleneck))
	}
	return b.String()
}

// describe is an event as one line for people; "" for what they need not see.
func describe(e event.Event) string {
	switch e.Kind {
	case event.KindState:
		var s event.State
		if json.Unmarshal(e.Data, &s) != nil {
			return ""
		}
		line := fmt.Sprintf("%-10s %s → %s", "state", s.From, s.To)
		if s.LastError != "" {
			line += "  " + clean(s.LastError)
		}
		return line
	case event.KindEvidence:
		var v event.Evidence
		if json.Unmarshal(e.Data, &v) != nil {
			return ""
		}
		line := fmt.Sprintf("%-10s %s", v.Hop, clean(v.Fact))
		for _, k := range []string{"mac", "ip", "file", "bytes", "seconds", "error"} {
			if x, ok := v.Detail[k]; ok {
				line += fmt.Sprintf("  %s=%s", k, clean(scalar(x)))
			}
		}
		return line
	case event.KindStep:
		var s event.Step
		if json.Unmarshal(e.Data, &s) != nil {
			return ""
		}
		line := fmt.Sprintf("%-10s %s %s", "step", clean(s.Step), clean(s.Status))
		if s.Seconds > 0 {
			line += fmt.Sprintf(" after %.1f s", s.Seconds)
		}
		if s.Error != "" {
			line += ": " + clean(s.Error)
		}
		return line
	case event.KindLog:
		var l event.Log
		if json.Unmarshal(e.Data, &l) != nil || l.Level == "DEBUG" || l.Level == "debug" {
			return ""
		}
		return fmt.Sprintf("%-10s %s", clean(l.Source), clean(l.Message))
	}
	return ""
}

func scalar(x any) string {
	if f, ok := x.(float64); ok {
		return fmt.Sprintf("%.4g", f)
	}
	return fmt.Sprint(x)
}

func jsonObject(raw []byte) (map[string]any, error) {
	var m map[string]any
	err := json.Unmarshal(raw, &m)
	return m, err
}

// NodeWatch is `slipway node watch`.
type NodeWatch struct {
	Node string `arg:"" optional:"" help:"Node to follow; all without."`
}

// Run follows until interrupted.
func (c *NodeWatch) Run(ctx context.Context, g *Globals) error {
	cl := g.client()
	uuid := ""
	if c.Node != "" {
		n, err := cl.node(ctx, c.Node)
		if err != nil {
			return explainError("watch node "+c.Node, g.URL, err)
		}
		uuid = n.UUID
		fmt.Fprintf(g.Stderr, "%s is %s, %s; following (Ctrl-C ends)\n", dash(n.Name), n.ProvisionState, dash(n.PowerState)) //nolint:errcheck // a terminal
	}
	f := newFollower(g, cl, uuid)
	ctx = f.start(ctx)
	defer f.stop()
	for e := range f.events {
		f.print(e)
	}
	return ctx.Err()
}
