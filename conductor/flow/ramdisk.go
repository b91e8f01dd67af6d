package flow

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/conductor/agentclient"
	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/event"
)

// Ramdisk is a flow's record of bringing the agent up; part of its payload.
type Ramdisk struct {
	Booted time.Time `json:"booted,omitzero"` // power-on was confirmed
	Tries  int       `json:"tries,omitempty"`
	Up     bool      `json:"up,omitempty"`
}

// bootTries: a machine that boots its old disk once more gets a second chance (fault F44).
const bootTries = 2

// Secrets derives what a network boot needs to be recognised by. The store
// keeps digests only, and a conductor that restarts in the middle of a boot
// must serve the same secrets again: so they are made of a key that never
// leaves its data directory.
type Secrets struct{ Key []byte }

func (s Secrets) derive(what, of string) string {
	m := hmac.New(sha256.New, s.Key)
	m.Write([]byte(what + "\x00" + of))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(m.Sum(nil)[:20]))
}

// Path is the secret element of the URLs of the node's boot made at that time,
// "" when the node is not to boot from the network.
func (s Secrets) Path(n *store.Node) string {
	at := str(n.DriverInternalInfo, store.KeyBoot)
	if at == "" {
		return ""
	}
	return s.derive("boot path", n.UUID+" "+at)
}

// Nonce earns the token of the boot with this path.
func (s Secrets) Nonce(path string) string { return s.derive("boot nonce", path) }

// Ensure makes the node's agent answer. It returns nil when it does; otherwise
// the Result that the handler must return, its payload being p (which holds r).
func (d *Deps) Ensure(ctx context.Context, j *work.Job, r *Ramdisk, p any) work.Result {
	if r.Up {
		return nil
	}
	if !r.Booted.IsZero() {
		return d.awaitAgent(ctx, j, r, p)
	}
	if r.Tries == 0 && d.alive(ctx, j.Node) {
		d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopHeartbeat, Fact: "ramdisk is up already (fast track)", OK: true})
		r.Up = true
		return nil
	}
	return d.bootRamdisk(ctx, j, r, p)
}

// alive says whether the agent of an earlier flow still answers.
func (d *Deps) alive(ctx context.Context, n *store.Node) bool {
	if orphaned(n) || d.Now().Sub(d.LastHeartbeat(n.UUID)) > d.Config.FastTrack {
		return false
	}
	a, err := d.AgentOf(n)
	if err != nil {
		return false
	}
	defer a.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = a.Commands(ctx)
	return err == nil
}

func (d *Deps) awaitAgent(ctx context.Context, j *work.Job, r *Ramdisk, p any) work.Result {
	// The boot began with ForgetAgent, so a URL is that of the agent it brought.
	if str(j.Node.DriverInternalInfo, store.KeyURL) != "" {
		r.Up = true
		return nil
	}
	deadline := r.Booted.Add(d.Config.Callback)
	if j.Overdue || d.Now().After(deadline) {
		if r.Tries < bootTries {
			d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopHeartbeat, Fact: "agent did not call in time; booting once more"})
			return d.bootRamdisk(ctx, j, r, p)
		}
		return work.Fail{
			Cause: fmt.Errorf("the agent did not call back within %s of power-on (tried %d times)", d.Config.Callback, r.Tries),
			Next:  "`slipway explain` shows the hop at which the boot stopped; mend that, then retry the verb",
			Set:   Orphan,
		}
	}
	return work.Wait{Until: deadline, For: "the agent's first call", Payload: p}
}

// ForgetAgent drops what is known of the agent's present life.
func ForgetAgent(n *store.Node) error {
	for _, k := range []string{store.KeyToken, store.KeyURL, store.KeyVersion, store.KeyVerifyCA, store.KeyHeartbeat, store.KeyBootID, store.KeyBoot, store.KeyNonce, store.KeyHalt, "hardware_manager_version"} {
		delete(n.DriverInternalInfo, k)
	}
	return nil
}

func (d *Deps) bootRamdisk(ctx context.Context, j *work.Job, r *Ramdisk, p any) work.Result {
	n := j.Node
	b, err := d.BMC(n)
	if err != nil {
		return work.Fail{Cause: err, Next: "correct driver and driver_info (`slipway node set`), then retry the verb"}
	}
	boot := &store.Boot{NodeUUID: n.UUID, Created: d.Now()}
	ports, err := d.Store.Ports(ctx, store.PortFilter{NodeUUID: n.UUID})
	if err != nil {
		return work.Retry{After: time.Second, Cause: err, Payload: p}
	}
	for _, port := range ports {
		if port.PXEEnabled && boot.MAC == "" {
			boot.MAC = port.Address
		}
	}
	if boot.MAC == "" {
		return work.Fail{
			Cause: fmt.Errorf("node %s has no port with pxe_enabled: its network boot can't be recognised", n.UUID),
			Next:  "add one: `slipway port create --node " + n.UUID + " MAC`",
		}
	}
	defer d.machines.hold(n.UUID)()
	// The old life ends before the new boot exists: its token is worth nothing from here on.
	if err := j.Update(ctx, func(n *store.Node) error {
		if err := ForgetAgent(n); err != nil {
			return err
		}
		n.DriverInternalInfo[store.KeyBoot] = boot.Created.UTC().Format(time.RFC3339Nano)
		boot.Path = d.Secrets.Path(n)
		boot.Nonce = d.Secrets.Nonce(boot.Path)
		return nil
	}); err != nil {
		return work.Retry{After: time.Second, Cause: err, Payload: p}
	}
	if err := d.Store.CreateBoot(ctx, boot); err != nil {
		return work.Retry{After: time.Second, Cause: err, Payload: p}
	}
	if bd, ok := b.(bmc.BootDevice); ok {
		if err := bd.SetBootDevice(ctx, bmc.DevicePXE, false); err != nil {
			return d.bmcFailed(ctx, j, "set boot device to network", err, p)
		}
		d.Record(ctx, n.UUID, event.Evidence{Hop: event.HopPower, Fact: "next boot set to network", OK: true})
	}
	if res := d.cycle(ctx, j, b, p); res != nil {
		return res
	}
	r.Booted = d.Now()
	r.Tries++
	return work.Wait{Until: r.Booted.Add(d.Config.Callback), For: "the agent's first call", Payload: p}
}

