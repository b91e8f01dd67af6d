package bmc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/testenv/fakebmc"
)

// impatient gives up soon: for BMCs that never do what they say.
var impatient = bmc.Timeouts{
	Request: 100 * time.Millisecond, Power: 60 * time.Millisecond, SoftPower: 60 * time.Millisecond,
	Settle: 60 * time.Millisecond, Poll: 5 * time.Millisecond, BreakerOpen: 50 * time.Millisecond,
}

// check holds err against its class and the rule that an error names the BMC, the
// operation, the cause and the next step, and no password.
func check(t *testing.T, err, class error, words ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("%v\nis not: %v", err, class)
	}
	for _, other := range []error{bmc.ErrRefused, bmc.ErrUnreachable, bmc.ErrTimeout, bmc.ErrIgnored, bmc.ErrUnsupported, bmc.ErrFailed, bmc.ErrInvalid} {
		if !errors.Is(class, other) && errors.Is(err, other) {
			t.Errorf("%v\nis of two classes: %v and %v", err, class, other)
		}
	}
	if strings.Contains(err.Error(), password) {
		t.Errorf("the error shows the password: %v", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not say %q", err, w)
		}
	}
	var e *bmc.Error
	if errors.As(err, &e) && (e.Address == "" || e.Op == "" || e.Cause == nil || e.Next == "") {
		t.Errorf("BMC %q, op %q, cause %v, next step %q: all must be there", e.Address, e.Op, e.Cause, e.Next)
	}
}

func TestABMCThatRefusesTheLogin(t *testing.T) {
	for _, auth := range []string{"auto", "session", "basic"} {
		t.Run(auth, func(t *testing.T) {
			r := newRig(t)
			r.info["redfish_password"], r.info["redfish_auth_type"] = "wrong", auth
			m := bmc.NewManager(bmc.Builtin(), bmc.Options{Timeouts: quick}, nil)
			state := func(info map[string]any) error {
				b, err := m.For("node-1", "redfish", info)
				if err != nil {
					t.Fatal(err)
				}
				_, err = b.(bmc.Power).PowerState(t.Context())
				return err
			}
			check(t, state(r.info), bmc.ErrRefused, "read power state", "redfish_password")
			// BMCs lock accounts: one failed login in five minutes is all we spend.
			err := state(r.info)
			check(t, err, bmc.ErrRefused, "next try at")
			var e *bmc.Error
			if errors.As(err, &e); time.Until(e.RetryAt) < 4*time.Minute {
				t.Errorf("next try at %s, want in five minutes", e.RetryAt)
			}
			if s := r.bmc.Stats(); s.FailedLogins != 1 {
				t.Errorf("%d failed logins, want 1", s.FailedLogins)
			}
			r.info["redfish_password"] = password
			if err := state(r.info); err != nil {
				t.Errorf("changed credentials are tried at once: %v", err)
			}
			if err := m.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if s := r.bmc.Stats(); s.Sessions != 0 {
				t.Errorf("%d sessions left open", s.Sessions)
			}
		})
	}
}

