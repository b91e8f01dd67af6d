package devices

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Lines of modules.alias as Debian's kernel 6.1 has them.
const aliases = `# a comment
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias virtio:d00000001v* virtio_net
alias virtio:d00000002v* virtio_blk
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias pci:v*d*sv*sd*bc01sc06i01* ahci
alias pci:v00008086d00002922sv*sd*bc*sc*i* ahci
alias usb:v*p*d*dc*dsc*dp*ic08isc06ip50in* usb_storage
alias usb:v0781p0001d0[0-1]*dc*dsc*dp*ic*isc*ip*in* ums_sandisk
alias scsi:t-0x00* sd_mod
alias platform:dmi-ipmi-si ipmi_si
alias dmi*:svnExample*:pnServer/2*: example_wmi
alias fs-efivarfs efivarfs
`

func TestModaliasesFindTheirModules(t *testing.T) {
	index, err := ReadIndex(strings.NewReader(aliases))
	if err != nil {
		t.Fatal(err)
	}
	for modalias, want := range map[string]string{
		"pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00": "virtio_pci",
		"virtio:d00000002v00001AF4":                             "virtio_blk",
		"pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02": "nvme",
		"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01": "ahci", // by two patterns, loaded once
		"pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00": "e1000e",
		"usb:v0781p0001d0112dc00dsc00dp00ic08isc06ip50in00":     "ums_sandisk usb_storage",
		"usb:v0781p0001d0212dc00dsc00dp00ic08isc06ip50in00":     "usb_storage",
		"scsi:t-0x00":          "sd_mod",
		"scsi:t-0x05":          "",
		"platform:dmi-ipmi-si": "ipmi_si",
		"platform:dmi_ipmi_si": "ipmi_si", // kmod holds - and _ equal
		"dmi:bvn:bd04/01/2014:svnExample:pnServer/2x:": "example_wmi",
		"fs-efivarfs": "efivarfs",
		"":            "",
	} {
		if got := strings.Join(index.Match(modalias), " "); got != want {
			t.Errorf("%s: modules %q, want %q", modalias, got, want)
		}
	}
}

func FuzzMatchAgreesWithPathMatch(f *testing.F) {
	f.Add("v*d[0-9]?x", "v1d2yx")
	f.Add("*a*b*", "xaybz")
	f.Add("[!a-c]", "d")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		got := match(pattern, s)
		// path.Match differs by design in slashes, escapes, and what is no ASCII,
		// calls a malformed pattern an error, and writes [^a] for [!a].
		if strings.ContainsAny(pattern+s, "/\\!^]") || strings.IndexFunc(pattern+s, func(r rune) bool { return r > 126 || r < 32 }) >= 0 {
			return
		}
		if want, err := path.Match(pattern, s); err == nil && got != want {
			t.Errorf("match(%q, %q) = %v", pattern, s, got)
		}
	})
}

func TestUeventsAreRead(t *testing.T) {
	msg := "add@/devices/pci0000:00/0000:00:03.0\x00ACTION=add\x00DEVPATH=/devices/pci0000:00/0000:00:03.0\x00SUBSYSTEM=pci\x00MODALIAS=pci:v00001AF4d00001000\x00SEQNUM=1024\x00"
	got, err := ParseEvent([]byte(msg))
	if err != nil {
		t.Fatal(err)
	}
	want := Event{Action: "add", DevPath: "/devices/pci0000:00/0000:00:03.0", Subsystem: "pci", Modalias: "pci:v00001AF4d00001000"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	if _, err := ParseEvent([]byte("libudev\x00garbage")); err == nil {
		t.Error("udev's own messages were taken for the kernel's")
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add([]byte("add@/x\x00MODALIAS=pci:\x00"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if e, err := ParseEvent(msg); err == nil && !strings.HasPrefix(string(msg), e.Action+"@") {
			t.Errorf("action %q of %q", e.Action, msg)
		}
	})
}

func TestDevicesThatAreThereAreFoundOnAllBuses(t *testing.T) {
	sys := t.TempDir()
	for file, text := range map[string]string{
		"bus/pci/devices/0000:00:03.0/modalias":    "pci:v1\n",
		"bus/virtio/devices/virtio0/modalias":      "virtio:d1\n",
		"bus/cpu/devices/cpu0/online":              "1\n",
		"bus/acpi/devices/LNXSYSTM:00/modalias":    "\n",
		"bus/empty/drivers_autoprobe":              "1\n",
		"devices/elsewhere/without/a/bus/modalias": "nothing:\n",
	} {
		file = filepath.Join(sys, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	if err := Present(sys, func(m string) { got = append(got, m) }); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"pci:v1", "virtio:d1"}, got); diff != "" {
		t.Errorf("modaliases (-want +got):\n%s", diff)
	}
}

// prober notes what is loaded; a module takes as long as it says.
type prober struct {
	mu     sync.Mutex
	loaded []string
	takes  map[string]time.Duration
	fails  map[string]error
}

func (p *prober) Probe(name, params string) error {
	time.Sleep(p.takes[name])
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loaded = append(p.loaded, strings.TrimSpace(name+" "+params))
	return p.fails[name]
}

func newTestLoader(t *testing.T, p *prober, softdeps string) *Loader {
	t.Helper()
	index, err := ReadIndex(strings.NewReader(aliases))
	if err != nil {
		t.Fatal(err)
	}
	soft, err := ReadSoftdeps(strings.NewReader(softdeps))
	if err != nil {
		t.Fatal(err)
	}
	return &Loader{
		Index: index, Prober: p, Soft: soft,
		Params: func(module string) string { return map[string]string{"nvme": "poll_queues=1"}[module] },
		Loaded: func(string, string, time.Duration, error) {},
	}
}

func TestEachModuleIsLoadedOnceWithItsParameters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p := &prober{}
		l := newTestLoader(t, p, "")
		l.Start(ctx, 4)
		for range 3 {
			l.Offer("scsi:t-0x00")
			l.Offer("pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02")
			l.Offer("pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02")
			l.Offer("nothing:has-this")
		}
		if err := l.Settle(ctx, 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		slices.Sort(p.loaded)
		if diff := cmp.Diff([]string{"nvme poll_queues=1", "sd_mod"}, p.loaded); diff != "" {
			t.Errorf("loaded (-want +got):\n%s", diff)
		}
	})
}

