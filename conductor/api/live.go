package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/event"
)

// Live is what is known of running agents and changes too often for the
// database: last heartbeats, progress, the token before the present one.
// It is safe for concurrent use.
type Live struct {
	mu    sync.Mutex
	nodes map[string]*liveNode
}

type liveNode struct {
	beat     time.Time // last heartbeat
	flushed  time.Time // when beat was last written to the database
	progress *event.Progress
	at       time.Time           // of progress
	previous [sha256.Size]byte   // digest of the token that was valid before
	reissued time.Time           // when it was replaced; zero when never
	alarms   map[string]struct{} // facts told since quiet
	quiet    time.Time
	budget   float64 // events that the agent may still send now
	filled   time.Time
}

// NewLive returns an empty Live.
func NewLive() *Live { return &Live{nodes: map[string]*liveNode{}} }

// Load seeds the last heartbeats from the database, so that a restarted
// conductor does not take living agents for silent ones.
func (l *Live) Load(ctx context.Context, st store.Store) error {
	all, err := st.Nodes(ctx, store.NodeFilter{})
	if err != nil {
		return fmt.Errorf("load last heartbeats: %w", err)
	}
	for _, n := range all {
		text, _ := n.DriverInternalInfo[store.KeyHeartbeat].(string)
		if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
			l.with(n.UUID, func(x *liveNode) { x.beat, x.flushed = at, at })
		}
	}
	return nil
}

func (l *Live) with(uuid string, f func(*liveNode)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.nodes[uuid]
	if x == nil {
		x = &liveNode{}
		l.nodes[uuid] = x
	}
	f(x)
}

// peek is with for readers: it creates nothing.
func (l *Live) peek(uuid string, f func(*liveNode)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.nodes[uuid]; x != nil {
		f(x)
	}
}

func (l *Live) forget(uuid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.nodes, uuid)
}

// LastHeartbeat is when the node's agent was last heard of; zero when never.
func (l *Live) LastHeartbeat(nodeUUID string) (at time.Time) {
	l.peek(nodeUUID, func(x *liveNode) { at = x.beat })
	return at
}

// Progress is the last progress the node's agent told, nil when none.
func (l *Live) Progress(nodeUUID string) (p *event.Progress, at time.Time) {
	l.peek(nodeUUID, func(x *liveNode) {
		if x.progress != nil {
			c := *x.progress
			p, at = &c, x.at
		}
	})
	return p, at
}

func (l *Live) setProgress(uuid string, p event.Progress, at time.Time) {
	l.with(uuid, func(x *liveNode) { x.progress, x.at = &p, at })
}

// flushEvery is how old the stored last heartbeat may become.
const flushEvery = time.Minute

// beatNow notes a heartbeat and says whether the stored one is due again.
func (l *Live) beatNow(uuid string, now time.Time) (flush bool) {
	l.with(uuid, func(x *liveNode) {
		x.beat = now
		if flush = now.Sub(x.flushed) >= flushEvery; flush {
			x.flushed = now
		}
	})
	return flush
}

// tokenReplaced remembers the token that a new one replaces.
func (l *Live) tokenReplaced(uuid, old string, now time.Time) {
	l.with(uuid, func(x *liveNode) {
		x.beat, x.progress = time.Time{}, nil
		if old != "" {
			x.previous, x.reissued = sha256.Sum256([]byte(old)), now
		}
	})
}

// wasToken says whether token was the node's before the present one.
func (l *Live) wasToken(uuid, token string) (was bool) {
	sum := sha256.Sum256([]byte(token))
	l.peek(uuid, func(x *liveNode) {
		was = !x.reissued.IsZero() && subtle.ConstantTimeCompare(sum[:], x.previous[:]) == 1
	})
	return was
}

// alarmEvery bounds how often one refusal is told: a hostile host on the
// provisioning network must not fill the database.
const alarmEvery = 10 * time.Second

func (l *Live) mayTell(uuid, fact string, now time.Time) (ok bool) {
	l.with(uuid, func(x *liveNode) {
		if now.Sub(x.quiet) >= alarmEvery {
			x.alarms, x.quiet = map[string]struct{}{}, now
		}
		if _, told := x.alarms[fact]; !told {
			x.alarms[fact], ok = struct{}{}, true
		}
	})
	return ok
}

// The rate of agent events: a bucket of eventBurst, refilled by eventRate a second.
const (
	eventRate  = 50
	eventBurst = 500
)

// takeEvents says how many of n events the agent may send now.
func (l *Live) takeEvents(uuid string, n int, now time.Time) (allowed int) {
	l.with(uuid, func(x *liveNode) {
		if x.filled.IsZero() {
			x.budget = eventBurst
		} else {
			x.budget = min(eventBurst, x.budget+now.Sub(x.filled).Seconds()*eventRate)
		}
		x.filled = now
		allowed = min(n, int(x.budget))
		x.budget -= float64(allowed)
	})
	return allowed
}
