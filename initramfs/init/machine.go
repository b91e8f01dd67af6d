package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/cmdline"
	"github.com/u-root/u-root/pkg/kmodule"
	"github.com/u-root/u-root/pkg/libinit"
	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/initramfs/init/console"
	"github.com/slipway-metal/slipway/initramfs/init/devices"
	"github.com/slipway-metal/slipway/initramfs/init/proc"
)

const (
	agentPath   = "/bin/slipway-agent"
	bootConfig  = "/etc/slipway/boot.json"
	crashFile   = "/run/slipway/last-crash"
	settledFile = "/run/slipway/settled"

	// quiet without a new device counts as all devices found. A module's load
	// returns when its probes have ended (async_synchronize_full in the
	// kernel's do_init_module), so little comes later.
	quiet = 100 * time.Millisecond
	// patience bounds the wait for devices: a disk shelf that spins up must not
	// hold the agent, which looks again.
	patience = 10 * time.Second
)

// environment of the agent and the shell.
var environment = []string{"PATH=/bin:/sbin", "HOME=/root", "TERM=linux", "LANG=C.UTF-8"}

// machine is what PID 1 knows of the machine that it runs on.
type machine struct {
	log    *console.Log
	args   *cmdline.CmdLine
	loader *devices.Loader
	reaper *proc.Reaper
	agent  *proc.Keeper
}

// run brings the machine up, and then serves it until it is switched off.
func (m *machine) run() error {
	ctx := context.Background()
	m.log.Printf("ramdisk started, kernel %s", release())
	if err := unix.Sethostname([]byte("slipway")); err != nil {
		m.log.Printf("set the host name: %v", err)
	}
	m.reaper = proc.NewReaper()
	m.guard("shell", m.shellOnRequest)

	m.bringUpDevices(ctx)
	libinit.NetInit() // loopback; it logs to the kernel's log
	m.mountEFIVars()
	m.settle(ctx)

	m.agent = &proc.Keeper{
		Argv: []string{agentPath}, Env: environment, CrashFile: crashFile,
		Log: m.log.Printf, Output: m.log.Line, Launch: m.reaper.Launch,
	}
	if !exists(bootConfig) {
		m.log.Printf("no %s: the conductor appends it to the ramdisk when it serves it; was another boot server faster?", bootConfig)
	}
	m.guard("agent's keeper", func() { m.agent.Run(ctx) })
	return m.obey(ctx)
}

// guard runs f beside; a panic in it is told and does not end PID 1.
func (m *machine) guard(name string, f func()) {
	go func() {
		defer func() {
			if p := recover(); p != nil {
				m.log.Printf("init: the %s failed, which is a bug: %v", name, p)
			}
		}()
		f()
	}()
}

// bringUpDevices starts to load modules for the devices that are there and for
// those that come.
func (m *machine) bringUpDevices(ctx context.Context) {
	loader, err := newLoader(m.args)
	if err != nil {
		// Drivers built into the kernel work all the same.
		m.log.Printf("no modules can be loaded: %v", err)
		loader = &devices.Loader{Index: &devices.Index{}, Prober: noModules{}, Params: m.args.FlagsForModule}
	}
	loader.Loaded = m.reportModule
	m.loader = loader
	loader.Start(ctx, max(2, min(runtime.NumCPU(), 8)))
	listener, err := devices.Listen()
	if err != nil {
		m.log.Printf("devices that come later will not be seen: %v", err)
	} else {
		m.guard("device listener", func() { m.listen(listener) })
	}
	m.present()
}

