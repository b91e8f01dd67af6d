// Package sushy runs a BMC that nobody here wrote: OpenStack's sushy-tools over
// libvirt, for virtual machines of its own. Everything runs in private mount and
// process namespaces, so that a libvirt of the host is not touched, and ends when
// Close is called or this process dies, however it dies.
//
// It needs root (libvirt's own wish for bridges), Debian's libvirt-daemon-system
// and libvirt-clients, and a sushy-emulator (PyPI sushy-tools) whose Python has
// the libvirt module (Debian's python3-libvirt; make the environment with
// --system-site-packages).
package sushy

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// Config describes the service.
type Config struct {
	// Dir is a directory of its own for logs and state, made when missing.
	Dir string
	// Emulator is the sushy-emulator to run.
	Emulator string
	// Listen is where Redfish is served, without authentication.
	Listen   netip.AddrPort
	Machines []Machine
	// Command makes commands in the network in which bridges and Listen are; nil
	// is this process's own. lab.Lab.Command fits.
	Command func(ctx context.Context, argv ...string) (*exec.Cmd, error)
}

// Machine is a virtual machine, off at first.
type Machine struct {
	Name, UUID string
	UEFI       bool // else SeaBIOS
	MemoryMiB  int
	CPUs       int
	Disk       string // raw file, which is there already
	Bridge     string // to which the NIC is plugged
	MAC        string
}

// Service is a running sushy-emulator with its libvirtd.
type Service struct {
	dir  string
	url  string
	life io.WriteCloser // its end is the service's end
	done chan struct{}
	err  error // of the process, after done
}

//go:embed run.sh
var script string

//go:embed domain.xml
var domainXML string

var domain = template.Must(template.New("domain").Funcs(template.FuncMap{"x": escape}).Parse(domainXML))

// escape makes s safe in XML text and attributes.
func escape(s string) (string, error) {
	var b strings.Builder
	err := xml.EscapeText(&b, []byte(s))
	return b.String(), err
}

// Firmware of Debian's ovmf package.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// startLimit is how long libvirtd and the emulator may take to answer; 5 s were
// measured on a busy machine with 2 cores.
const startLimit = time.Minute

// Missing says what this host lacks, nil when nothing.
func Missing(emulator string) error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("libvirt plugs machines into bridges as root only: run this as root"))
	}
	for name, pkg := range map[string]string{"libvirtd": "libvirt-daemon-system", "virsh": "libvirt-clients", "unshare": "util-linux"} {
		if _, err := exec.LookPath(name); err != nil {
			errs = append(errs, fmt.Errorf("no %s: install Debian's %s", name, pkg))
		}
	}
	python := filepath.Join(filepath.Dir(emulator), "python")
	if out, err := exec.Command(python, "-c", "import libvirt, sushy_tools").CombinedOutput(); err != nil {
		errs = append(errs, fmt.Errorf("%s has no libvirt or sushy_tools: %s", python, bytes.TrimSpace(out)))
	}
	return errors.Join(errs...)
}

// pinned are the versions that this was measured with.
var pinned = []string{"sushy-tools==2.2.0", "sushy==5.14.0"}

