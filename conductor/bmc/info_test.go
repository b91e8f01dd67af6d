package bmc_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/testenv/fakebmc"
)

func TestWrongDriverInfoNamesItsKey(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("root:x:0:0"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key  string
		info map[string]any
		says string
	}{
		{"redfish_address", map[string]any{}, "is missing"},
		{"redfish_address", map[string]any{"redfish_address": 7.0}, "must be a string, not a number"},
		{"redfish_address", map[string]any{"redfish_address": "ftp://bmc"}, `scheme "ftp"`},
		{"redfish_address", map[string]any{"redfish_address": "https://admin:hunter2@bmc"}, "redfish_username"},
		{"redfish_address", map[string]any{"redfish_address": "https://admin:" + password + "@bmc"}, "not a URL"},
		{"redfish_address", map[string]any{"redfish_address": "https://bmc:port"}, "not a URL"},
		{"redfish_address", map[string]any{"redfish_address": "https://bmc/?x=1"}, "query"},
		{"redfish_address", map[string]any{"redfish_address": "https://"}, "no host"},
		{"redfish_system_id", map[string]any{"redfish_address": "bmc", "redfish_system_id": "1"}, "/redfish/v1/Systems/1"},
		{"redfish_system_id", map[string]any{"redfish_address": "bmc", "redfish_system_id": []any{}}, "not a list"},
		{"redfish_username", map[string]any{"redfish_address": "bmc", "redfish_password": password}, "is missing"},
		{"redfish_password", map[string]any{"redfish_address": "bmc", "redfish_username": "admin"}, "is missing"},
		{"redfish_password", map[string]any{"redfish_address": "bmc", "redfish_username": "admin", "redfish_password": true}, "not a boolean"},
		{"redfish_auth_type", map[string]any{"redfish_address": "bmc", "redfish_auth_type": "kerberos"}, "basic, session, auto"},
		{"redfish_tls_minimum_version", map[string]any{"redfish_address": "bmc", "redfish_tls_minimum_version": "1.0"}, "1.1, 1.2, 1.3"},
		{"redfish_tls_ciphers", map[string]any{"redfish_address": "bmc", "redfish_tls_ciphers": "HIGH"}, "redfish_tls_minimum_version"},
		{"redfish_verify_ca", map[string]any{"redfish_address": "bmc", "redfish_verify_ca": "/nonexistent"}, "neither a boolean nor"},
		{"redfish_verify_ca", map[string]any{"redfish_address": "bmc", "redfish_verify_ca": empty}, "no PEM certificates"},
		{"redfish_verify_ca", map[string]any{"redfish_address": "bmc", "redfish_verify_ca": 1.0}, "not a number"},
		{"redfish_quirks", map[string]any{"redfish_address": "bmc", "redfish_quirks": "magic"}, "no-force-off"},
	} {
		_, err := bmc.Open("redfish", c.info)
		var info *bmc.InfoError
		if !errors.As(err, &info) || info.Key != c.key {
			t.Errorf("%v: %v, want an error about %s", c.info, err, c.key)
			continue
		}
		check(t, err, bmc.ErrInvalid, "driver_info/"+c.key, c.says)
		if strings.Contains(err.Error(), "root:x") {
			t.Errorf("the error quotes a file: %v", err)
		}
	}
	for key, value := range map[string]any{
		"fake_power_delay": "soon", "fake_management_delay": -1.0, "fake_failures": "set-power=sulks",
	} {
		_, err := bmc.Open("fake-hardware", map[string]any{key: value})
		check(t, err, bmc.ErrInvalid, "driver_info/"+key)
	}
	_, err := bmc.Open("ipmi2", nil)
	check(t, err, bmc.ErrInvalid, "fake-hardware, manual-management, redfish")
}

func TestRightDriverInfo(t *testing.T) {
	for address, want := range map[string]string{
		"bmc.example.com": "bmc.example.com", "https://10.0.0.5": "10.0.0.5", "http://[2001:db8::1]:8000/": "[2001:db8::1]:8000",
		"2001:db8::1": "2001:db8::1", "https://BMC.example.com:443/redfish/v1": "bmc.example.com:443",
	} {
		b, err := bmc.Open("redfish", map[string]any{"redfish_address": address, "unknown_key": 1, "redfish_verify_ca": "No"})
		if err != nil || b.Address() != want {
			t.Errorf("%s: %v, want %s", address, err, want)
		}
	}
}

