package dhcp

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// open returns a store of each kind; reopen gives what a restart would see.
func stores(t *testing.T) map[string]func() Leases {
	memory := NewMemoryLeases()
	path := filepath.Join(t.TempDir(), "leases.jsonl")
	return map[string]func() Leases{
		"memory": func() Leases { return memory },
		"file": func() Leases {
			l, err := OpenFileLeases(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			return l
		},
	}
}

func TestLeasesSurviveAReopen(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	end := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, open := range stores(t) {
		t.Run(name, func(t *testing.T) {
			l := open()
			for _, one := range []Lease{{"52:54:00:00:00:01", b, end, ""}, {"52:54:00:00:00:02", b, end, "web"}, {"52:54:00:00:00:01", a, end, ""}} {
				if err := l.Put(one); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Delete(a); err != nil {
				t.Fatal(err)
			}
			all, err := open().All()
			if err != nil || len(all) != 1 || all[0] != (Lease{"52:54:00:00:00:02", b, end, "web"}) {
				t.Errorf("%v %+v", err, all)
			}
		})
	}
}

func TestLeaseFileStaysSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.jsonl")
	l, err := OpenFileLeases(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for i := range 5000 {
		if err := l.Put(Lease{MAC: "52:54:00:00:00:01", IP: netip.MustParseAddr("10.0.0.1"), Expires: time.Unix(int64(i), 0).UTC()}); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 1100*100 {
		t.Errorf("%v, %d bytes for one lease", err, info.Size())
	}
}

func TestLeaseFileCutShortByACrashIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.jsonl")
	line := `{"mac":"52:54:00:00:00:01","ip":"10.0.0.1","expires":"2030-01-02T03:04:05Z"}` + "\n"
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(line + line[:30])
	l, err := OpenFileLeases(path)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := l.All(); err != nil || len(all) != 1 {
		t.Error(err, all)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	write(line[:30] + "\n" + line)
	if _, err := OpenFileLeases(path); err == nil || !strings.Contains(err.Error(), "line 1 is damaged") {
		t.Error("damage in the middle:", err)
	}
}

func TestServerKeepsItsLeasesOverARestart(t *testing.T) {
	store := NewMemoryLeases()
	with := func(c *Config) { c.Leases = store }
	ip := acquire(t, newRig(t, with)).YourIPAddr
	restarted := newRig(t, with)
	if mac := restarted.MACOf(addr(ip)); mac != testMAC {
		t.Errorf("after a restart %s is leased to %q", ip, mac)
	}
	if again := acquire(t, restarted).YourIPAddr; !again.Equal(ip) {
		t.Errorf("after a restart %s instead of %s", again, ip)
	}
}
