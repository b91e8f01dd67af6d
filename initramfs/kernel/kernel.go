// Package kernel fetches Debian's kernel packages and unpacks them. It trusts
// what apt trusts: apt-get download checks a package against the signed index,
// and a package from the cache is checked against the index's SHA-256 again.
package kernel

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Package is one kernel package, in the cache and verified.
type Package struct {
	Name    string // linux-image-6.1.0-56-cloud-amd64
	Version string // 6.1.192-2
	SHA256  string // lower-case hex, of the .deb
	File    string // the .deb
}

// Fetch resolves a meta package (linux-image-amd64) to the kernel that it
// depends on and makes sure that its .deb lies in cacheDir.
func Fetch(ctx context.Context, meta, cacheDir string) (*Package, error) {
	fields, err := show(ctx, meta)
	if err != nil {
		return nil, err
	}
	name := imageDependency(fields["Depends"])
	if name == "" {
		return nil, fmt.Errorf("package %s depends on no linux-image-… package (Depends: %q)", meta, fields["Depends"])
	}
	if fields, err = show(ctx, name); err != nil {
		return nil, err
	}
	pkg := &Package{Name: name, Version: fields["Version"], SHA256: fields["SHA256"]}
	if pkg.Version == "" || pkg.SHA256 == "" {
		return nil, fmt.Errorf("apt's index has no version or SHA-256 for %s: run `apt-get update`", name)
	}
	pkg.File = filepath.Join(cacheDir, "deb", pkg.SHA256+".deb")
	if err := check(pkg.File, pkg.SHA256); err == nil {
		return pkg, nil
	}
	if err := download(ctx, pkg); err != nil {
		return nil, err
	}
	return pkg, nil
}

// Local takes a .deb that is already there; its digest is recorded, not checked.
func Local(ctx context.Context, file string) (*Package, error) {
	out, err := run(ctx, "", "dpkg-deb", "--show", "--showformat=${Package} ${Version}", file)
	if err != nil {
		return nil, fmt.Errorf("read kernel package %s: %w", file, err)
	}
	name, version, _ := strings.Cut(string(out), " ")
	sum, err := digest(file)
	if err != nil {
		return nil, fmt.Errorf("read kernel package %s: %w", file, err)
	}
	return &Package{Name: name, Version: version, SHA256: sum, File: file}, nil
}

// Tree is an unpacked kernel package.
type Tree struct {
	Release string // "6.1.0-56-cloud-amd64", as uname -r says
	Vmlinuz string // file
	Config  string // file
	Modules string // directory /lib/modules/RELEASE, or its like under /usr
}

// Unpack unpacks the package into dir.
func (p *Package) Unpack(ctx context.Context, dir string) (*Tree, error) {
	if _, err := run(ctx, "", "dpkg-deb", "-x", p.File, dir); err != nil {
		return nil, fmt.Errorf("unpack kernel package %s: %w", p.Name, err)
	}
	kernels, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return nil, fmt.Errorf("kernel package %s has %d files boot/vmlinuz-*, expected one", p.Name, len(kernels))
	}
	t := &Tree{Vmlinuz: kernels[0], Release: strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")}
	t.Config = filepath.Join(dir, "boot", "config-"+t.Release)
	for _, lib := range []string{"lib", "usr/lib"} { // usr/lib from Debian 13 on
		t.Modules = filepath.Join(dir, lib, "modules", t.Release)
		if _, err := os.Stat(t.Modules); err == nil {
			return t, nil
		}
	}
	return nil, fmt.Errorf("kernel package %s has no modules for its kernel %s", p.Name, t.Release)
}

// Require fails unless the kernel's configuration sets each option to y.
func (t *Tree) Require(options ...string) error {
	config, err := os.ReadFile(t.Config)
	if err != nil {
		return fmt.Errorf("read the kernel's configuration: %w", err)
	}
	var missing []string
	for _, o := range options {
		if !strings.Contains("\n"+string(config), "\n"+o+"=y\n") {
			missing = append(missing, o)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("kernel %s cannot run the ramdisk: it lacks %s", t.Release, strings.Join(missing, ", "))
	}
	return nil
}

// imageDependency finds the kernel's package in a Depends field.
func imageDependency(depends string) string {
	for dep := range strings.SplitSeq(depends, ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(dep), " ")
		if strings.HasPrefix(name, "linux-image-") {
			return name
		}
	}
	return ""
}

// show returns the fields of a package's candidate version in apt's index.
func show(ctx context.Context, name string) (map[string]string, error) {
	out, err := run(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return nil, fmt.Errorf("look up package %s in apt's index (Debian's main archive must be among apt's sources; run `apt-get update`): %w", name, err)
	}
	fields := make(map[string]string)
	lines := bufio.NewScanner(strings.NewReader(string(out)))
	for lines.Scan() {
		if lines.Text() == "" {
			break // the next stanza is another version
		}
		if key, value, ok := strings.Cut(lines.Text(), ": "); ok && !strings.HasPrefix(key, " ") {
			fields[key] = value
		}
	}
	return fields, lines.Err()
}

// download gets the package by apt into a directory of its own next to its
// place in the cache, then moves it there.
func download(ctx context.Context, pkg *Package) error {
	if err := os.MkdirAll(filepath.Dir(pkg.File), 0o755); err != nil {
		return fmt.Errorf("make the cache for kernel packages: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(pkg.File), ".download-")
	if err != nil {
		return fmt.Errorf("make the cache for kernel packages: %w", err)
	}
	defer os.RemoveAll(tmp)
	if _, err := run(ctx, tmp, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", pkg.Name+"="+pkg.Version); err != nil {
		return fmt.Errorf("download kernel package %s %s: %w", pkg.Name, pkg.Version, err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("download kernel package %s: apt-get left %d .deb files, expected one", pkg.Name, len(debs))
	}
	if err := check(debs[0], pkg.SHA256); err != nil {
		return fmt.Errorf("download kernel package %s: %w", pkg.Name, err)
	}
	if err := os.Rename(debs[0], pkg.File); err != nil {
		return fmt.Errorf("keep kernel package %s: %w", pkg.Name, err)
	}
	return nil
}

func check(file, want string) error {
	got, err := digest(file)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s has SHA-256 %s, apt's index says %s", file, got, want)
	}
	return nil
}

func digest(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// run runs a program and returns its output; its complaints go into the error.
func run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}