func TestPropertiesDescribeEveryKey(t *testing.T) {
	p, err := bmc.Properties("redfish")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"redfish_address", "redfish_system_id", "redfish_username", "redfish_password", "redfish_verify_ca", "redfish_auth_type"} {
		if p[key] == "" {
			t.Errorf("no description of %s", key)
		}
	}
	clear(p)
	if p, _ = bmc.Properties("redfish"); len(p) == 0 {
		t.Error("a caller could empty the table")
	}
	if _, err := bmc.Properties("toaster"); !errors.Is(err, bmc.ErrInvalid) {
		t.Error(err)
	}
}

func TestCertificatesAreVerified(t *testing.T) {
	r := newRig(t)
	server := httptest.NewTLSServer(r.bmc)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		verify any
		ok     bool
	}{{nil, false}, {true, false}, {false, true}, {"False", true}, {ca, true}, {dir, true}} {
		info := maps.Clone(r.info)
		info["redfish_address"] = server.URL
		if c.verify != nil {
			info["redfish_verify_ca"] = c.verify
		}
		_, err := openFull(t, "redfish", info, bmc.Options{Timeouts: quick}).PowerState(t.Context())
		if c.ok && err != nil {
			t.Errorf("redfish_verify_ca %v: %v", c.verify, err)
		}
		if !c.ok {
			check(t, err, bmc.ErrUnreachable, "redfish_verify_ca")
		}
		var unknown x509.UnknownAuthorityError
		if !c.ok && !errors.As(err, &unknown) {
			t.Errorf("redfish_verify_ca %v: %v, want the certificate's error", c.verify, err)
		}
	}
}

func TestFakeFailuresComeAsOrdered(t *testing.T) {
	b := openFull(t, "fake-hardware", map[string]any{"fake_failures": "set-power=ignored:2, identity=refused"}, bmc.Options{})
	for range 2 {
		check(t, b.SetPower(t.Context(), bmc.ActionOn), bmc.ErrIgnored)
	}
	if err := b.SetPower(t.Context(), bmc.ActionOn); err != nil {
		t.Error(err)
	}
	_, err := b.Identity.Identity(t.Context())
	check(t, err, bmc.ErrRefused)
}

func TestManagerReusesAndReplaces(t *testing.T) {
	r := newRig(t)
	m := bmc.NewManager(bmc.Builtin(), bmc.Options{Timeouts: quick}, nil)
	first, err := m.For("node-1", "redfish", r.info)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := m.For("node-1", "redfish", maps.Clone(r.info)); err != nil || again != first {
		t.Errorf("the same driver_info opened a second BMC, error %v", err)
	}
	if _, err := first.(bmc.Power).PowerState(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.info["redfish_auth_type"] = "basic"
	if next, err := m.For("node-1", "redfish", r.info); err != nil || next == first {
		t.Errorf("changed driver_info kept the old BMC, error %v", err)
	}
	if _, err := m.For("node-1", "redfish", nil); !errors.Is(err, bmc.ErrInvalid) || !strings.Contains(err.Error(), "node-1") {
		t.Errorf("%v, want an error about node-1's driver_info", err)
	}
	m.Forget("node-1")
	m.Forget("node-1")
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := r.bmc.Stats(); s.Sessions != 0 {
		t.Errorf("%d sessions left open", s.Sessions)
	}
}

// Two nodes behind one address share its turn, its breaker and its verdicts.
func TestManagerSharesAGuardByAddress(t *testing.T) {
	r := newRig(t)
	r.bmc.SetFaults(fakebmc.Faults{RefuseAuth: true})
	m := bmc.NewManager(bmc.Builtin(), bmc.Options{Timeouts: quick}, nil)
	for _, node := range []string{"node-1", "node-2"} {
		b, err := m.For(node, "redfish", r.info)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.(bmc.Power).PowerState(t.Context())
		check(t, err, bmc.ErrRefused)
	}
	if s := r.bmc.Stats(); s.FailedLogins != 1 {
		t.Errorf("%d failed logins, want 1", s.FailedLogins)
	}
}

func FuzzDriverInfo(f *testing.F) {
	f.Add("https://bmc/redfish/v1", "/redfish/v1/Systems/1", "once-reads-continuous,")
	f.Add("http://[::1", "%zz", ",,")
	f.Fuzz(func(t *testing.T, address, system, quirks string) {
		b, err := bmc.Open("redfish", map[string]any{"redfish_address": address, "redfish_system_id": system, "redfish_quirks": quirks})
		var info *bmc.InfoError
		if err == nil && b.Address() == "" || err != nil && !errors.As(err, &info) {
			t.Fatalf("%q: %v", address, err)
		}
	})
}
