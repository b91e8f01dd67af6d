package beat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/proto/agent"
)

// masked stands where Ironic doesn't give a token a second time.
const masked = "******"

const (
	lookupFirst = time.Second // between lookups, doubled up to lookupMax
	lookupMax   = 15 * time.Second
	// A masked token while holding none is final for this boot; ask rarely.
	maskedWait = 30 * time.Second
	// stockForced is the least time between heartbeats forced under a stock
	// Ironic: IPA's own.
	stockForced = 5 * time.Second
	clockSlack  = 500 * time.Millisecond // more, and the order of events in one stream is lost
)

// ErrMasked: the conductor has given this boot's token away already.
var ErrMasked = errors.New("lookup: the conductor gives its token once, and this agent holds none; the machine needs a new boot by its conductor")

// Machine is what the loop asks of the host.
type Machine interface {
	Inventory(ctx context.Context) (agent.Inventory, error)
	SetClock(t time.Time) error
}

// Beat keeps in touch with the conductor.
type Beat struct {
	Client  *Client
	State   *State
	Machine Machine
	Log     *slog.Logger
	// NodeUUID is the node the boot was made for, "" when unknown.
	NodeUUID string
	// InspectURL is where a stock Ironic wants the inventory first; "" for nowhere.
	InspectURL string
	// Port is where the agent's API listens.
	Port int

	kick    chan struct{}
	minor   int
	refused int // heartbeats since the last that was taken
}

// Init readies b; before Kick and Run.
func (b *Beat) Init() { b.kick = make(chan struct{}, 1) }

// Kick asks for a heartbeat now: a command has ended.
func (b *Beat) Kick() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// Run looks up, posts the inventory when asked to, and sends heartbeats until
// ctx ends. No refusal is final: a conductor may be restarted or reset.
func (b *Beat) Run(ctx context.Context) {
	b.minor = fallbackMinor
	if b.InspectURL != "" {
		b.inspect(ctx, b.InspectURL, 0)
	}
	if b.State.Token() != "" {
		b.Log.Info("agent takes up its identity again after a crash", "node", b.State.Node())
	}
	for ctx.Err() == nil {
		b.lookup(ctx)
		b.heartbeats(ctx)
	}
}

// lookup returns when this agent knows its node and token.
func (b *Beat) lookup(ctx context.Context) {
	wait := lookupFirst
	for try := 1; ctx.Err() == nil; try++ {
		err := b.lookupOnce(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrMasked) {
			wait = maskedWait
		}
		b.Log.Warn("lookup goes on", "attempt", try, "again_in", wait.String(), "error", err)
		sleep(ctx, spread(wait, 0.75, 1.25))
		wait = min(wait*2, max(lookupMax, wait))
	}
}

func (b *Beat) lookupOnce(ctx context.Context) error {
	minor, err := b.Client.Minor(ctx)
	if err != nil {
		return err
	}
	b.minor = minor
	inv, err := b.Machine.Inventory(ctx)
	if err != nil {
		return fmt.Errorf("lookup: %w", err)
	}
	var macs []string
	for _, nic := range inv.Interfaces {
		macs = append(macs, nic.MACAddress)
	}
	node := b.NodeUUID
	if node == "" {
		node = b.State.Node()
	}
	l, err := b.Client.Lookup(ctx, minor, macs, node)
	if err != nil {
		return err
	}
	if err := b.adopt(l); err != nil {
		return err
	}
	b.Log.Info("lookup done", "node", l.Node.UUID, "slipway", l.Config.Slipway != nil)
	if s := l.Config.Slipway; s != nil {
		b.setClock(s.Time)
		if s.Inspect {
			b.inspectWith(ctx, s.InspectPath, minor, inv)
		}
	}
	return nil
}

// adopt keeps who we are. A masked token means: you have it already.
func (b *Beat) adopt(l *agent.Lookup) error {
	token := l.Config.AgentToken
	if token == masked || token == "" {
		token = b.State.Token()
		if token == "" || b.State.Node() != l.Node.UUID {
			return ErrMasked
		}
	}
	return b.State.change(func(s *saved) {
		if s.Token != token {
			s.LastOrder = 0 // orders are signed with the token: the old ones are worth nothing
		}
		s.Node, s.Token, s.Slipway, s.Heartbeat = l.Node.UUID, token, l.Config.Slipway, l.Config.HeartbeatTimeout
		s.MD5 = l.Config.AgentMD5ChecksumEnable
	})
}

