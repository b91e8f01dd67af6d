// Package explain says what a node is waiting for and why it does not come: from
// its state, its work and the last evidence of each hop, and nothing else. It is
// pure, so that every sentence it says can be tested.
package explain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

// Input is all that is known.
type Input struct {
	Node *store.Node
	Work *store.Work // nil when the node has none
	// Evidence is the newest fact of each hop since the work began, oldest first.
	Evidence  []store.Evidence
	Heartbeat time.Time // of the agent; zero when it was not heard of since it booted
	// HeartbeatEvery is the interval that the agent was given.
	HeartbeatEvery time.Duration
	Progress       *event.Progress
	ProgressAt     time.Time
	Now            time.Time
}

// Hop is the last that was seen of one hop.
type Hop struct {
	Hop      string         `json:"hop"`
	LastFact string         `json:"last_fact"` // "" when nothing was seen
	At       *time.Time     `json:"at"`
	OK       bool           `json:"ok"`
	Detail   map[string]any `json:"detail,omitempty"`
}

// Explanation is the answer. Summary is the first line for people.
type Explanation struct {
	Node        string     `json:"node"`
	State       string     `json:"state"`
	Summary     string     `json:"summary"`
	Owner       Owner      `json:"owner"`
	Expecting   string     `json:"expecting"`
	Since       time.Time  `json:"since"`
	Deadline    *time.Time `json:"deadline"`
	Overdue     bool       `json:"overdue"`
	MissingHop  string     `json:"missing_hop,omitempty"`
	LikelyCause string     `json:"likely_cause,omitempty"`
	Next        string     `json:"next,omitempty"`
	Accepted    []string   `json:"accepted_verbs"`
	Hops        []Hop      `json:"hops"`
}

// Explain answers for one node.
func Explain(in Input) Explanation {
	n := in.Node
	r := rules[n.ProvisionState]
	all := in.Evidence
	in = thisBoot(in)
	e := Explanation{
		Node: n.UUID, State: string(n.ProvisionState), Owner: r.owner, Expecting: r.expecting,
		Since: since(in), Accepted: []string{}, Hops: hops(all),
	}
	for _, v := range state.Accepted(n.ProvisionState) {
		e.Accepted = append(e.Accepted, string(v))
	}
	if at := deadline(in, r); !at.IsZero() {
		e.Deadline, e.Overdue = &at, in.Now.After(at)
	}
	switch {
	case n.Fault != "" && n.Maintenance:
		e.Summary = fmt.Sprintf("in maintenance, fault %q: %s", n.Fault, n.MaintenanceReason)
		e.LikelyCause, e.Next = n.MaintenanceReason, "clear the cause, then unset maintenance"
	case r.owner == Operator:
		rests(&e, n)
	case r.owner == Conductor && !boots(in):
		atWork(&e, in)
	default:
		away(&e, in)
	}
	if n.Maintenance && n.Fault == "" {
		e.Summary = "in maintenance; " + e.Summary
	}
	if e.Overdue {
		e.Summary += fmt.Sprintf(" (overdue by %s)", round(in.Now.Sub(*e.Deadline)))
	}
	return e
}

// thisBoot drops what was seen before the machine was last powered on: it tells
// of a life that has ended.
func thisBoot(in Input) Input {
	power := last(in.Evidence, event.HopPower)
	if power == nil || !poweredOn(power) {
		return in
	}
	in.Evidence = slices.DeleteFunc(slices.Clone(in.Evidence), func(ev store.Evidence) bool { return ev.Time.Before(power.Time) })
	if in.Heartbeat.Before(power.Time) {
		in.Heartbeat = time.Time{}
	}
	return in
}

func poweredOn(ev *store.Evidence) bool { return ev.OK && strings.Contains(ev.Fact, "power on") }

func since(in Input) time.Time {
	switch {
	case !in.Node.ProvisionUpdatedAt.IsZero():
		return in.Node.ProvisionUpdatedAt
	case !in.Node.CreatedAt.IsZero():
		return in.Node.CreatedAt
	}
	return in.Now
}

func deadline(in Input, r rule) time.Time {
	switch {
	case in.Work != nil && !in.Work.Deadline.IsZero():
		return in.Work.Deadline
	case r.deadline > 0:
		return since(in).Add(r.deadline)
	}
	return time.Time{}
}

// hops lists the last of each hop, those of the way first and in order.
func hops(evidence []store.Evidence) []Hop {
	order := []string{event.HopPower, event.HopDHCP, event.HopTFTP, event.HopHTTP, event.HopLookup, event.HopInventory, event.HopHeartbeat, event.HopCommand, event.HopDisk}
	out := make([]Hop, len(order))
	for i, name := range order {
		out[i] = Hop{Hop: name}
		if ev := last(evidence, name); ev != nil {
			at := ev.Time
			out[i] = Hop{Hop: name, LastFact: ev.Fact, At: &at, OK: ev.OK, Detail: ev.Detail}
		}
	}
	return out
}

