package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/initramfs/init/devices"
)

// stopping is how long the agent has to end before the machine goes down.
const stopping = 5 * time.Second

// obey waits for a request to go down and carries it out: by signal, as
// busybox's and u-root's poweroff and reboot send it (SIGTERM and the kernel's
// Ctrl-Alt-Del reboot, SIGUSR1 halts, SIGUSR2 powers off), or by the power
// button. A program that calls
// reboot(2) itself needs nobody's help.
func (m *machine) obey(ctx context.Context) error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil { // Ctrl-Alt-Del is to be a SIGINT
		m.log.Printf("Ctrl-Alt-Del will reset the machine at once: %v", err)
	}
	requests := make(chan os.Signal, 4)
	signal.Notify(requests, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2)
	m.guard("power button", func() {
		if err := devices.PowerButton(func() { requests <- syscall.SIGUSR2 }); err != nil {
			m.log.Printf("the power button, and a BMC's soft power-off, will not work: %v", err)
		}
	})
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case s := <-requests:
			command, name := unix.LINUX_REBOOT_CMD_RESTART, "reboot"
			switch s {
			case syscall.SIGUSR1:
				command, name = unix.LINUX_REBOOT_CMD_HALT, "halt"
			case syscall.SIGUSR2:
				command, name = unix.LINUX_REBOOT_CMD_POWER_OFF, "power off"
			}
			m.goDown(command, name)
		}
	}
}

// goDown ends the agent, writes what is unwritten and calls the kernel.
func (m *machine) goDown(command int, name string) {
	m.log.Printf("%s requested", name)
	if err := m.agent.Signal(syscall.SIGTERM); err != nil {
		m.log.Printf("%v", err)
	}
	m.agent.WaitGone(stopping)
	unix.Sync()
	m.log.Printf("%s", name)
	m.log.Flush(time.Second)
	if err := unix.Reboot(command); err != nil {
		m.log.Printf("%s: %v", name, err)
	}
}