func TestAPasswordThatIsChangedAtTheBMC(t *testing.T) {
	r := newRig(t)
	b := r.open(t, bmc.Options{})
	if _, err := b.PowerState(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.bmc.SetPassword("rotated")
	for range 5 {
		_, err := b.PowerState(t.Context())
		check(t, err, bmc.ErrRefused)
	}
	if s := r.bmc.Stats(); s.FailedLogins != 1 {
		t.Errorf("%d failed logins, want 1", s.FailedLogins)
	}
}

func TestAnExpiredSessionIsRenewed(t *testing.T) {
	r := newRig(t)
	b := r.open(t, bmc.Options{})
	for range 3 {
		if _, err := b.PowerState(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.bmc.ExpireSessions()
	}
	if s := r.bmc.Stats(); s.Logins != 3 || s.FailedLogins != 0 {
		t.Errorf("%d logins, %d failed", s.Logins, s.FailedLogins)
	}
}

func TestABMCWithAllSessionsTaken(t *testing.T) {
	r := newRig(t)
	first := r.open(t, bmc.Options{})
	if _, err := first.PowerState(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.bmc.SetFaults(fakebmc.Faults{MaxSessions: 1})
	if _, err := r.open(t, bmc.Options{}).PowerState(t.Context()); err != nil {
		t.Errorf("basic authentication needs no session: %v", err)
	}
	r.info["redfish_auth_type"] = "session"
	_, err := r.open(t, bmc.Options{}).PowerState(t.Context())
	check(t, err, bmc.ErrUnreachable, "number of simultaneous sessions")
}

func TestABMCThatDoesNotAnswer(t *testing.T) {
	r := newRig(t)
	r.bmc.SetFaults(fakebmc.Faults{Hang: true})
	b := r.open(t, bmc.Options{Timeouts: impatient})
	_, err := b.PowerState(t.Context())
	check(t, err, bmc.ErrTimeout, "no answer in time (100ms)")

	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	_, err = openFull(t, "redfish", map[string]any{"redfish_address": gone.URL}, bmc.Options{Timeouts: impatient}).PowerState(t.Context())
	check(t, err, bmc.ErrUnreachable, "connection refused", "redfish_address")
}

func TestABMCThatIsDownIsLeftAloneForAWhile(t *testing.T) {
	r := newRig(t)
	r.bmc.SetFaults(fakebmc.Faults{Status: http.StatusServiceUnavailable})
	b := r.open(t, bmc.Options{Timeouts: impatient})
	for range bmc.BreakerFailures {
		_, err := b.PowerState(t.Context())
		check(t, err, bmc.ErrUnreachable, "HTTP 503")
	}
	before := r.bmc.Stats().Requests
	_, err := b.PowerState(t.Context())
	check(t, err, bmc.ErrUnreachable, "not tried", "next try at")
	if n := r.bmc.Stats().Requests - before; n != 0 {
		t.Errorf("%d requests to a BMC that is to be left alone", n)
	}
	var e *bmc.Error
	errors.As(err, &e)
	r.bmc.SetFaults(fakebmc.Faults{})
	time.Sleep(time.Until(e.RetryAt)) // the breaker's own clock; its times are tested with a fake one in guard
	if _, err := b.PowerState(t.Context()); err != nil {
		t.Errorf("after the pause it is tried again: %v", err)
	}
}

func TestABMCThatSaysYesAndDoesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		faults fakebmc.Faults
		on     bool // the machine is on before
		deaf   bool
		do     func(*full, context.Context) error
		words  string
	}{
		"power on":                          {faults: fakebmc.Faults{IgnorePower: true}, do: set(bmc.ActionOn), words: "power is still Off"},
		"power off":                         {faults: fakebmc.Faults{IgnorePower: true}, on: true, do: set(bmc.ActionOff), words: "power is still On"},
		"reboot":                            {faults: fakebmc.Faults{IgnorePower: true}, on: true, do: set(bmc.ActionReboot), words: "power is still On"},
		"soft off, by the operating system": {on: true, deaf: true, do: set(bmc.ActionSoftOff), words: "power off without soft"},
		"restart without power off": {
			faults: fakebmc.Faults{IgnorePower: true, ResetTypes: []string{"On", "ForceRestart"}}, on: true, do: set(bmc.ActionReboot), words: "LastResetTime is unchanged",
		},
		"boot device": {
			faults: fakebmc.Faults{IgnoreBoot: true},
			do:     func(b *full, ctx context.Context) error { return b.SetBootDevice(ctx, bmc.DevicePXE, false) }, words: "the BMC shows the firmware's own order",
		},
		"once kept as continuous": {
			faults: fakebmc.Faults{OnceReadsContinuous: true},
			do:     func(b *full, ctx context.Context) error { return b.SetBootDevice(ctx, bmc.DevicePXE, false) }, words: "once-reads-continuous",
		},
		"virtual media": {
			faults: fakebmc.Faults{IgnoreMedia: true},
			do:     func(b *full, ctx context.Context) error { return b.InsertMedia(ctx, "http://192.0.2.1/boot.iso") }, words: "the drive shows no change",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if c.on {
				b := r.open(t, bmc.Options{})
				if err := b.SetPower(t.Context(), bmc.ActionOn); err != nil {
					t.Fatal(err)
				}
			}
			r.machine.Deaf(c.deaf)
			r.bmc.SetFaults(c.faults)
			check(t, c.do(r.open(t, bmc.Options{Timeouts: impatient}), t.Context()), bmc.ErrIgnored, c.words)
		})
	}
}

func set(a bmc.Action) func(*full, context.Context) error {
	return func(b *full, ctx context.Context) error { return b.SetPower(ctx, a) }
}

