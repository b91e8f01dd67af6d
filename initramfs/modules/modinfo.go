// Package modules selects Linux kernel modules for a ramdisk. It reads what
// modules say of themselves (their .modinfo section, as depmod and modinfo do),
// closes a selection over dependencies, and writes the index files that PID 1
// loads them by. It runs on the build machine and needs no kmod there.
package modules

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Module is one kernel module file of a kernel package.
type Module struct {
	// Name is the module's name with underscores, as the kernel spells it.
	Name string
	// Path is relative to the kernel's directory ("kernel/drivers/…/x.ko"),
	// without the suffix of a compression.
	Path string
	// File is where the module lies on the build machine; it may end in .xz or .zst.
	File string
}

// Info is what a module's .modinfo section says.
type Info struct {
	Depends  []string // names, underscores
	Aliases  []string // patterns over modaliases, fnmatch(3)'s
	SoftPre  []string // to be loaded before, when there
	SoftPost []string // to be loaded after, when there
	Firmware []string // files under /lib/firmware that it may ask for
}

// Canonical spells a module's name the kernel's way.
func Canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Tree lists all modules under dir, which is /lib/modules/RELEASE of an
// unpacked kernel package, by name.
func Tree(dir string) (map[string]Module, error) {
	found := make(map[string]Module)
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(file string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		rel = strings.TrimSuffix(strings.TrimSuffix(filepath.ToSlash(rel), ".xz"), ".zst")
		base, isModule := strings.CutSuffix(filepath.Base(rel), ".ko")
		if !isModule {
			return nil
		}
		m := Module{Name: Canonical(base), Path: rel, File: file}
		if other, twice := found[m.Name]; twice {
			return fmt.Errorf("module %s is there twice: %s and %s", m.Name, other.Path, m.Path)
		}
		found[m.Name] = m
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list kernel modules of %s: %w", dir, err)
	}
	return found, nil
}

// Builtin lists the names of the modules that the kernel has built in
// (modules.builtin, part of every kernel package).
func Builtin(dir string) (map[string]bool, error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read the kernel's list of built-in modules: %w", err)
	}
	names := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		base := filepath.Base(strings.TrimSpace(line))
		names[Canonical(strings.TrimSuffix(base, ".ko"))] = true
	}
	return names, nil
}

// Read returns the module's bytes, uncompressed. A signature appended to the
// file stays on it: a kernel locked down by Secure Boot asks for it.
func (m Module) Read() ([]byte, error) {
	raw, err := os.ReadFile(m.File)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", m.Name, err)
	}
	var r io.Reader
	switch filepath.Ext(m.File) {
	case ".ko":
		return raw, nil
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(raw))
	case ".zst":
		r, err = zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1))
	default:
		err = errors.New("unknown compression (known: .ko, .ko.xz, .ko.zst)")
	}
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", m.File, err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("decompress module %s: %w", m.File, err)
	}
	return data, nil
}

// ParseInfo reads the .modinfo section of a module's ELF image.
func ParseInfo(image []byte) (Info, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return Info{}, fmt.Errorf("parse module: %w", err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return Info{}, errors.New("parse module: it has no .modinfo section, so it is no kernel module")
	}
	data, err := section.Data()
	if err != nil {
		return Info{}, fmt.Errorf("parse module: read .modinfo: %w", err)
	}
	return parseModinfo(data), nil
}

// parseModinfo splits the section's NUL-terminated key=value pairs
// (include/linux/moduleparam.h, __MODULE_INFO).
func parseModinfo(data []byte) Info {
	var info Info
	for pair := range strings.SplitSeq(string(data), "\x00") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			continue
		}
		switch key {
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					info.Depends = append(info.Depends, Canonical(name))
				}
			}
		case "alias":
			info.Aliases = append(info.Aliases, value)
		case "firmware":
			info.Firmware = append(info.Firmware, value)
		case "softdep":
			pre, post := parseSoftdep(value)
			info.SoftPre = append(info.SoftPre, pre...)
			info.SoftPost = append(info.SoftPost, post...)
		}
	}
	return info
}

// parseSoftdep reads "pre: a b post: c" (modprobe.d(5)).
func parseSoftdep(value string) (pre, post []string) {
	into := &pre
	for word := range strings.FieldsSeq(value) {
		switch word {
		case "pre:":
			into = &pre
		case "post:":
			into = &post
		default:
			*into = append(*into, Canonical(word))
		}
	}
	return pre, post
}
