package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/initramfs/pack"
)

// patience is the most that one machine may take, all told.
const patience = 60 * time.Second

// machine is a QEMU machine to boot a ramdisk in.
type machine struct {
	memory  int      // MB
	args    []string // devices
	cmdline string   // after the console's
	initrd  string   // instead of the build's
	media   bool     // the firmware boots what args give it, and not the build's files
}

// vm is a running machine: what its serial console says, line by line.
type vm struct {
	t       *testing.T
	start   time.Time
	lines   chan string
	said    []string
	keys    io.Writer
	socket  string
	ended   chan error
	expires <-chan time.Time
}

// boot starts the machine; the test's end ends it.
func boot(t *testing.T, dir string, m machine) *vm {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("needs qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)")
	}
	if m.initrd == "" {
		m.initrd = filepath.Join(dir, pack.RamdiskFile)
	}
	if !m.media {
		m.args = append(m.args, "-kernel", filepath.Join(dir, pack.KernelFile), "-initrd", m.initrd, "-append", "console=ttyS0 "+m.cmdline)
	}
	// A socket's path is at most 108 bytes long, too few for t.TempDir().
	sockets, err := os.MkdirTemp("", "vm-")
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{t: t, lines: make(chan string, 10000), socket: filepath.Join(sockets, "monitor"), ended: make(chan error, 1)}
	cmd := exec.CommandContext(t.Context(), qemu, append([]string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", fmt.Sprint(m.memory), // -cpu max: without RDRAND getrandom(2) blocks
		"-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-monitor", "unix:" + v.socket + ",server=on,wait=off",
		"-device", "virtio-rng-pci",
	}, m.args...)...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Stderr = os.Stderr
	if v.keys, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	v.start = time.Now()
	v.expires = time.After(patience)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(v.lines)
		text := bufio.NewScanner(out)
		for text.Scan() {
			v.lines <- strings.TrimRight(text.Text(), "\r")
		}
		v.ended <- cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		for range v.lines {
			continue // until the reader above has seen the end
		}
		if err := os.RemoveAll(sockets); err != nil {
			t.Error(err)
		}
	})
	return v
}

// expect waits for a line that matches, after those seen so far, and returns it.
func (v *vm) expect(pattern string) string {
	v.t.Helper()
	re := regexp.MustCompile(pattern)
	for {
		select {
		case line, ok := <-v.lines:
			if !ok {
				v.fail("the machine ended without saying %q", pattern)
			}
			v.said = append(v.said, line)
			if re.MatchString(line) {
				v.t.Logf("%5.2f s  %s", time.Since(v.start).Seconds(), line)
				return line
			}
		case <-v.expires:
			v.fail("after %v nothing matched %q", patience, pattern)
		}
	}
}

// seen tells whether a line so far matches.
func (v *vm) seen(pattern string) bool {
	re := regexp.MustCompile(pattern)
	for _, line := range v.said {
		if re.MatchString(line) {
			return true
		}
	}
	return false
}

// forbid fails the test if a line so far matches.
func (v *vm) forbid(pattern string) {
	v.t.Helper()
	if v.seen(pattern) {
		v.fail("the console shows %q", pattern)
	}
}

// enter types a line on the serial console.
func (v *vm) enter(line string) {
	v.t.Helper()
	if _, err := io.WriteString(v.keys, line+"\n"); err != nil {
		v.t.Fatal(err)
	}
}

// monitor gives QEMU's monitor a command.
func (v *vm) monitor(command string) {
	v.t.Helper()
	c, err := net.Dial("unix", v.socket)
	if err != nil {
		v.t.Fatal(err)
	}
	if _, err := io.WriteString(c, command+"\n"); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = c.Close() }) // QEMU drops what it has not read when the socket closes
}

// gone waits for the machine to end by itself.
func (v *vm) gone() {
	v.t.Helper()
	for {
		select {
		case line, ok := <-v.lines:
			if ok {
				v.said = append(v.said, line)
				continue
			}
			if err := <-v.ended; err != nil {
				v.fail("QEMU ended with %v", err)
			}
			return
		case <-v.expires:
			v.fail("after %v the machine was still there", patience)
		}
	}
}

func (v *vm) fail(format string, args ...any) {
	v.t.Helper()
	v.t.Fatalf("%s; the console's last lines:\n%s", fmt.Sprintf(format, args...), strings.Join(v.said[max(0, len(v.said)-60):], "\n"))
}

// disk makes an empty disk of 64 MB and returns the -drive argument for it.
func disk(t *testing.T, id string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), id)
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	return "if=none,format=raw,id=" + id + ",file=" + file
}

func virtioAndNVMe(t *testing.T) []string {
	t.Helper()
	return []string{
		"-netdev", "user,id=net0,restrict=on", "-device", "virtio-net-pci,netdev=net0,mac=52:54:00:aa:00:01,romfile=",
		"-drive", disk(t, "blk0"), "-device", "virtio-blk-pci,drive=blk0,serial=blk0",
		"-drive", disk(t, "nvm0"), "-device", "nvme,drive=nvm0,serial=nvm0",
	}
}

// ovmf returns the arguments for UEFI firmware with an empty variable store.
func ovmf(t *testing.T) []string {
	t.Helper()
	const dir = "/usr/share/OVMF"
	empty, err := os.ReadFile(filepath.Join(dir, "OVMF_VARS_4M.fd"))
	if err != nil {
		t.Skip("needs OVMF (Debian: apt-get install ovmf)")
	}
	vars := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(vars, empty, 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{
		"-drive", "if=pflash,format=raw,readonly=on,file=" + filepath.Join(dir, "OVMF_CODE_4M.fd"),
		"-drive", "if=pflash,format=raw,file=" + vars,
	}
}
