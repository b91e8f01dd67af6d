// Command init is PID 1 of Slipway's ramdisk. It mounts what programs expect,
// loads the modules the hardware asks for, keeps the agent running, reaps what
// dies, and says on every console what it does. Under other names it is the
// modprobe that the kernel calls (/sbin/modprobe) and the debug shell (/bin/sh).
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/u-root/u-root/pkg/cmdline"
	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/interp"

	"github.com/slipway-metal/slipway/initramfs/init/console"
	"github.com/slipway-metal/slipway/initramfs/init/shell"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "modprobe":
		if err := modprobe(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
		return
	case "sh":
		os.Exit(runShell())
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this program is PID 1 of a ramdisk; it does nothing elsewhere")
		os.Exit(2)
	}
	// PID 1 must not end, or the kernel panics and its reason scrolls away.
	reason := live()
	fmt.Fprintf(os.Stderr, "slipway: init cannot go on: %v\nslipway: the machine is left as it is; power it off or reset it\n", reason)
	for {
		time.Sleep(time.Hour)
	}
}

// runShell runs the debug shell and returns its exit status.
func runShell() int {
	err := shell.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err == nil {
		return 0
	}
	if status, ok := interp.IsExitStatus(err); ok {
		return int(status)
	}
	fmt.Fprintln(os.Stderr, "sh:", err)
	return 2
}

// live is the life of PID 1; it returns, or its panic ends it, with the reason why not.
func live() (reason any) {
	defer func() {
		if p := recover(); p != nil {
			reason = p
		}
	}()
	if err := mountAll(); err != nil {
		return err
	}
	m := &machine{
		log:  console.New(bootTime(), console.Active("/sys")...),
		args: cmdline.NewCmdLine(),
	}
	return m.run()
}

// bootTime is when the kernel started.
func bootTime() time.Time {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Now() // progress lines then count from here
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}
