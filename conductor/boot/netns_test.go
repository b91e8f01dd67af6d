package boot

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/conductor/boot/dhcp"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

const insideVariable = "SLIPWAY_TEST_IN_NETNS"

// inNamespace runs the calling test again in a network namespace of its own, as
// root there. It returns true in that second run; in the first it waits for it
// and passes its result on.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVariable) != "" {
		return true
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v"}
	if d, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+time.Until(d.Add(-5*time.Second)).String())
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSPC):
		t.Skipf("this host allows no network namespace (run as root, or allow user namespaces): %v", err)
	case err != nil:
		t.Fatalf("in the namespace: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("in the namespace:\n%s", out)
	}
	t.Logf("in the namespace:\n%s", out)
	return false
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// up brings a link up, with an address when one is given.
func up(t *testing.T, name, cidr string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	if cidr != "" {
		a, err := netlink.ParseAddr(cidr)
		must(t, err)
		must(t, netlink.AddrAdd(link, a))
	}
	must(t, netlink.LinkSetUp(link))
}

// lan makes the boot network: the bridge srv with the server's address.
func lan(t *testing.T) *netlink.Bridge {
	t.Helper()
	up(t, "lo", "")
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "srv"}}
	must(t, netlink.LinkAdd(bridge))
	must(t, exec.Command("ip", "link", "set", "srv", "type", "bridge", "forward_delay", "0").Run())
	// Without this the link-local address is tentative for two seconds.
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/srv/accept_dad", []byte("0"), 0o600))
	up(t, "srv", "10.77.0.1/24")
	return bridge
}

// plugIn brings a station's NIC up, from within the station, and waits until the
// lan's end forwards, which the kernel puts off for up to a second.
func plugIn(t *testing.T, name, cidr string) {
	t.Helper()
	up(t, name, cidr)
	forwards := make(chan bool)
	go func() { // in the lan's namespace: this is no locked thread
		for range 500 {
			if l, err := netlink.LinkByName(name + "-lan"); err == nil && l.Attrs().OperState == netlink.OperUp {
				forwards <- true
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		forwards <- false
	}()
	if !<-forwards {
		t.Fatalf("the lan's end of %s does not come up", name)
	}
}

// station runs f in a namespace of its own that has a NIC called name on the lan.
func station(t *testing.T, lan *netlink.Bridge, name string, f func()) {
	t.Helper()
	plug := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name + "-lan", MasterIndex: lan.Index}, PeerName: name}
	must(t, netlink.LinkAdd(plug))
	must(t, netlink.LinkSetUp(plug))
	nic, err := netlink.LinkByName(name)
	must(t, err)
	moved, made, done := make(chan error), make(chan int), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine, and its namespace with it
		fd, err := -1, unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			fd = -1
		}
		made <- fd
		if <-moved == nil {
			f()
		}
	}()
	fd := <-made
	if fd < 0 {
		moved <- errors.New("no namespace")
		t.Fatalf("no namespace for %s", name)
	}
	err = netlink.LinkSetNsFd(nic, fd)
	moved <- err
	<-done
	must(t, errors.Join(err, unix.Close(fd)))
}

// book records evidence.
type book struct {
	mu    sync.Mutex
	start time.Time
	rows  []row
	more  chan struct{}
}

type row struct {
	at  time.Duration
	mac string
	event.Evidence
}

func newBook() *book { return &book{start: time.Now(), more: make(chan struct{}, 1)} }

func (b *book) record(_ context.Context, _, mac string, e event.Evidence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows = append(b.rows, row{time.Since(b.start), mac, e})
	select {
	case b.more <- struct{}{}:
	default:
	}
}

func (b *book) all() []row {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]row(nil), b.rows...)
}

// await returns the first row that match takes, within 10 s.
func (b *book) await(t *testing.T, match func(row) bool) row {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		for _, r := range b.all() {
			if match(r) {
				return r
			}
		}
		select {
		case <-b.more:
		case <-late:
			t.Fatalf("the evidence did not come; there is %+v", b.all())
		}
	}
}

// fixed is a Resolver with one answer.
type fixed struct {
	plan Plan
	err  error
}

func (f *fixed) Resolve(_ context.Context, r Request) (Plan, error) {
	p := f.plan
	p.Config.BootMAC = r.MAC
	return p, f.err
}

func (f *fixed) ResolvePath(_ context.Context, path string) (Plan, error) {
	if f.err != nil {
		return Plan{}, f.err
	}
	if path != f.plan.Path {
		return Plan{}, ErrNoBoot
	}
	return f.plan, nil
}

// testPlan boots files made in a directory of the test's.
func testPlan(t *testing.T) Plan {
	t.Helper()
	dir := t.TempDir()
	p := Plan{
		Netboot: true, Node: "5f1b6f9e-0000-4000-8000-000000000001", Path: "Zm9vYmFyYmF6cXV4-_0123",
		Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd"),
		Config:  agent.BootConfig{Conductor: "http://10.77.0.1:6385", Nonce: "n0nce", BootMAC: "52:54:00:aa:00:01", Slipway: true},
		Cmdline: []string{"console=ttyS0,115200", "quiet"},
	}
	must(t, os.WriteFile(p.Kernel, make([]byte, 3<<20), 0o600))
	must(t, os.WriteFile(p.Initrd, []byte("ramdisk of 21 bytes..")[:21], 0o600))
	return p
}

// firmwareDir has small files under iPXE's names.
func firmwareDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"undionly.kpxe", "ipxe.efi", "snponly.efi"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(strings.Repeat(name+"\n", 7000)), 0o600))
	}
	return dir
}

// testConfig is full DHCP on srv.
func testConfig(t *testing.T, b *book, r Resolver) Config {
	t.Helper()
	return Config{
		Resolver: r, Record: b.record, BaseURL: "http://10.77.0.1:6385", DHCP: dhcp.Full, Interface: "srv", FirmwareDir: firmwareDir(t),
		Subnets: []dhcp.Subnet{{Prefix: netip.MustParsePrefix("10.77.0.0/24"), First: netip.MustParseAddr("10.77.0.100"),
			Last: netip.MustParseAddr("10.77.0.199"), Router: netip.MustParseAddr("10.77.0.1")}},
		ProbeTime: -1,
		Log:       slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// start runs the services and their HTTP side until the test ends.
func start(t *testing.T, cfg Config) *Server { return serve(t, cfg, "") }

// serve is start with, when first is not "", another answer to the first script asked for.
func serve(t *testing.T, cfg Config, first string) *Server {
	t.Helper()
	s, err := New(cfg)
	must(t, err)
	l, err := net.Listen("tcp", strings.TrimPrefix(cfg.BaseURL, "http://"))
	must(t, err)
	mux := chi.NewRouter()
	var once sync.Once
	mux.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answered := false
			if first != "" && strings.HasSuffix(r.URL.Path, ".ipxe") {
				once.Do(func() {
					_, err := w.Write([]byte(first))
					answered = err == nil
				})
			}
			if !answered {
				next.ServeHTTP(w, r)
			}
		})
	})
	mux.Mount(MountPath, s.Handler())
	web := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	go func() { _ = web.Serve(l) }()
	t.Cleanup(func() {
		cancel()
		_ = web.Close()
		select {
		case err := <-ended:
			if err != nil {
				t.Error("services ended with", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("services did not end with their context")
		}
	})
	select {
	case <-s.Ready():
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatal("services did not start")
	}
	return s
}
