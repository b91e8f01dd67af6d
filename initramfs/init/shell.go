package main

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/slipway-metal/slipway/initramfs/init/proc"
)

// shellFlag on the kernel's command line asks for a debug shell on the console:
// "slipway.shell", or "slipway.shell=ttyS1" for another one. Whoever can set
// the command line owns the machine anyway.
const shellFlag = "slipway.shell"

// shellOnRequest keeps a shell on the console when the command line asks for it.
func (m *machine) shellOnRequest() {
	if !m.args.ContainsFlag(shellFlag) {
		return
	}
	device := "/dev/console"
	if name, ok := m.args.Flag(shellFlag); ok && name != "1" && name != "" {
		device = "/dev/" + name
	}
	for {
		if err := m.shell(device); err != nil {
			m.log.Printf("debug shell: %v", err)
		}
		time.Sleep(time.Second) // a console that fails must not make this spin
	}
}

// shell runs one shell to its end, with the console as its controlling terminal.
func (m *machine) shell(device string) error {
	tty, err := os.OpenFile(device, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open the console: %w", err)
	}
	defer tty.Close()
	fd := tty.Fd()
	m.log.Printf("debug shell on %s; type help", device)
	_, done, err := m.reaper.Start([]string{"/bin/sh"}, &syscall.ProcAttr{
		Dir: "/root", Env: environment, Files: []uintptr{fd, fd, fd},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	})
	if err != nil {
		return err
	}
	m.log.Printf("debug shell ended (%s)", proc.Reason(<-done))
	return nil
}