func last(evidence []store.Evidence, hop string) *store.Evidence {
	for i := len(evidence) - 1; i >= 0; i-- {
		if evidence[i].Hop == hop {
			return &evidence[i]
		}
	}
	return nil
}

// rests explains a state in which the operator acts.
func rests(e *Explanation, n *store.Node) {
	e.Summary = fmt.Sprintf("%s: waiting for %s", n.ProvisionState, e.Expecting)
	if n.ProvisionState == state.Active {
		e.Summary = "active: in use, nothing is expected"
	}
	failed := slices.Contains(state.Failed, n.ProvisionState)
	if n.LastError != "" && (failed || n.ProvisionState == state.Enroll) {
		e.Summary = fmt.Sprintf("%s: %s", n.ProvisionState, oneLine(n.LastError))
		e.LikelyCause = n.LastError
	}
	if failed || n.LastError != "" {
		e.Next = "mend the cause, then use one of: " + strings.Join(e.Accepted, ", ")
	}
}

// boots says whether the machine is on its way to an agent: evidence of a boot exists.
func boots(in Input) bool {
	return len(in.Evidence) > 0 && in.Node.ProvisionState != state.Verifying && in.Node.ProvisionState != state.Adopting
}

// atWork explains a state in which the conductor acts and no machine boots.
func atWork(e *Explanation, in Input) {
	w := in.Work
	e.Summary = fmt.Sprintf("%s for %s: waiting for %s", in.Node.ProvisionState, age(in.Now, e.Since), e.Expecting)
	switch {
	case w == nil:
		e.Summary = fmt.Sprintf("%s for %s, but no work is queued for it", in.Node.ProvisionState, age(in.Now, e.Since))
		e.LikelyCause = "the work ended without moving the node: a defect of the conductor"
		e.Next = "see the conductor's log; set maintenance to act on the node by hand"
	case w.Cause != "":
		e.LikelyCause = w.Cause
		e.Summary = fmt.Sprintf("%s for %s: attempt %d failed: %s; the next is in %s", in.Node.ProvisionState, age(in.Now, e.Since), w.Attempt, oneLine(w.Cause), round(w.RunAt.Sub(in.Now)))
		if w.Attempt == 0 {
			e.Summary = fmt.Sprintf("%s for %s: waiting for %s", in.Node.ProvisionState, age(in.Now, e.Since), oneLine(w.Cause))
		}
		if ev := last(in.Evidence, event.HopPower); ev != nil && !ev.OK {
			e.Next = way[0].next
		}
	case w.Owner == "" && in.Now.After(w.RunAt.Add(time.Minute)):
		e.LikelyCause = "no conductor takes the work: all are busy or stopped"
		e.Next = "see whether a conductor runs (`slipway doctor`)"
		e.Summary = fmt.Sprintf("%s for %s: %s", in.Node.ProvisionState, age(in.Now, e.Since), e.LikelyCause)
	}
}

// silentAfter is how many missed heartbeats make silence worth telling.
const silentAfter = 3

// away explains a node whose machine boots or whose agent works.
func away(e *Explanation, in Input) {
	every := in.HeartbeatEvery
	if every <= 0 {
		every = 10 * time.Second
	}
	seen := reached(in)
	failed := newestFailure(in, seen)
	switch {
	case failed != nil:
		u := unhappy[failed.Hop]
		e.MissingHop, e.LikelyCause, e.Next = failed.Hop, u.cause, u.next
		e.Summary = fmt.Sprintf("%s: %s %s ago%s: %s", failed.Hop, failed.Fact, age(in.Now, failed.Time), because(failed), u.cause)
	case !in.Heartbeat.IsZero() && in.Now.Sub(in.Heartbeat) > silentAfter*every:
		e.MissingHop = event.HopHeartbeat
		e.Expecting = "the agent's next heartbeat"
		e.LikelyCause = "the machine crashed, lost its network or was switched off while its agent worked"
		e.Next = "look at the machine's console and power; the work fails or goes on by itself at the deadline"
		e.Summary = fmt.Sprintf("heartbeat silent for %s (expected every %s): %s", age(in.Now, in.Heartbeat), round(every), e.LikelyCause)
	case !in.Heartbeat.IsZero() || seen == len(way)-1:
		running(e, in)
	default:
		missing(e, in, seen)
	}
}

// reached is the index in way of the farthest hop with a good fact, -1 for none.
func reached(in Input) int {
	far := -1
	for i, h := range way {
		ev := last(in.Evidence, h.name)
		switch {
		case ev == nil || !ev.OK:
		case h.name == event.HopPower && !poweredOn(ev):
		case h.name == event.HopHTTP && partly(ev):
			far = max(far, i-1)
		default:
			far = i
		}
	}
	return far
}