func TestSettleWaitsForASlowModuleAndForWhatItBrings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p := &prober{takes: map[string]time.Duration{"ahci": 1700 * time.Millisecond, "sd_mod": 200 * time.Millisecond}}
		l := newTestLoader(t, p, "")
		l.Start(ctx, 2)
		start := time.Now()
		l.Offer("pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01")
		time.AfterFunc(1750*time.Millisecond, func() { l.Offer("scsi:t-0x00") }) // the disk's uevent
		if err := l.Settle(ctx, 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"ahci", "sd_mod"}, p.loaded); diff != "" {
			t.Errorf("loaded (-want +got):\n%s", diff)
		}
		if took := time.Since(start); took > 2200*time.Millisecond {
			t.Errorf("settled after %v, want soon after 2.05 s", took)
		}
	})
}

func TestSettleGivesUpOnDevicesThatNeverEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		p := &prober{takes: map[string]time.Duration{"ahci": time.Minute}}
		l := newTestLoader(t, p, "")
		l.Start(ctx, 1)
		l.Offer("pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01")
		if err := l.Settle(ctx, 100*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Settle = %v, want the deadline", err)
		}
		time.Sleep(time.Minute) // the bubble's clock: let the module end
	})
}

func TestSoftDependenciesKeepTheirOrder(t *testing.T) {
	p := &prober{fails: map[string]error{"broken": errors.New("no such device")}}
	l := newTestLoader(t, p, "softdep ipmi_si pre: ipmi_msg post: ipmi_devintf\nsoftdep broken post: never\n# comment\n")
	l.Prepare()
	l.Load("ipmi_si", "test")
	l.Load("broken", "test")
	if diff := cmp.Diff([]string{"ipmi_msg", "ipmi_si", "ipmi_devintf", "broken"}, p.loaded); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
}

func TestSoftDependenciesInACircleEnd(t *testing.T) {
	p := &prober{}
	l := newTestLoader(t, p, "softdep a pre: b\nsoftdep b pre: c\nsoftdep c pre: a\nsoftdep d post: d\n")
	l.Prepare()
	for _, m := range []string{"c", "a", "d"} {
		l.Load(m, "test")
	}
	if diff := cmp.Diff([]string{"c", "b", "a", "d"}, p.loaded); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
}

func TestThePowerButtonIsToldFromOtherEvents(t *testing.T) {
	event := func(class string, kind byte) []byte {
		msg := make([]byte, acpiHeader+44)
		copy(msg[acpiHeader:], class)
		copy(msg[acpiHeader+acpiClassBytes:], "LNXPWRBN:00")
		msg[acpiHeader+acpiClassBytes+16] = kind
		return msg
	}
	for _, c := range []struct {
		name string
		msg  []byte
		want bool
	}{
		{"pressed", event("button/power", 0x80), true},
		{"woken", event("button/power", 0x02), false},
		{"lid", event("button/lid", 0x80), false},
		{"cut short", event("button/power", 0x80)[:acpiHeader+20], false},
	} {
		if got := isPowerButton(c.msg); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
