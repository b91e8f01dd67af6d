package pack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/slipway-metal/slipway/initramfs/flavor"
	"github.com/slipway-metal/slipway/initramfs/kernel"
	"github.com/slipway-metal/slipway/initramfs/modules"
)

// format is part of every stamp: raise it when the same inputs are to give
// other bytes, and everybody's ramdisk is built anew.
const format = 2

// Names of what a build leaves in its directory.
const (
	KernelFile   = "vmlinuz"
	RamdiskFile  = "initramfs.cpio.zst"
	ManifestFile = "manifest.json"
)

// Inputs are what a ramdisk is made from.
type Inputs struct {
	Flavor *flavor.Flavor
	Kernel *kernel.Package
	Init   string // the PID 1 program, a static binary
	Agent  string // slipway-agent, a static binary
}

// Manifest says what is in a build and what it was made from. A build whose
// manifest carries the same stamp is left alone.
type Manifest struct {
	Stamp    string   `json:"stamp"`
	Flavor   string   `json:"flavor"`
	Release  string   `json:"kernel_release"`
	Package  string   `json:"kernel_package"`
	Version  string   `json:"kernel_version"`
	Bytes    int64    `json:"ramdisk_bytes"`
	Unpacked int64    `json:"ramdisk_unpacked_bytes"`
	Budget   int64    `json:"budget_bytes"`
	SHA256   string   `json:"ramdisk_sha256"`
	Kernel   string   `json:"kernel_sha256"`
	Parts    []Part   `json:"parts"`
	Modules  []string `json:"modules"`
	BuiltIn  []string `json:"built_in"`
	// Firmware lists files that modules may ask for and that the ramdisk lacks.
	Firmware []string `json:"firmware_absent"`
}