// newLoader reads the ramdisk's module index.
func newLoader(args *cmdline.CmdLine) (*devices.Loader, error) {
	dir := filepath.Join("/lib/modules", release())
	aliases, err := os.Open(filepath.Join(dir, "modules.alias"))
	if err != nil {
		return nil, fmt.Errorf("the ramdisk was built for another kernel: %w", err)
	}
	defer aliases.Close()
	index, err := devices.ReadIndex(aliases)
	if err != nil {
		return nil, err
	}
	rules, err := os.Open(filepath.Join(dir, "modules.softdep"))
	if err != nil {
		return nil, fmt.Errorf("read soft dependencies: %w", err)
	}
	defer rules.Close()
	soft, err := devices.ReadSoftdeps(rules)
	if err != nil {
		return nil, err
	}
	prober, err := kmodule.NewProber(kmodule.ProbeOpts{IgnoreProcMods: true}) // loading what is loaded does no harm
	if err != nil {
		return nil, fmt.Errorf("read module dependencies: %w", err)
	}
	return &devices.Loader{Index: index, Prober: prober, Soft: soft, Params: args.FlagsForModule}, nil
}

// noModules stands in when there is no module index.
type noModules struct{}

func (noModules) Probe(name, _ string) error {
	return fmt.Errorf("module %s: the ramdisk has no modules for this kernel", name)
}

func (m *machine) present() {
	if err := devices.Present("/sys", m.loader.Offer); err != nil {
		m.log.Printf("some devices will have no driver: %v", err)
	}
}

func (m *machine) listen(l *devices.Listener) {
	buf := make([]byte, 64<<10)
	for {
		e, err := l.Next(buf)
		switch {
		case errors.Is(err, devices.ErrLost):
			m.present()
			continue
		case err != nil:
			m.log.Printf("devices that come later will not be seen: %v", err)
			return
		case e.Action != "add":
			continue
		}
		if e.Modalias != "" {
			m.loader.Offer(e.Modalias)
		}
		if e.Subsystem == "net" || e.Subsystem == "block" && e.DevType == "disk" {
			m.loader.Touch()
		}
	}
}

func (m *machine) reportModule(module, by string, took time.Duration, err error) {
	switch {
	case errors.Is(err, unix.ENODEV):
		// The driver looked closer and found that the device is not its own.
	case err != nil:
		m.log.Printf("module %s for %s: %v", module, by, err)
	default:
		m.log.Printf("module %s (%d ms) for %s", module, took.Milliseconds(), by)
	}
}

// settle waits for the devices, says which there are, and notes that in a file
// the agent can look for.
func (m *machine) settle(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := m.loader.Settle(limited, quiet); err != nil {
		m.log.Printf("going on after %v: %v", patience, err)
	}
	m.log.Printf("disks: %s", list("/sys/block", describeDisk))
	m.log.Printf("network: %s", list("/sys/class/net", describeNIC))
	if err := os.WriteFile(settledFile, nil, 0o644); err != nil {
		m.log.Printf("%v", err)
	}
}

// list describes the entries of a directory of /sys; describe returns "" for
// one to leave out.
func list(dir string, describe func(dir, name string) string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Sprintf("unknown (%v)", err)
	}
	var found []string
	for _, e := range entries {
		if text := describe(filepath.Join(dir, e.Name()), e.Name()); text != "" {
			found = append(found, text)
		}
	}
	if len(found) == 0 {
		return "none found; is a driver missing from the ramdisk? (initramfs/README.md says how to add one)"
	}
	return strings.Join(found, ", ")
}

func describeDisk(dir, name string) string {
	if !exists(filepath.Join(dir, "device")) {
		return "" // virtual: loop, ram, zram, md
	}
	var sectors int64 // of 512 bytes, whatever the disk's own size (Documentation/block/stat)
	if _, err := fmt.Sscan(attribute(dir, "size"), &sectors); err != nil {
		return name
	}
	return fmt.Sprintf("%s (%.1f GB)", name, float64(sectors)*512/1e9)
}

func describeNIC(dir, name string) string {
	if !exists(filepath.Join(dir, "device")) {
		return "" // loopback and other virtual ones
	}
	return fmt.Sprintf("%s (%s)", name, attribute(dir, "address"))
}

func attribute(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// release is the running kernel's, as uname -r says.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