// setClock takes the conductor's time when ours is off: certificates and orders
// are dated, and a machine's clock may say 1970.
func (b *Beat) setClock(t time.Time) {
	if t.IsZero() {
		return
	}
	off := time.Until(t)
	if off.Abs() <= clockSlack {
		return
	}
	if err := b.Machine.SetClock(t); err != nil {
		b.Log.Warn("clock stays wrong", "off", off.String(), "error", err)
		return
	}
	b.Log.Warn("clock was wrong and is set from the conductor", "off", off.Round(time.Second).String())
}

// inspect posts a fresh inventory until it is taken.
func (b *Beat) inspect(ctx context.Context, where string, minor int) {
	inv, err := b.Machine.Inventory(ctx)
	if err != nil {
		b.Log.Error("no inventory", "error", err)
		return
	}
	b.inspectWith(ctx, where, minor, inv)
}

func (b *Beat) inspectWith(ctx context.Context, where string, minor int, inv agent.Inventory) {
	if where == "" {
		where = agent.InspectionCallbackPath
	}
	wait := lookupFirst
	const tries = 20
	for try := 1; try <= tries && ctx.Err() == nil; try++ {
		err := b.Client.Inspect(ctx, minor, where, b.State.Token(), agent.Inspection{Inventory: inv})
		if err == nil {
			b.Log.Info("inventory posted", "disks", len(inv.Disks), "nics", len(inv.Interfaces))
			return
		}
		b.Log.Warn("inventory not taken", "attempt", try, "error", err)
		var st *StatusError
		if errors.As(err, &st) && st.Status/100 == 4 && st.Status != http.StatusConflict && st.Status != http.StatusNotFound && st.Status != http.StatusTooManyRequests {
			return // it won't be taken later either
		}
		sleep(ctx, spread(wait, 0.75, 1.25))
		wait = min(wait*2, lookupMax)
	}
}

// heartbeats returns when the conductor no longer knows this agent's token.
func (b *Beat) heartbeats(ctx context.Context) {
	first := true
	for ctx.Err() == nil {
		err := b.heartbeat(ctx)
		sent := time.Now()
		wait := b.interval()
		switch {
		case err == nil:
			if first {
				b.Log.Info("first heartbeat taken", "node", b.State.Node())
			}
			first, b.refused = false, 0
		case deadToken(err):
			b.Log.Warn("heartbeat refused: this agent's token is not known; looking up again", "error", err)
			sleep(ctx, spread(min(lookupFirst<<min(b.refused, 5), maskedWait), 0.75, 1.25))
			b.refused++
			return
		default:
			b.Log.Warn("heartbeat not taken", "error", err)
			wait = spread(5*time.Second, 1, 2) // IPA's
		}
		b.await(ctx, wait, sent)
	}
}

// await waits for the next heartbeat's time, or for a kick.
func (b *Beat) await(ctx context.Context, wait time.Duration, sent time.Time) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-b.kick:
		if b.State.Slipway() == nil {
			sleep(ctx, stockForced-time.Since(sent))
		}
	}
}

func (b *Beat) heartbeat(ctx context.Context) error {
	ip, err := b.Client.LocalAddress()
	if err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	return b.Client.Heartbeat(ctx, b.minor, b.State.Node(), agent.Heartbeat{
		CallbackURL: fmt.Sprintf("http://%s:%d", ip, b.Port),
		AgentToken:  b.State.Token(), AgentVersion: agent.AgentVersion,
	})
}

// interval is the conductor's word, else IPA's share of the timeout.
func (b *Beat) interval() time.Duration {
	s := b.State.get()
	if s.Slipway != nil && s.Slipway.HeartbeatSeconds > 0 {
		return spread(time.Duration(s.Slipway.HeartbeatSeconds*float64(time.Second)), 0.95, 1.05)
	}
	timeout := time.Duration(s.Heartbeat) * time.Second
	if timeout <= 0 {
		timeout = 300 * time.Second // Ironic's default
	}
	return spread(timeout, 0.3, 0.6)
}

// deadToken says whether the conductor refuses this agent for good: it was
// reset, or has begun another boot of the node. Ironic says so with a 400 whose
// words name the token (recorded).
func deadToken(err error) bool {
	var st *StatusError
	if !errors.As(err, &st) {
		return false
	}
	switch st.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return true
	case http.StatusBadRequest:
		return strings.Contains(strings.ToLower(st.Text), "token")
	}
	return false
}

// spread is d times something between low and high: machines that were switched
// on together must not call together.
func spread(d time.Duration, low, high float64) time.Duration {
	return time.Duration(float64(d) * (low + rand.Float64()*(high-low)))
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
