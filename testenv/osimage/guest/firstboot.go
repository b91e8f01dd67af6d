package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// metadata is the part of OpenStack's meta_data.json that is used.
type metadata struct {
	UUID       string            `json:"uuid"`
	Hostname   string            `json:"hostname"`
	Name       string            `json:"name"`
	PublicKeys map[string]string `json:"public_keys"`
}

// instanceFile remembers whose config drive was applied.
const instanceFile = "var/lib/slipway/instance"

// firstBoot applies the config drive to the system at root, once an instance,
// and makes the SSH host key if there is none.
func firstBoot(root string) error {
	return errors.Join(applyDrive(root), makeHostKey(filepath.Join(root, "etc/ssh/ssh_host_ed25519_key")))
}

func applyDrive(root string) error {
	device, err := findDrive(filepath.Join(root, "sys/class/block"), filepath.Join(root, "dev"))
	if err != nil {
		return err
	}
	if device == "" {
		say("no config drive")
		return nil
	}
	dir := filepath.Join(root, "run/slipway-config")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := mount(device, dir); err != nil {
		return fmt.Errorf("mount the config drive %s: %w", device, err)
	}
	err = apply(root, filepath.Join(dir, "openstack/latest"))
	if uerr := syscall.Unmount(dir, 0); uerr != nil {
		err = errors.Join(err, fmt.Errorf("unmount the config drive: %w", uerr))
	}
	return err
}

func mount(device, dir string) error {
	var err error
	for _, kind := range []string{"iso9660", "vfat"} {
		if err = syscall.Mount(device, dir, kind, syscall.MS_RDONLY, ""); err == nil {
			return nil
		}
	}
	return err
}

// label is what a config drive's filesystem is called (OpenStack's rule).
const label = "config-2"

// findDrive looks for a block device with an ISO 9660 (volume identifier at
// byte 32808, ECMA-119 8.4) or a FAT (volume label at byte 43 or 71) of that
// label, without waiting for udev to have looked at all of them.
func findDrive(class, dev string) (string, error) {
	names, err := os.ReadDir(class)
	if err != nil {
		return "", err
	}
	for _, entry := range names {
		f, err := os.Open(filepath.Join(dev, entry.Name()))
		if err != nil {
			continue // a drive without a medium
		}
		found := labelled(f)
		_ = f.Close()
		if found {
			return filepath.Join(dev, entry.Name()), nil
		}
	}
	return "", nil
}

func labelled(f *os.File) bool {
	for _, at := range []int64{32768 + 40, 43, 71} {
		buf := make([]byte, 11)
		if _, err := f.ReadAt(buf, at); err == nil && strings.EqualFold(strings.TrimRight(string(buf), " \x00"), label) {
			return true
		}
	}
	return false
}

// apply puts what the drive says into place.
func apply(root, drive string) error {
	var meta metadata
	if err := readJSON(filepath.Join(drive, "meta_data.json"), &meta); err != nil {
		return fmt.Errorf("config drive: %w", err)
	}
	mark := filepath.Join(root, instanceFile)
	if old, err := os.ReadFile(mark); err == nil && string(old) == meta.UUID {
		return nil
	}
	if err := setHostname(root, meta); err != nil {
		return err
	}
	if err := setKeys(root, meta.PublicKeys); err != nil {
		return err
	}
	var network networkData
	err := readJSON(filepath.Join(drive, "network_data.json"), &network)
	if err == nil {
		err = setNetwork(root, network)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("config drive: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(mark), 0o755); err != nil {
		return err
	}
	return os.WriteFile(mark, []byte(meta.UUID), 0o644)
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return nil
}

func setHostname(root string, meta metadata) error {
	name := meta.Hostname
	if name == "" {
		name = meta.Name
	}
	name, _, _ = strings.Cut(name, ".")
	if name == "" || strings.ContainsAny(name, "/\n\x00 ") || len(name) > 63 {
		return nil
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte(name+"\n"), 0o644); err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n127.0.1.1 " + name + "\n::1 localhost ip6-localhost\n"
	if err := os.WriteFile(filepath.Join(root, "etc/hosts"), []byte(hosts), 0o644); err != nil {
		return err
	}
	if root != "/" {
		return nil
	}
	return syscall.Sethostname([]byte(name))
}

// setKeys lets the keys log in as root and as debian.
func setKeys(root string, keys map[string]string) error {
	var all bytes.Buffer
	names := make([]string, 0, len(keys))
	for name := range keys {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		all.WriteString(strings.TrimSpace(keys[name]) + "\n")
	}
	if all.Len() == 0 {
		return nil
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		return err
	}
	for _, user := range []string{"root", "debian"} {
		uid, gid, home, ok := account(string(passwd), user)
		if !ok {
			continue
		}
		dir := filepath.Join(root, home, ".ssh")
		file := filepath.Join(dir, "authorized_keys")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(file, all.Bytes(), 0o600); err != nil {
			return err
		}
		if err := errors.Join(os.Chown(dir, uid, gid), os.Chown(file, uid, gid)); err != nil {
			return err
		}
	}
	return nil
}

// account finds a user's line in passwd(5).
func account(passwd, user string) (uid, gid int, home string, ok bool) {
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 7 || f[0] != user {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		return uid, gid, f[5], err1 == nil && err2 == nil
	}
	return 0, 0, "", false
}