// Build makes dir hold the kernel and the ramdisk of the inputs. It reports
// whether there was anything to do. A ramdisk over budget is an error, and is
// not written.
func Build(ctx context.Context, in Inputs, dir string, log io.Writer) (*Manifest, bool, error) {
	stamp, err := in.stamp()
	if err != nil {
		return nil, false, err
	}
	if old := current(dir, stamp); old != nil {
		return old, false, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, false, fmt.Errorf("make the build directory: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, ".kernel-")
	if err != nil {
		return nil, false, fmt.Errorf("make a temporary directory: %w", err)
	}
	defer os.RemoveAll(tmp)
	tree, err := in.Kernel.Unpack(ctx, tmp)
	if err != nil {
		return nil, false, err
	}
	m, image, err := in.assemble(tree)
	if err != nil {
		return nil, false, err
	}
	m.Stamp = stamp
	if err := WriteTable(log, m.Parts, m.Unpacked, m.Bytes, m.Budget); err != nil {
		return nil, false, fmt.Errorf("print the size table: %w", err)
	}
	if m.Bytes > m.Budget {
		return nil, false, fmt.Errorf("ramdisk %s takes %d bytes, %d more than its budget: remove modules from initramfs/flavor or make the agent smaller (table above)",
			m.Flavor, m.Bytes, m.Bytes-m.Budget)
	}
	vmlinuz, err := os.ReadFile(tree.Vmlinuz)
	if err != nil {
		return nil, false, fmt.Errorf("read the kernel: %w", err)
	}
	m.Kernel = hexSum(vmlinuz)
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, false, fmt.Errorf("write the build's manifest: %w", err)
	}
	// The manifest goes last: a build that was cut short is done again.
	for _, out := range []struct {
		name string
		data []byte
	}{{KernelFile, vmlinuz}, {RamdiskFile, image}, {ManifestFile, append(text, '\n')}} {
		if err := replace(filepath.Join(dir, out.name), out.data); err != nil {
			return nil, false, err
		}
	}
	return m, true, nil
}

// assemble makes the ramdisk in memory.
func (in Inputs) assemble(tree *kernel.Tree) (*Manifest, []byte, error) {
	if err := tree.Require("CONFIG_BLK_DEV_INITRD", "CONFIG_RD_ZSTD", "CONFIG_DEVTMPFS", "CONFIG_TMPFS"); err != nil {
		return nil, nil, err
	}
	all, err := modules.Tree(tree.Modules)
	if err != nil {
		return nil, nil, err
	}
	builtin, err := modules.Builtin(tree.Modules)
	if err != nil {
		return nil, nil, err
	}
	sel, err := modules.Select(all, builtin, in.Flavor.Patterns)
	if err != nil {
		return nil, nil, fmt.Errorf("choose modules for the %s ramdisk from kernel %s: %w", in.Flavor.Name, tree.Release, err)
	}
	initBin, err := os.ReadFile(in.Init)
	if err != nil {
		return nil, nil, fmt.Errorf("read the init program: %w", err)
	}
	agent, err := os.ReadFile(in.Agent)
	if err != nil {
		return nil, nil, fmt.Errorf("read the agent: %w", err)
	}
	files := []File{
		{Path: "init", Mode: 0o755, Data: initBin, Part: "init"},
		{Path: "sbin/modprobe", Target: "/init", Part: "init"}, // for the kernel's own requests
		{Path: "bin/sh", Target: "/init", Part: "init"},
		{Path: "bin/slipway-agent", Mode: 0o755, Data: agent, Part: "agent"},
	}
	base := "lib/modules/" + tree.Release + "/"
	m := &Manifest{
		Flavor: in.Flavor.Name, Release: tree.Release, Package: in.Kernel.Name, Version: in.Kernel.Version,
		Budget: in.Flavor.Budget, BuiltIn: sel.BuiltIn, Firmware: sel.Firmware(),
	}
	for _, mod := range sel.Modules {
		files = append(files, File{Path: base + mod.Path, Mode: 0o644, Data: mod.Image, Part: partOf(mod.Path)})
		m.Modules = append(m.Modules, mod.Name)
	}
	// In this order: a part's compressed size depends on it.
	for _, index := range []struct {
		name string
		data []byte
	}{
		{"modules.dep", sel.DepFile()}, {"modules.alias", sel.AliasFile()}, {"modules.softdep", sel.SoftdepFile(in.Flavor.Softdeps)},
	} {
		files = append(files, File{Path: base + index.name, Mode: 0o644, Data: index.data, Part: "module index"})
	}
	archive, err := Archive(files, Devices()...)
	if err != nil {
		return nil, nil, err
	}
	image, err := Compress(archive)
	if err != nil {
		return nil, nil, err
	}
	if m.Parts, err = Parts(files); err != nil {
		return nil, nil, err
	}
	m.Unpacked, m.Bytes, m.SHA256 = int64(len(archive)), int64(len(image)), hexSum(image)
	return m, image, nil
}

// partOf groups modules by the directory that tells most about them.
func partOf(modulePath string) string {
	dir := strings.TrimPrefix(path.Dir(modulePath), "kernel/")
	if vendor, ok := strings.CutPrefix(dir, "drivers/net/ethernet/"); ok {
		vendor, _, _ = strings.Cut(vendor, "/")
		return "net/ethernet/" + vendor
	}
	words := strings.Split(strings.TrimPrefix(dir, "drivers/"), "/")
	return words[0]
}

// stamp is a digest over all that the bytes of the result depend on.
func (in Inputs) stamp() (string, error) {
	h := sha256.New()
	list, err := json.Marshal(in.Flavor)
	if err != nil {
		return "", fmt.Errorf("stamp the build: %w", err)
	}
	fmt.Fprintf(h, "%d\n%s\n%s\n", format, list, in.Kernel.SHA256)
	for _, file := range []string{in.Init, in.Agent} {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("stamp the build: %w", err)
		}
		fmt.Fprintln(h, hexSum(data))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// current returns the manifest in dir if it carries the stamp and what it
// describes is there.
func current(dir, stamp string) *Manifest {
	text, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		return nil
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil || m.Stamp != stamp {
		return nil
	}
	for file, want := range map[string]string{RamdiskFile: m.SHA256, KernelFile: m.Kernel} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || hexSum(data) != want {
			return nil
		}
	}
	return &m
}

// replace writes a file so that a reader sees the old or the new one, never half.
func replace(file string, data []byte) error {
	tmp := file + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
