package main

import (
	"errors"
	"fmt"

	"github.com/u-root/u-root/pkg/libinit"
	"golang.org/x/sys/unix"
)

const (
	noExec  = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	noDevs  = unix.MS_NOSUID | unix.MS_NODEV
	efiVars = "/sys/firmware/efi/efivars"
)

// mountAll mounts what a program may take for granted. The directories are in
// the archive, but for those inside other mounts.
func mountAll() error {
	unix.Umask(0o022)
	var errs []error
	for _, c := range []libinit.Creator{
		libinit.Mount{Source: "proc", Target: "/proc", FSType: "proc", Flags: noExec},
		libinit.Mount{Source: "sysfs", Target: "/sys", FSType: "sysfs", Flags: noExec},
		libinit.Mount{Source: "devtmpfs", Target: "/dev", FSType: "devtmpfs", Flags: unix.MS_NOSUID, Opts: "mode=0755"},
		libinit.Dir{Name: "/dev/pts", Mode: 0o755},
		libinit.Mount{Source: "devpts", Target: "/dev/pts", FSType: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Opts: "ptmxmode=666,mode=620"},
		libinit.Dir{Name: "/dev/shm", Mode: 0o1777},
		libinit.Mount{Source: "tmpfs", Target: "/run", FSType: "tmpfs", Flags: noDevs, Opts: "mode=0755,size=25%"},
		libinit.Mount{Source: "tmpfs", Target: "/tmp", FSType: "tmpfs", Flags: noDevs, Opts: "mode=1777,size=25%"},
		libinit.Symlink{NewPath: "/dev/fd", Target: "/proc/self/fd"},
		libinit.Dir{Name: "/run/slipway", Mode: 0o755},
	} {
		if err := c.Create(); err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: the kernel has mounted it
			errs = append(errs, fmt.Errorf("set up the ramdisk: %v: %w", c, err))
		}
	}
	return errors.Join(errs...)
}

// mountEFIVars makes the firmware's variables writable by the agent, on a
// machine that booted by UEFI. The file system is a module.
func (m *machine) mountEFIVars() {
	if !exists("/sys/firmware/efi") {
		m.log.Printf("firmware: BIOS")
		return
	}
	m.log.Printf("firmware: UEFI")
	m.loader.Load("efivarfs", "UEFI")
	mount := libinit.Mount{Source: "efivarfs", Target: efiVars, FSType: "efivarfs", Flags: noExec}
	if err := mount.Create(); err != nil && !errors.Is(err, unix.EBUSY) {
		m.log.Printf("no boot entry can be made: %v: %v", mount, err)
	}
}
