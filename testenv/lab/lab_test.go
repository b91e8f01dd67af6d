package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Reexec()
	goleak.VerifyTestMain(m)
}

// start runs a lab of this text until the test ends; a host that allows no
// lab at all skips the test and says why.
func start(t *testing.T, text string, opts Options) *Lab {
	t.Helper()
	spec, err := Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	l, err := Start(t.Context(), spec, opts)
	var told *Error
	if errors.As(err, &told) && told.Refused {
		t.Skipf("skipped: %v", told)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// get fetches a page inside the lab as the BMC's administrator.
func get(t *testing.T, l *Lab, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: l.DialContext, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("admin", "password")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func mustExec(t *testing.T, l *Lab, argv ...string) string {
	t.Helper()
	out, err := l.Exec(t.Context(), argv...)
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

// gone waits until no process of that number is alive.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d is still there", pid)
}

func TestLabHasANetworkOfItsOwn(t *testing.T) {
	l := start(t, small, Options{})
	links := mustExec(t, l, "ip", "-br", "address")
	for _, want := range []string{"net", "10.9.0.1/24", "tap0.0"} {
		if !strings.Contains(links, want) {
			t.Errorf("no %s inside the lab:\n%s", want, links)
		}
	}
	if delay := mustExec(t, l, "ip", "-d", "link", "show", "net"); !strings.Contains(delay, "forward_delay 0 ") {
		t.Errorf("the bridge delays forwarding, which loses firmware's first DHCP requests:\n%s", delay)
	}
	host, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range host {
		if i.Name == "net" || i.Name == "tap0.0" {
			t.Errorf("the lab put %s into the host's network", i.Name)
		}
	}
	if status, body := get(t, l, "http://10.9.0.1:8001/redfish/v1/Systems"); status != http.StatusOK || !strings.Contains(body, derivedUUID("small", "m")) {
		t.Errorf("the BMC answers %d %s", status, body)
	}
	if st, err := l.Machine("m").Status(t.Context()); err != nil || st.On {
		t.Errorf("a new lab's machine: %+v, %v", st, err)
	}
}

func TestTwoLabsWithTheSameAddressesRunSideBySide(t *testing.T) {
	a, b := start(t, small, Options{}), start(t, small, Options{})
	for _, l := range []*Lab{a, b} {
		if status, _ := get(t, l, "http://10.9.0.1:8001/redfish/v1/"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
	}
}

func TestLinksAreShaped(t *testing.T) {
	l := start(t, strings.Replace(small, "10.9.0.0/24", "10.9.0.0/24, rate: 100Mbit", 1), Options{})
	if out := mustExec(t, l, "tc", "qdisc", "show", "dev", "tap0.0"); !strings.Contains(out, "tbf") || !strings.Contains(out, "rate 100Mbit") {
		t.Errorf("tc says %s", out)
	}
}

func TestForwardLeadsFromTheHostIntoTheLab(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := netip.MustParseAddrPort(free.Addr().String())
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, small, Options{Forwards: []Forward{{listen, netip.MustParseAddrPort("10.9.0.1:8001")}}})
	resp, err := http.Get("http://" + listen.String() + "/redfish/v1/")
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%s, %v", resp.Status, err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestForwardFromATakenPortIsRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	spec, err := Parse("x.yaml", []byte(small))
	if err != nil {
		t.Fatal(err)
	}
	forward := Forward{netip.MustParseAddrPort(taken.Addr().String()), netip.MustParseAddrPort("10.9.0.1:8001")}
	_, err = Start(t.Context(), spec, Options{Dir: t.TempDir(), Forwards: []Forward{forward}})
	var told *Error
	if !errors.As(err, &told) || !strings.Contains(told.Why, "in use") || told.Next == "" {
		t.Errorf("error = %v", err)
	}
}

func TestEverythingInsideEndsWithTheLab(t *testing.T) {
	dir := t.TempDir()
	l := start(t, small, Options{Dir: dir})
	info, err := l.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sleeper, err := l.Command(t.Context(), "sh", "-c", "sleep 1000 & echo $!; wait")
	if err != nil {
		t.Fatal(err)
	}
	out, err := sleeper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	var grandchild int
	if _, err := fmt.Fscan(out, &grandchild); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Wait(); err == nil {
		t.Error("a program inside the lab was not ended")
	}
	gone(t, grandchild)
	gone(t, info.PID)
	for _, name := range []string{controlSocket, setupFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	if _, err := os.Stat(diskPath(dir, "m", 0)); err != nil {
		t.Errorf("the disk is not kept: %v", err)
	}
	if _, err := Open(dir); err == nil {
		t.Error("the lab can still be opened")
	}
}

func TestDownEndsADetachedLabAndPurgeRemovesItsFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	start(t, small, Options{Dir: dir, Detach: true})
	if found, err := Find(filepath.Dir(dir)); err != nil || len(found) != 1 || found[0] != dir {
		t.Errorf("Find = %v, %v", found, err)
	}
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Down(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if found, err := Find(filepath.Dir(dir)); err != nil || len(found) != 0 {
		t.Errorf("Find = %v, %v", found, err)
	}
}

func TestASecondLabInADirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	l := start(t, small, Options{Dir: dir})
	if _, err := Start(t.Context(), l.Spec(), Options{Dir: dir}); !errors.Is(err, errRunning) {
		t.Errorf("error = %v", err)
	}
	if status, _ := get(t, l, "http://10.9.0.1:8001/redfish/v1/"); status != http.StatusOK {
		t.Errorf("the first lab suffered: status %d", status)
	}
}

func TestAKilledLabIsStartedAgain(t *testing.T) {
	dir := t.TempDir()
	l := start(t, small, Options{Dir: dir})
	info, err := l.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(diskPath(dir, "m", 0), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(diskPath(dir, "m", 0), 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(info.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-l.Ended()
	again := start(t, small, Options{Dir: dir})
	if status, _ := get(t, again, "http://10.9.0.1:8001/redfish/v1/"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	disk, err := os.Open(diskPath(dir, "m", 0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = disk.Close() }()
	head := make([]byte, 8)
	if _, err := io.ReadFull(disk, head); err != nil || string(head) != "precious" {
		t.Errorf("the disk begins with %q, %v", head, err)
	}
}

func TestADiskOfAnotherSizeIsNotThrownAway(t *testing.T) {
	dir := t.TempDir()
	if err := start(t, small, Options{Dir: dir}).Close(); err != nil {
		t.Fatal(err)
	}
	bigger, err := Parse("x.yaml", []byte(strings.Replace(small, "1GiB", "2GiB", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), bigger, Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "--fresh") {
		t.Errorf("error = %v", err)
	}
	start(t, strings.Replace(small, "1GiB", "2GiB", 1), Options{Dir: dir, Fresh: true})
}

func TestExitStatusIsTheCommands(t *testing.T) {
	l := start(t, small, Options{})
	_, err := l.Exec(t.Context(), "sh", "-c", "exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("error = %v", err)
	}
}

func TestUnknownMachineIsTold(t *testing.T) {
	l := start(t, small, Options{})
	err := l.Machine("x").PowerOn(t.Context())
	var told *Error
	if !errors.As(err, &told) || !strings.Contains(told.Next, "use one of: m") {
		t.Errorf("error = %v", err)
	}
}

func TestDirectoryMayBeDeep(t *testing.T) {
	// A unix socket's address holds 107 bytes.
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30))
	l := start(t, small, Options{Dir: dir})
	if _, err := l.Info(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWithoutRoot runs the tests above as an ordinary user, in a user
// namespace, when they run as root here.
func TestWithoutRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: this is already an ordinary user, and so are the other tests")
	}
	dir, err := os.MkdirTemp("", "lab-without-root-*") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program := filepath.Join(dir, "lab.test")
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(program, data, 0o755), os.Chmod(program, 0o755), os.Chmod(dir, 0o777)); err != nil { //nolint:gosec // another user must get in
		t.Fatal(err)
	}
	// Debian lets everybody open /dev/net/tun, and some containers do not. A
	// device of our own, seen by this test alone, stands in for Debian's.
	tun := filepath.Join(t.TempDir(), "tun")
	if err := errors.Join(unix.Mknod(tun, unix.S_IFCHR, int(unix.Mkdev(10, 200))), os.Chmod(tun, 0o666)); err != nil {
		t.Skipf("skipped: no device can be made here: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "sh", "-c",
		`mount --bind "$1" /dev/net/tun && shift && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`, "sh", tun,
		program, "-test.v", "-test.run=^(TestLabHas|TestEverything|TestLinks|TestForwardLeads|TestAKilled|TestPower|TestExit)")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP: TestLabHas") {
		t.Skipf("skipped: this host allows no lab without root:\n%s", out)
	}
	t.Logf("%s", out)
}