// Install puts a sushy-emulator into dir, a Python environment, from PyPI, unless
// it is there, and returns its path; callers wait for each other. It needs Debian's
// python3-venv.
func Install(ctx context.Context, dir string) (emulator string, err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() // unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	emulator = filepath.Join(dir, "bin", "sushy-emulator")
	if _, err := os.Stat(emulator); err == nil {
		return emulator, nil
	}
	// Debian's own Python: it is the one that Debian's python3-libvirt fits.
	for _, argv := range [][]string{
		{"/usr/bin/python3", "-m", "venv", "--clear", "--system-site-packages", dir},
		append([]string{filepath.Join(dir, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check"}, pinned...),
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("install sushy-tools: %s: %w: %s", argv[0], err, bytes.TrimSpace(out))
		}
	}
	return emulator, nil
}

// Start starts libvirtd, defines the machines, starts the emulator, and waits
// until it answers.
func Start(ctx context.Context, cfg Config) (*Service, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if err := write(dir, cfg); err != nil {
		return nil, fmt.Errorf("sushy in %s: %w", dir, err)
	}
	command := cfg.Command
	if command == nil {
		command = func(ctx context.Context, argv ...string) (*exec.Cmd, error) {
			return exec.CommandContext(ctx, argv[0], argv[1:]...), nil
		}
	}
	// The process must outlive ctx, which is for the start only.
	cmd, err := command(context.WithoutCancel(ctx), "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-eu", filepath.Join(dir, "run.sh"), dir, cfg.Emulator)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log", "run"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	life, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start sushy: %w", err)
	}
	s := &Service{dir: dir, url: "http://" + cfg.Listen.String(), life: life, done: make(chan struct{})}
	go func() { s.err = cmd.Wait(); close(s.done) }()
	if err := s.wait(ctx, filepath.Join(dir, "ready")); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// URL is the Redfish service's.
func (s *Service) URL() string { return s.url }

// SystemID is the path of a machine's ComputerSystem: driver_info/redfish_system_id.
func SystemID(m Machine) string { return "/redfish/v1/Systems/" + m.UUID }

// Console is the file to which a machine's serial console goes.
func (s *Service) Console(m Machine) string { return filepath.Join(s.dir, m.Name+".console") }

// Close ends the machines and the service.
func (s *Service) Close() error {
	err := s.life.Close()
	<-s.done
	return err
}

// wait waits until the script says that the emulator runs and answers.
func (s *Service) wait(ctx context.Context, ready string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(ready); err == nil {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("sushy ended (%w): %s", s.err, s.words())
		case <-ctx.Done():
			return fmt.Errorf("sushy is not ready: %w: %s", ctx.Err(), s.words())
		case <-tick.C:
		}
	}
}

// words are the last that the processes said.
func (s *Service) words() string {
	data, err := os.ReadFile(filepath.Join(s.dir, "log", "run"))
	if err != nil {
		return err.Error()
	}
	const last = 1000 // bytes
	return string(bytes.TrimSpace(data[max(0, len(data)-last):]))
}

// write puts everything that run.sh needs into dir.
func write(dir string, cfg Config) error {
	// libvirt's directories of the host are covered by these.
	for _, sub := range []string{"run", "lib", "etc/qemu", "log", "cache", "pool", "state", "domains"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "ready")); err != nil {
		return err
	}
	files := map[string]string{
		"run.sh": script,
		// Access by the socket's file permissions; there is no polkit here.
		"etc/libvirtd.conf": "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n",
		"etc/qemu.conf": "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\nsecurity_driver = \"none\"\n" +
			"namespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\n",
		"sushy.conf": fmt.Sprintf("SUSHY_EMULATOR_LISTEN_IP = %q\nSUSHY_EMULATOR_LISTEN_PORT = %d\nSUSHY_EMULATOR_LIBVIRT_URI = 'qemu:///system'\n"+
			"SUSHY_EMULATOR_STATE_DIR = %q\nSUSHY_EMULATOR_BOOT_LOADER_MAP = {'UEFI': {'x86_64': %q}, 'Legacy': {'x86_64': None}}\n",
			cfg.Listen.Addr(), cfg.Listen.Port(), filepath.Join(dir, "state"), ovmfCode),
		"url": "http://" + cfg.Listen.String() + "/redfish/v1/",
	}
	for _, m := range cfg.Machines {
		var b bytes.Buffer
		if err := domain.Execute(&b, struct {
			Machine
			Dir, Code, Vars string
		}{m, dir, ovmfCode, ovmfVars}); err != nil {
			return err
		}
		files["domains/"+m.Name+".xml"] = b.String()
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
