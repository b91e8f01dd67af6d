package fakebmc

import (
	"context"
	"net/http"
	"strings"
	"time"
)

// Faults are ways in which real BMCs were seen to misbehave. The zero value is a
// well-behaved BMC.
type Faults struct {
	// RefuseAuth answers 401 to every credential, session or not.
	RefuseAuth bool
	// AuthEverywhere wants credentials for the service root too, against DSP0266
	// 13.3.1 (sushy-tools with an auth file does).
	AuthEverywhere bool
	// NoSessions hides the SessionService: only basic authentication works.
	NoSessions bool
	// MaxSessions is how many sessions may be open; more are refused as
	// SessionLimitExceeded. 0 is no limit.
	MaxSessions int
	// EchoCredentials puts the request's credentials into the 401's message.
	EchoCredentials bool

	// Status, when not 0, answers every request with this HTTP status.
	Status int
	// StatusOnWrite is the same for POST, PATCH and DELETE outside sessions.
	StatusOnWrite int
	// MessageID is the Redfish message of these answers; Base.1.18.GeneralError when empty.
	MessageID string
	// FailNext limits Status and StatusOnWrite to that many answers; 0 is no limit.
	FailNext int
	// Hang holds every request until its client leaves or the faults change.
	Hang bool
	// Malformed cuts every JSON answer in the middle.
	Malformed bool
	// Huge answers every GET with an endless JSON string.
	Huge bool
	// RedirectTo answers every GET with 302 to this base URL.
	RedirectTo string

	// IgnorePower and IgnoreBoot accept the write and do nothing.
	IgnorePower, IgnoreBoot bool
	// PowerDelay is the time between an accepted power change and its effect.
	PowerDelay time.Duration
	// ConflictWhenThere answers 409 to a power change that changes nothing.
	ConflictWhenThere bool
	// ResetTypes replaces the offered reset types; others are refused with 400.
	ResetTypes []string
	// HideResetTypes leaves the allowable values out.
	HideResetTypes bool
	// TransitionState is reported as PowerState while PowerDelay runs; empty reports the old state.
	TransitionState PowerState

	// OnceReadsContinuous shows every override as Continuous (sushy-tools).
	OnceReadsContinuous bool
	// KeepOverride never spends a Once.
	KeepOverride bool
	// NoContinuous refuses a persistent override with 400.
	NoContinuous bool
	// WantBootMode refuses a boot PATCH without BootSourceOverrideMode (AMI, ASRockRack).
	WantBootMode bool
	// RefuseUnchanged refuses a boot PATCH whose BootSourceOverrideEnabled is what it is already.
	RefuseUnchanged bool
	// WantEnabled ignores a boot PATCH without BootSourceOverrideEnabled (Supermicro).
	WantEnabled bool
	// HideBootMode leaves BootSourceOverrideMode out of the answer.
	HideBootMode bool
	// BootTargets replaces the offered boot sources.
	BootTargets []Device
	// StaleETag refuses every If-Match with 412.
	StaleETag bool
	// IgnoreMedia accepts an insert or eject and does nothing.
	IgnoreMedia bool
}

// SetFaults replaces all faults. Requests held by Hang go on.
func (b *BMC) SetFaults(f Faults) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = f
	close(b.changed)
	b.changed = make(chan struct{})
}

// fault returns the faults of this moment.
func (b *BMC) fault() Faults {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.faults
}

// misbehave answers r wrongly when a fault says so, and reports whether it did.
func (b *BMC) misbehave(w http.ResponseWriter, r *http.Request) bool {
	b.mu.Lock()
	f, changed := b.faults, b.changed
	b.mu.Unlock()
	if f.Hang {
		select {
		case <-r.Context().Done():
			return true
		case <-b.life.Done():
			return true
		case <-changed:
		}
	}
	write := r.Method != http.MethodGet && r.Method != http.MethodHead && !strings.Contains(r.URL.Path, "/SessionService")
	status := f.Status
	if status == 0 && write {
		status = f.StatusOnWrite
	}
	switch {
	case status != 0 && b.takeFailure(f):
		id := f.MessageID
		if id == "" {
			id = "Base.1.18.GeneralError"
		}
		fail(w, status, id, "The fault layer answers this request with "+http.StatusText(status)+".")
		return true
	case f.RedirectTo != "" && r.Method == http.MethodGet:
		http.Redirect(w, r, strings.TrimSuffix(f.RedirectTo, "/")+r.URL.Path, http.StatusFound)
		return true
	case f.Huge && r.Method == http.MethodGet:
		endless(w, r)
		return true
	}
	return false
}

// takeFailure counts FailNext down and reports whether this answer is to fail.
func (b *BMC) takeFailure(f Faults) bool {
	if f.FailNext == 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults.FailNext--
	if b.faults.FailNext == 0 {
		b.faults.Status, b.faults.StatusOnWrite = 0, 0
	}
	return true
}

// endless writes a JSON string of spaces until the client has had enough; 1 GiB at most.
func endless(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	pad := []byte(strings.Repeat(" ", 1<<16))
	if _, err := w.Write([]byte(`{"Name":"`)); err != nil {
		return
	}
	for range 1 << 14 {
		if r.Context().Err() != nil {
			return
		}
		if _, err := w.Write(pad); err != nil {
			return
		}
	}
}

// later runs act now, or after the power delay in the background.
func (b *BMC) later(ctx context.Context, delay time.Duration, act func(context.Context) error) error {
	if delay == 0 {
		return act(ctx)
	}
	b.mu.Lock()
	b.stats.pending++
	b.mu.Unlock()
	b.background.Go(func() {
		defer func() {
			b.mu.Lock()
			b.stats.pending--
			b.mu.Unlock()
		}()
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-b.life.Done():
			return
		case <-t.C:
		}
		if err := act(b.life); err != nil {
			b.cfg.Logger.Error("delayed power change failed", "machine", b.cfg.Name, "error", err)
		}
	})
	return nil
}