// partly says whether the boot files were fetched in part only: the kernel
// comes after the script, the ramdisk after the kernel.
func partly(ev *store.Evidence) bool {
	return strings.HasPrefix(ev.Fact, "script ") || strings.HasPrefix(ev.Fact, "kernel ")
}

// newestFailure is a failed fact that is newer than every good one and that no
// living agent has made obsolete.
func newestFailure(in Input, seen int) *store.Evidence {
	var bad *store.Evidence
	for i := range in.Evidence {
		if ev := &in.Evidence[i]; !ev.OK && (bad == nil || ev.Time.After(bad.Time)) {
			bad = ev
		}
	}
	if bad == nil || bad.Time.Before(in.Heartbeat) {
		return nil
	}
	if seen >= 0 {
		if good := last(in.Evidence, way[seen].name); good != nil && good.Time.After(bad.Time) {
			return nil
		}
	}
	return bad
}

// because appends a fact's own error or bytes.
func because(ev *store.Evidence) string {
	var parts []string
	for _, k := range []string{"file", "bytes", "total", "error", "peer"} {
		if v, ok := ev.Detail[k]; ok && v != "" {
			parts = append(parts, fmt.Sprintf("%s %v", k, v))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + oneLine(strings.Join(parts, ", ")) + ")"
}

// missing explains a machine that has not yet an agent.
func missing(e *Explanation, in Input, seen int) {
	next := way[seen+1]
	if next.optional && seen+2 < len(way) && in.Now.Sub(lastTime(in, seen)) < time.Second {
		next = way[seen+2]
	}
	after := "nothing was seen yet"
	from := e.Since
	if ev := last(in.Evidence, event.HopHTTP); ev != nil && ev.OK && partly(ev) && next.name == event.HopHTTP {
		next = restOfFiles
		after, from = fmt.Sprintf("last seen: %s, %s%s", event.HopHTTP, ev.Fact, because(ev)), ev.Time
	} else if seen >= 0 {
		ev := last(in.Evidence, way[seen].name)
		after, from = fmt.Sprintf("last seen: %s, %s%s", way[seen].name, ev.Fact, because(ev)), ev.Time
	}
	e.MissingHop, e.Expecting = next.name, next.expecting
	waited := in.Now.Sub(from)
	e.Summary = fmt.Sprintf("waiting %s for %s; %s", round(waited), next.expecting, after)
	// A machine needs its time for each hop; only then is its absence a symptom.
	if waited >= usual(next.name) {
		e.LikelyCause, e.Next = next.cause, next.next
		e.Summary = fmt.Sprintf("%s missing for %s: %s", next.name, round(waited), next.cause)
	}
}

func lastTime(in Input, seen int) time.Time {
	if seen < 0 {
		return time.Time{}
	}
	return last(in.Evidence, way[seen].name).Time
}

// usual is how long a healthy machine may take to a hop from the one before:
// servers need minutes from power-on to their first DHCP request.
func usual(hop string) time.Duration {
	switch hop {
	case event.HopPower:
		return 30 * time.Second
	case event.HopDHCP:
		return 3 * time.Minute
	case event.HopLookup:
		return 90 * time.Second
	}
	return 20 * time.Second
}

// running explains an agent that works.
func running(e *Explanation, in Input) {
	if p := in.Progress; p != nil && in.Now.Sub(in.ProgressAt) < time.Minute && p.Step != "" {
		e.Expecting = "step " + p.Step + " to end"
		e.Summary = fmt.Sprintf("step %s is running: %s, %.0f %%", p.Step, p.Stage, p.Percent)
		if p.Rate > 0 {
			e.Summary += fmt.Sprintf(" at %.1f MB/s", p.Rate/1e6)
		}
		if p.ETA > 0 {
			e.Summary += ", ETA " + round(time.Duration(p.ETA*float64(time.Second)))
		}
		if p.Bottleneck != "" {
			e.Summary += ", limited by " + p.Bottleneck
		}
		return
	}
	e.Summary = "the agent is up"
	if !in.Heartbeat.IsZero() {
		e.Summary += fmt.Sprintf(" (heartbeat %s ago)", age(in.Now, in.Heartbeat))
	}
	if ev := last(in.Evidence, event.HopCommand); ev != nil {
		e.Expecting = "the command to end"
		e.Summary += fmt.Sprintf("; command: %s, %s ago", ev.Fact, age(in.Now, ev.Time))
	}
	if in.Work != nil && in.Work.Cause != "" {
		e.Expecting = in.Work.Cause
		e.Summary += "; waiting for " + oneLine(in.Work.Cause)
	}
}

func age(now, t time.Time) string { return round(now.Sub(t)) }

// round prints a duration as people say it.
func round(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	if d < time.Second {
		return "0s"
	}
	return d.Round(time.Second).String()
}

// oneLine keeps a long error out of the first line.
func oneLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 300 {
		s = s[:297] + "..."
	}
	return s
}