func TestAPowerChangeThatHangsHalfway(t *testing.T) {
	r := newRig(t)
	r.bmc.SetFaults(fakebmc.Faults{PowerDelay: time.Hour, TransitionState: "PoweringOn"})
	err := r.open(t, bmc.Options{Timeouts: impatient}).SetPower(t.Context(), bmc.ActionOn)
	check(t, err, bmc.ErrTimeout, "PoweringOn")
}

func TestARestartWithoutPowerOffIsSeenByItsTime(t *testing.T) {
	r := newRig(t)
	b := r.open(t, bmc.Options{})
	if err := b.SetPower(t.Context(), bmc.ActionOn); err != nil {
		t.Fatal(err)
	}
	r.bmc.SetFaults(fakebmc.Faults{ResetTypes: []string{"On", "ForceRestart"}})
	if err := b.SetPower(t.Context(), bmc.ActionReboot); err != nil {
		t.Fatal(err)
	}
	check(t, b.SetPower(t.Context(), bmc.ActionOff), bmc.ErrUnsupported, "On, ForceRestart", "by hand")
}

func TestABMCThatSaysNotNowIsAskedAgain(t *testing.T) {
	for _, id := range []string{"iLO.2.14.UnableToModifyDuringSystemPOST", "Base.1.8.ActionParameterValueConflict"} {
		r := newRig(t)
		r.bmc.SetFaults(fakebmc.Faults{StatusOnWrite: http.StatusConflict, MessageID: id, FailNext: 2})
		if err := r.open(t, bmc.Options{}).SetPower(t.Context(), bmc.ActionOn); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	r := newRig(t)
	r.bmc.SetFaults(fakebmc.Faults{StatusOnWrite: http.StatusConflict, MessageID: "Base.1.8.ActionParameterValueConflict"})
	err := r.open(t, bmc.Options{Timeouts: impatient}).SetPower(t.Context(), bmc.ActionOn)
	check(t, err, bmc.ErrFailed, "HTTP 409", "power on")
}

func TestAMachineThatFailsBehindItsBMC(t *testing.T) {
	r := newRig(t)
	r.machine.Fail(errors.New("power supply\x1b[31m burnt"))
	_, err := r.open(t, bmc.Options{}).PowerState(t.Context())
	check(t, err, bmc.ErrFailed, "HTTP 500", "power supply[31m burnt")
}

func TestAnswersThatAreNotRedfish(t *testing.T) {
	for name, c := range map[string]struct {
		faults fakebmc.Faults
		words  string
	}{
		"cut JSON":     {fakebmc.Faults{Malformed: true}, "unexpected EOF"},
		"endless JSON": {fakebmc.Faults{Huge: true}, "answer too large"},
		"a redirect to another host, which would get the token": {fakebmc.Faults{RedirectTo: "http://192.0.2.7:1"}, "192.0.2.7:1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			b := r.open(t, bmc.Options{})
			if _, err := b.PowerState(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.bmc.SetFaults(c.faults)
			_, err := b.PowerState(t.Context())
			check(t, err, bmc.ErrUnreachable, c.words)
		})
	}
}

// A field of the wrong type, of which BMCs have many, must not stop a power-off.
func TestAFieldOfTheWrongTypeStopsNothing(t *testing.T) {
	mux := http.NewServeMux()
	answer := func(path string, v any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) })
	}
	answer("/redfish/v1/", map[string]any{"Systems": map[string]any{"@odata.id": "/redfish/v1/Systems"}})
	answer("/redfish/v1/Systems", map[string]any{"Members": []any{map[string]any{"@odata.id": "/redfish/v1/Systems/1"}}})
	answer("/redfish/v1/Systems/1", map[string]any{"SerialNumber": 7, "MemorySummary": "none", "PowerState": "On"})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	state, err := openFull(t, "redfish", map[string]any{"redfish_address": s.URL}, bmc.Options{Timeouts: quick}).PowerState(t.Context())
	if err != nil || state != bmc.PowerOn {
		t.Fatalf("state %q, error %v", state, err)
	}
}

