package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/testenv/qemu"
)

// needQEMU skips what starts real machines unless it was asked for.
func needQEMU(t *testing.T) {
	t.Helper()
	if os.Getenv("SLIPWAY_QEMU") == "" {
		t.Skip("skipped: starts virtual machines for some seconds each: set SLIPWAY_QEMU=1, as make test does")
	}
}

// What a guest of one sector does after it has said its word on the serial port.
var (
	thenPowerOff = []byte{0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd} // ACPI: soft off
	thenReset    = []byte{0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd}                   // keyboard controller: reset line
	thenHalt     = []byte{0xf4, 0xeb, 0xfd}
)

// guest is a disk whose boot sector says a word on the serial port and then
// does one thing: an operating system of 512 bytes.
func guest(t *testing.T, word string, then []byte) string {
	t.Helper()
	code := []byte{
		0x31, 0xc0, 0x8e, 0xd8, // ds = 0
		0xbe, 0, 0, // si = the word
		0xba, 0xf8, 0x03, // dx = COM1
		0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // out, byte by byte up to a zero
	}
	code = append(code, then...)
	at := 0x7c00 + len(code)
	code[5], code[6] = byte(at), byte(at>>8)
	code = append(append(code, word...), '\r', '\n', 0)
	sector := make([]byte, 1<<20)
	copy(sector, code)
	sector[510], sector[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "guest.raw")
	if err := os.WriteFile(path, sector, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// withGuest is a lab of one BIOS machine that starts this image.
func withGuest(image, more string) string {
	return `
name: power
accel: tcg
networks: [{name: net, cidr: 10.9.0.0/24}]
machines:
  - name: m
    firmware: bios
    memory: 128MiB
    disks: [{size: 4MiB, image: "` + image + `"}]
    nics: [{}]
` + more
}

// redfish speaks to the only machine's BMC as its administrator.
func redfish(t *testing.T, l *Lab, method, path string, body any) map[string]any {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	m := l.Spec().Machines[0]
	req, err := http.NewRequestWithContext(t.Context(), method, m.RedfishURL()+"/Systems/"+m.UUID+path, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(m.BMC.User, m.BMC.Password)
	req.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{DialContext: l.DialContext, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, answer, err)
	}
	var out map[string]any
	if len(answer) > 0 {
		if err := json.Unmarshal(answer, &out); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func reset(t *testing.T, l *Lab, kind string) {
	t.Helper()
	redfish(t, l, http.MethodPost, "/Actions/ComputerSystem.Reset", map[string]string{"ResetType": kind})
}

func setBoot(t *testing.T, l *Lab, target, enabled string) {
	t.Helper()
	redfish(t, l, http.MethodPatch, "", map[string]any{"Boot": map[string]string{
		"BootSourceOverrideTarget": target, "BootSourceOverrideEnabled": enabled}})
}

func powerState(t *testing.T, l *Lab) string {
	t.Helper()
	state, _ := redfish(t, l, http.MethodGet, "", nil)["PowerState"].(string)
	return state
}

// says waits for a line on the machine's console.
func says(t *testing.T, l *Lab, pattern string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := l.Machine("m").WaitConsole(ctx, regexp.MustCompile(pattern)); err != nil {
		t.Fatal(err)
	}
}

func TestPowerByRedfish(t *testing.T) {
	needQEMU(t)
	l := start(t, withGuest(guest(t, "guest is up", thenHalt), ""), Options{})
	if got := powerState(t, l); got != "Off" {
		t.Fatalf("a new machine is %s", got)
	}
	reset(t, l, "On")
	says(t, l, "guest is up")
	if got := powerState(t, l); got != "On" {
		t.Errorf("after On the machine is %s", got)
	}
	reset(t, l, "ForceRestart")
	says(t, l, "(?s)guest is up.*guest is up")
	st, err := l.Machine("m").Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reset(t, l, "ForceOff")
	if got := powerState(t, l); got != "Off" {
		t.Errorf("after ForceOff the machine is %s", got)
	}
	gone(t, st.PID)
	log, err := os.ReadFile(filepath.Join(l.Machine("m").Dir(), qemu.EventsLog))
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range []string{"START", "RESET", "SHUTDOWN", "END"} {
		if !strings.Contains(string(log), `"event":"`+event+`"`) {
			t.Errorf("no %s among the events:\n%s", event, log)
		}
	}
}

func TestPowerOffByTheGuestIsOff(t *testing.T) {
	needQEMU(t)
	l := start(t, withGuest(guest(t, "good night", thenPowerOff), ""), Options{})
	reset(t, l, "On")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.Machine("m").WaitOff(ctx); err != nil {
		t.Fatal(err)
	}
	if got := powerState(t, l); got != "Off" {
		t.Errorf("the machine is %s", got)
	}
	if text, err := l.Machine("m").Console(); err != nil || !strings.Contains(text, "good night") {
		t.Errorf("console %q, %v", text, err)
	}
}

func TestPowerOnceOverrideIsSpentByTheFirstBoot(t *testing.T) {
	needQEMU(t)
	l := start(t, withGuest(guest(t, "from disk", thenReset), "    boot: [pxe, disk]\n"), Options{})
	setBoot(t, l, "Hdd", "Once")
	reset(t, l, "On")
	says(t, l, "(?s)from disk.*iPXE.*Configuring")
	text, err := l.Machine("m").Console()
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(text, "from disk"); n != 1 {
		t.Errorf("the disk was started %d times with an override for once", n)
	}
	boot, _ := redfish(t, l, http.MethodGet, "", nil)["Boot"].(map[string]any)
	if boot["BootSourceOverrideEnabled"] != "Disabled" {
		t.Errorf("the BMC still says %v", boot)
	}
}

func TestPowerOverrideOfARunningMachineCountsFromItsNextReset(t *testing.T) {
	needQEMU(t)
	l := start(t, withGuest(guest(t, "from disk", thenHalt), "    boot: [pxe, disk]\n"), Options{})
	reset(t, l, "On")
	says(t, l, "iPXE")
	setBoot(t, l, "Hdd", "Continuous")
	for _, want := range []string{"from disk", "(?s)from disk.*from disk"} {
		reset(t, l, "ForceRestart")
		says(t, l, want)
	}
	setBoot(t, l, "None", "Disabled")
	reset(t, l, "ForceRestart")
	says(t, l, "(?s)from disk.*from disk.*iPXE.*Configuring")
}

func TestPowerEndsWhenTheSupervisorIsKilled(t *testing.T) {
	needQEMU(t)
	l := start(t, withGuest(guest(t, "guest is up", thenHalt), ""), Options{})
	reset(t, l, "On")
	says(t, l, "guest is up")
	info, err := l.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(info.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-l.Ended()
	gone(t, info.Machines[0].PID)
}

func TestPowerOnSaysWhatQEMUSaid(t *testing.T) {
	needQEMU(t)
	l := start(t, withGuest(guest(t, "", thenHalt), "    direct: {kernel: /does/not/exist}\n"), Options{})
	err := l.Machine("m").PowerOn(t.Context())
	if err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("error = %v", err)
	}
	if got := powerState(t, l); got != "Off" {
		t.Errorf("the machine is %s", got)
	}
}

// TestPowerUEFI shows each bus and network card to OVMF.
func TestPowerUEFI(t *testing.T) {
	needQEMU(t)
	text := withGuest(guest(t, "", thenHalt), "    boot: [pxe]\n")
	text = strings.NewReplacer("firmware: bios", "firmware: uefi", "disks: [", "disks: [{size: 8MiB, bus: nvme, sector: 4096}, {size: 8MiB, bus: ahci, wwn: '0x5000c50015ea71ac'}, ",
		"nics: [{}]", "nics: [{model: e1000e}]").Replace(text)
	l := start(t, text, Options{})
	reset(t, l, "On")
	says(t, l, "iPXE")
	reset(t, l, "PowerCycle")
	says(t, l, "iPXE")
}