// cycle leaves the machine freshly powered on.
func (d *Deps) cycle(ctx context.Context, j *work.Job, b bmc.BMC, p any) work.Result {
	pw, ok := b.(bmc.Power)
	if !ok {
		return work.Fail{Cause: fmt.Errorf("driver %q has no power control", j.Node.Driver), Next: "use a driver that has, such as redfish"}
	}
	was, err := pw.PowerState(ctx)
	if err != nil {
		return d.bmcFailed(ctx, j, "read power state", err, p)
	}
	if was == bmc.PowerOn {
		if err := pw.SetPower(ctx, bmc.ActionOff); err != nil {
			return d.bmcFailed(ctx, j, "power off", err, p)
		}
		d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopPower, Fact: "power off confirmed", OK: true})
	}
	if err := pw.SetPower(ctx, bmc.ActionOn); err != nil {
		return d.bmcFailed(ctx, j, "power on", err, p)
	}
	d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopPower, Fact: "power on confirmed", OK: true})
	if err := j.Update(ctx, func(n *store.Node) error {
		n.PowerState, n.TargetPowerState = string(bmc.PowerOn), ""
		return nil
	}); err != nil {
		return work.Retry{After: time.Second, Cause: err, Payload: p}
	}
	return nil
}

// Permanent says whether asking the BMC again as it is can't help.
func Permanent(err error) bool {
	return errors.Is(err, bmc.ErrRefused) || errors.Is(err, bmc.ErrUnsupported) || errors.Is(err, bmc.ErrInvalid)
}

// bmcTries: consecutive failures of BMC calls that a flow rides out.
const bmcTries = 5

// ignoredTries is the same for writes that a BMC accepted and did not carry out:
// each was waited for already, and such a BMC seldom changes its mind.
const ignoredTries = 1

// bmcFailed retries what may pass and fails what can't: refused credentials.
func (d *Deps) bmcFailed(ctx context.Context, j *work.Job, what string, err error, p any) work.Result {
	err = fmt.Errorf("%s: %w", what, err)
	d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopPower, Fact: what + " failed", Detail: map[string]any{"error": err.Error()}})
	tries := bmcTries
	if errors.Is(err, bmc.ErrIgnored) {
		tries = ignoredTries
	}
	if Permanent(err) || j.Attempt >= tries {
		return work.Fail{Cause: err, Next: "check the BMC's address and credentials in driver_info and its own log, then retry the verb"}
	}
	after := time.Duration(1<<j.Attempt) * time.Second
	var be *bmc.Error
	if errors.As(err, &be) && !be.RetryAt.IsZero() {
		after = max(after, be.RetryAt.Sub(d.Now()))
	}
	return work.Retry{After: after, Cause: err, Payload: p}
}

// AgentFailed turns an error of the command API into a result: silence is
// waited out until the agent's deadline, a lost life fails.
func (d *Deps) AgentFailed(j *work.Job, err error, what string, p any) work.Result {
	next := "`slipway node logs` has the agent's last words; retry the verb to boot the ramdisk afresh"
	last := d.LastHeartbeat(j.Node.UUID)
	switch {
	case errors.Is(err, agentclient.ErrBusy):
		// No new deadline: one that is busy for ever ends the work by the last one.
		return work.Wait{For: "the agent to end another command", Poll: d.Config.Poll, Payload: p}
	case errors.Is(err, agentclient.ErrUnreachable) && d.Now().Sub(last) < d.Config.Silence:
		return work.Wait{Until: last.Add(d.Config.Silence), For: "the agent to be reachable again (" + err.Error() + ")", Poll: d.Config.Poll, Payload: p}
	case errors.Is(err, agentclient.ErrUnreachable):
		return work.Fail{Cause: fmt.Errorf("agent lost %s: last heard of %s ago: %w", what, d.Now().Sub(last).Round(time.Second), err), Next: next, Set: Orphan}
	}
	fail := work.Fail{Cause: fmt.Errorf("%s: %w", what, err), Next: next}
	if errors.Is(err, agentclient.ErrToken) {
		fail.Set = Orphan // whoever runs there obeys nobody any more
	}
	return fail
}
