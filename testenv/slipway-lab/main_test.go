package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-metal/slipway/testenv/lab"
)

// asCommand makes this test program the command itself.
const asCommand = "SLIPWAY_LAB_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	lab.Reexec()
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// run runs the command as a person would, with a home of its own.
func run(t *testing.T, home string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...) // not of t.Context: cleanups run it, too
	cmd.Env = append(os.Environ(), asCommand+"=1", "XDG_STATE_HOME="+home, "XDG_CACHE_HOME="+home)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// labFile writes a lab of one machine and returns its path.
func labFile(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".yaml")
	text := "name: " + name + "\nnetworks: [{name: net, cidr: 10.9.0.0/24}]\n" +
		"machines: [{name: m, firmware: bios, memory: 128MiB, disks: [{size: 1MiB}], nics: [{}]}]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// up starts a lab and ends it with the test.
func up(t *testing.T, home, name string) {
	t.Helper()
	out, errs, status := run(t, home, "up", labFile(t, name))
	if strings.Contains(errs, "make a network namespace") || strings.Contains(errs, "/dev/net/tun") {
		t.Skipf("skipped: this host allows no lab:\n%s", errs)
	}
	if status != 0 || !strings.Contains(out, "Next:") {
		t.Fatalf("up: %d\n%s%s", status, out, errs)
	}
	t.Cleanup(func() { run(t, home, "down", name, "--no-keep") })
}

func TestHelpTeaches(t *testing.T) {
	out, _, status := run(t, t.TempDir(), "--help")
	for _, want := range []string{"slipway-lab up testenv/labs/demo.yaml", "power node-1 on", "image", "--lab"} {
		if !strings.Contains(out, want) {
			t.Errorf("--help (%d) does not say %q:\n%s", status, want, out)
		}
	}
}

func TestErrorsAreThreeLines(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("name: x\nmachine: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		why  string
		next string
	}{
		{[]string{"list", "--what"}, "unknown flag", "--help"},
		{[]string{"power", "m", "on"}, "no lab is running", "slipway-lab up"},
		{[]string{"power", "m", "maybe"}, `must be one of`, "--help"},
		{[]string{"--lab", "x", "list"}, "no lab is running in", "slipway-lab up"},
		{[]string{"up", bad}, "bad.yaml:2", "demo.yaml"},
		{[]string{"up", labFile(t, "f"), "--forward", "nowhere"}, "HOST:PORT=INSIDE:PORT", "up --help"},
	} {
		_, errs, status := run(t, t.TempDir(), tc.args...)
		lines := strings.Split(strings.TrimSpace(errs), "\n")
		if status != 1 || !strings.HasPrefix(lines[0], "error: ") || !strings.HasPrefix(lines[1], "  why: ") || !strings.HasPrefix(lines[len(lines)-1], " next: ") ||
			!strings.Contains(errs, tc.why) || !strings.Contains(lines[len(lines)-1], tc.next) {
			t.Errorf("%v: status %d\n%s", tc.args, status, errs)
		}
	}
}

func TestALabFromUpToDown(t *testing.T) {
	home := t.TempDir()
	up(t, home, "one")
	if out, _, _ := run(t, home, "list"); !strings.Contains(out, "http://10.9.0.1:8001/redfish/v1") || !strings.Contains(out, "off") {
		t.Errorf("list:\n%s", out)
	}
	if out, _, _ := run(t, home, "power", "m", "status"); out != "off\n" {
		t.Errorf("status: %q", out)
	}
	if out, errs, status := run(t, home, "exec", "--", "sh", "-c", "ip -br link show net; exit 3"); status != 3 || !strings.Contains(out, "net ") {
		t.Errorf("exec: %d %s %s", status, out, errs)
	}
	if _, errs, status := run(t, home, "ssh", "m"); status != 1 || !strings.Contains(errs, "power m on") {
		t.Errorf("ssh to a machine that is off: %d %s", status, errs)
	}
	if _, errs, status := run(t, home, "console", "x"); status != 1 || !strings.Contains(errs, "use one of: m") {
		t.Errorf("console of nobody: %d %s", status, errs)
	}
	if out, errs, status := run(t, home, "down"); status != 0 {
		t.Errorf("down: %d %s %s", status, out, errs)
	}
	if out, _, _ := run(t, home, "list"); !strings.Contains(out, "No lab is running") {
		t.Errorf("list after down:\n%s", out)
	}
}

func TestSeveralLabsAreToldApart(t *testing.T) {
	home := t.TempDir()
	up(t, home, "one")
	up(t, home, "two")
	if _, errs, status := run(t, home, "power", "m", "status"); status != 1 || !strings.Contains(errs, "one, two") || !strings.Contains(errs, "--lab one") {
		t.Errorf("%d %s", status, errs)
	}
	if out, errs, _ := run(t, home, "--lab", "two", "power", "m", "status"); out != "off\n" {
		t.Errorf("%s %s", out, errs)
	}
}
