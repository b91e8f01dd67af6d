// Package osimage builds the operating systems that a lab deploys: small, real
// Debian systems on whole-disk images that boot by BIOS and by UEFI from
// virtio, NVMe and SATA disks.
//
// Nothing is mounted and no loop device is used, so that it works in
// containers: the root filesystem is made by mke2fs from a directory, the EFI
// system partition by mtools, and GRUB is put in place by writing its sectors.
// Without root, mmdebstrap's user namespace stands in for it.
//
// An image's first boot reads the config drive (the partition or disk labelled
// config-2), makes an ed25519 host key, and says on the first serial port
//
//	slipway-guest: address 10.77.0.50
//	slipway-guest: ready
//
// when sshd listens and the network has an address.
package osimage

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
)

// Recipe says what one image is made of.
type Recipe struct {
	Name     string
	Suite    string
	Packages []string // beside those that mmdebstrap's variant minbase has
	Kernel   string   // the kernel's package
	// Bytes is the whole disk's size. It is a whole number of MiB.
	Bytes int64
	// Mask are units that only cost time in a machine which is thrown away.
	Mask []string
	// Cmdline is the kernel's, beside root=.
	Cmdline string
}

const mib = 1 << 20

// base is in every image.
var base = []string{
	"systemd", "systemd-sysv", "udev", "dbus", "kmod", "initramfs-tools", "zstd",
	"iproute2", "openssh-server", "sudo",
}

// masked are units and generators that cost seconds without KVM and do nothing
// for a machine that is thrown away.
var masked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
	"e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "serial-getty@ttyS0.service", "getty.target",
	"systemd-pstore.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
	"systemd-journal-flush.service", "dev-hugepages.mount", "dev-mqueue.mount",
	"sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount",
	"systemd-binfmt.service", "systemd-networkd-wait-online.service", "proc-sys-fs-binfmt_misc.automount",
	"modprobe@.service", "systemd-modules-load.service", "kmod-static-nodes.service",
	"systemd-machine-id-commit.service", "systemd-random-seed.service", "systemd-sysusers.service",
	"systemd-ask-password-console.path", "systemd-ask-password-wall.path",
	"systemd-bless-boot-generator", "systemd-cryptsetup-generator", "systemd-debug-generator",
	"systemd-getty-generator", "systemd-gpt-auto-generator", "systemd-hibernate-resume-generator",
	"systemd-integritysetup-generator", "systemd-rc-local-generator", "systemd-run-generator",
	"systemd-system-update-generator", "systemd-sysv-generator", "systemd-veritysetup-generator",
}

// cmdline mounts the root filesystem writable at once and leaves out what only
// slows a guest down.
const cmdline = "rw rootfstype=ext4 console=ttyS0,115200 quiet fsck.mode=skip net.ifnames=0 " +
	"mitigations=off audit=0 apparmor=0 selinux=0 nowatchdog systemd.show_status=false"

// Recipes are the images that can be built.
var Recipes = []Recipe{
	{
		Name: "quick", Suite: "bookworm", Packages: base, Kernel: "linux-image-amd64",
		Bytes: 1024 * mib, Mask: masked,
		Cmdline: cmdline,
	},
	{
		Name: "cloud-init", Suite: "bookworm", Packages: append(slices.Clone(base), "cloud-init"), Kernel: "linux-image-amd64",
		Bytes: 1280 * mib, Mask: masked,
		Cmdline: cmdline,
	},
}

// Find returns the recipe of that name.
func Find(name string) (Recipe, error) {
	names := make([]string, len(Recipes))
	for i, r := range Recipes {
		if r.Name == name {
			return r, nil
		}
		names[i] = r.Name
	}
	return Recipe{}, fmt.Errorf("there is no image %q: use one of %v", name, names)
}

// files are what an image gets beside Debian's packages, and the scripts that
// put it together.
//
//go:embed all:overlay script
var files embed.FS

// treeKey names the packages' tree: what mmdebstrap is asked for.
func (r Recipe) treeKey() (string, error) {
	return key(struct {
		Suite, Kernel string
		Packages      []string
	}{r.Suite, r.Kernel, r.Packages}, "script/tree.sh")
}

// key hashes a description and the named embedded files.
func key(description any, names ...string) (string, error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(description); err != nil {
		return "", err
	}
	for _, name := range names {
		err := fs.WalkDir(files, name, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := files.ReadFile(path)
			if err != nil {
				return err
			}
			// A hash never fails to write.
			_, _ = fmt.Fprintf(h, "%s %d\n", path, len(data))
			_, _ = h.Write(data)
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("hash %s: %w", name, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}