// FuzzAnswer: whatever a BMC answers is a state or an error with a class.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"PowerState":"On","Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`))
	f.Add([]byte(`{"EthernetInterfaces":{"@odata.id":"/redfish/v1/Systems"},"ProcessorSummary":{"Count":"many"}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/redfish/v1/":
				_, _ = w.Write([]byte(`{"Systems":{"@odata.id":"/redfish/v1/Systems"}}`))
			case "/redfish/v1/Systems":
				_, _ = w.Write([]byte(`{"Members":[{"@odata.id":"/redfish/v1/Systems/1"}]}`))
			default:
				_, _ = w.Write(body)
			}
		}))
		defer s.Close()
		b := openFull(t, "redfish", map[string]any{"redfish_address": s.URL}, bmc.Options{Timeouts: impatient})
		_, powerErr := b.PowerState(t.Context())
		_, bootErr := b.BootDevice.BootDevice(t.Context())
		_, identityErr := b.Identity.Identity(t.Context())
		for _, err := range []error{powerErr, bootErr, identityErr} {
			if err != nil {
				check(t, err, bmc.ErrUnreachable)
			}
		}
	})
}

func TestSeveralSystemsBehindOneBMC(t *testing.T) {
	r := newRig(t, func(c *fakebmc.Config) { c.OtherSystems = []string{"blade-2"} })
	_, err := r.open(t, bmc.Options{}).PowerState(t.Context())
	check(t, err, bmc.ErrInvalid, "redfish_system_id", "/redfish/v1/Systems/blade-2")
	r.info["redfish_system_id"] = "/redfish/v1/Systems/5CB1A8F0-0000-4000-8000-0000000000AB/"
	if _, err := r.open(t, bmc.Options{}).PowerState(t.Context()); err != nil {
		t.Error(err)
	}
	r.info["redfish_system_id"] = "/redfish/v1/Systems/blade-2"
	_, err = r.open(t, bmc.Options{}).PowerState(t.Context())
	check(t, err, bmc.ErrInvalid, "redfish_system_id", "does not exist")
}

func TestBootDevicesThatTheBMCLacks(t *testing.T) {
	r := newRig(t)
	r.bmc.SetFaults(fakebmc.Faults{BootTargets: []fakebmc.Device{"None", "Pxe", "Hdd"}, NoContinuous: true})
	b := r.open(t, bmc.Options{})
	check(t, b.SetBootDevice(t.Context(), bmc.DeviceUEFIHTTP, false), bmc.ErrUnsupported, "Pxe, Hdd")
	check(t, b.SetBootDevice(t.Context(), bmc.DeviceDisk, true), bmc.ErrUnsupported, "Continuous", "before each boot")
}

func TestQuirksByDriverInfo(t *testing.T) {
	r := newRig(t)
	r.bmc.SetFaults(fakebmc.Faults{OnceReadsContinuous: true})
	r.info["redfish_quirks"] = "no-force-off, once-reads-continuous"
	b := r.open(t, bmc.Options{})
	if err := b.SetBootDevice(t.Context(), bmc.DevicePXE, false); err != nil {
		t.Error(err)
	}
	for _, a := range []bmc.Action{bmc.ActionOn, bmc.ActionOff} {
		if err := b.SetPower(t.Context(), a); err != nil {
			t.Error(err)
		}
	}
	if resets := r.bmc.Stats().Resets; resets[1] != "GracefulShutdown" {
		t.Errorf("resets %q: ForceOff must not be used", resets)
	}
}

// What the BMC says may hold what was sent to it.
func TestNoPasswordIsShown(t *testing.T) {
	r := newRig(t)
	r.bmc.SetFaults(fakebmc.Faults{RefuseAuth: true, EchoCredentials: true})
	var log strings.Builder
	b := r.open(t, bmc.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	_, err := b.PowerState(t.Context())
	check(t, err, bmc.ErrRefused, "password *** refused")
	for e := err; e != nil; {
		if s := fmt.Sprintf("%v %+v %#v", e, e, e); strings.Contains(s, password) {
			t.Errorf("shown: %s", s)
		}
		var be *bmc.Error
		if !errors.As(e, &be) {
			break
		}
		e = be.Cause
	}
	secret := bmc.NewSecret(password)
	data, jsonErr := json.Marshal(struct{ S bmc.Secret }{secret})
	fmt.Fprintf(&log, "%v %+v %#v %s %q %x %s", secret, secret, secret, secret, secret, struct{ S *bmc.Secret }{&secret}, data)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", secret, "bmc", b.BMC)
	if jsonErr != nil || strings.Contains(log.String(), password) {
		t.Errorf("shown: %s, error %v", log.String(), jsonErr)
	}
	if secret.Reveal() != password {
		t.Error("the wire needs the password itself")
	}
}
