package bootconf

import (
	"testing"
	"testing/fstest"
)

func TestLoadPrefersTheConductorsFile(t *testing.T) {
	c, err := Load(fstest.MapFS{
		File:           {Data: []byte(`{"conductor":"http://10.77.0.1:6385/","nonce":"n","node_uuid":"u","boot_mac":"52:54:00:AA:BB:CC","slipway":true}`)},
		"proc/cmdline": {Data: []byte("ipa-api-url=http://192.0.2.1 BOOTIF=01-52-54-00-00-00-01 ipa-insecure=1\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Conductor != "http://10.77.0.1:6385" || c.BootMAC != "52:54:00:aa:bb:cc" || c.Nonce != "n" || c.Insecure {
		t.Fatalf("got %+v", c)
	}
}

func TestLoadFromStockIronicsCommandLine(t *testing.T) {
	c, err := Load(fstest.MapFS{"proc/cmdline": {Data: []byte(
		`nofb "ipa-api-url=https://ironic:6385" ipa-debug=1 BOOTIF=52:54:00:e2:d8:70 ipa-inspection-callback-url=https://ironic/v1/continue_inspection` + "\n")}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Conductor != "https://ironic:6385" || c.BootMAC != "52:54:00:e2:d8:70" || c.LogLevel != "debug" || c.Slipway ||
		c.InspectURL != "https://ironic/v1/continue_inspection" {
		t.Fatalf("got %+v", c)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, fsys := range map[string]fstest.MapFS{
		"nothing":       {},
		"no URL":        {"proc/cmdline": {Data: []byte("quiet")}},
		"file URL":      {"proc/cmdline": {Data: []byte("ipa-api-url=file:///etc/passwd")}},
		"bad JSON":      {File: {Data: []byte("{")}},
		"mDNS":          {"proc/cmdline": {Data: []byte("ipa-api-url=mdns")}},
		"bad MAC":       {File: {Data: []byte(`{"conductor":"http://a","boot_mac":"zz"}`)}},
		"file is empty": {File: {Data: nil}},
	} {
		if c, err := Load(fsys); err == nil {
			t.Errorf("%s: accepted: %+v", name, c)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a=b BOOTIF=01-52-54-00-00-00-01 \"x y\"")
	f.Fuzz(func(t *testing.T, s string) {
		if m := bootif(parseCmdline(s)["BOOTIF"]); m != "" && len(m) != 17 {
			t.Fatalf("bootif gave %q", m)
		}
	})
}
