package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"

	"github.com/mattn/go-isatty"
	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/testenv/lab"
)

type consoleCmd struct {
	Machine string `arg:"" help:"Name of the machine."`
	Follow  bool   `short:"f" help:"Go on with what it says from now on."`
	Attach  bool   `short:"a" help:"Type on the serial port too; Ctrl-] leaves."`
}

func (c *consoleCmd) Run(a *app) error {
	l, err := a.open()
	if err != nil {
		return err
	}
	m := l.Machine(c.Machine)
	st, err := m.Status(a.ctx)
	if err != nil {
		return err
	}
	switch {
	case c.Attach && !st.On:
		return &lab.Error{What: "attach to the console of " + c.Machine, Why: "the machine is off", Next: "slipway-lab power " + c.Machine + " on"}
	case c.Attach:
		return attach(m)
	case c.Follow:
		return m.FollowConsole(a.ctx, os.Stdout)
	}
	said, err := m.Console()
	if err != nil {
		return err
	}
	_, err = io.WriteString(os.Stdout, said)
	return err
}

// leaveKey is Ctrl-], as telnet's.
const leaveKey = 0x1d

var errLeft = errors.New("left the console")

// attach joins the terminal and the serial port until either ends.
func attach(m *lab.Handle) error {
	conn, err := m.DialConsole()
	if err != nil {
		return fmt.Errorf("attach to the console: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if isatty.IsTerminal(os.Stdin.Fd()) {
		restore, err := rawTerminal(int(os.Stdin.Fd()))
		if err != nil {
			return err
		}
		defer restore()
		fmt.Print("Attached; Ctrl-] leaves.\r\n")
	}
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(os.Stdout, conn)
		ended <- err
	}()
	go func() { ended <- keys(conn) }()
	if err := <-ended; err != nil && !errors.Is(err, errLeft) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("the console ended: %w", err)
	}
	return nil
}

// keys sends what is typed until the leave key.
func keys(conn net.Conn) error {
	buf := make([]byte, 256)
	for {
		n, err := os.Stdin.Read(buf)
		for i, b := range buf[:n] {
			if b == leaveKey {
				_, werr := conn.Write(buf[:i])
				return errors.Join(errLeft, werr)
			}
		}
		if _, werr := conn.Write(buf[:n]); werr != nil {
			return werr
		}
		if err != nil {
			return errLeft // standard input is at its end
		}
	}
}

// rawTerminal hands every key through and returns how to undo it (cfmakeraw,
// termios(3)).
func rawTerminal(fd int) (restore func(), err error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read the terminal's settings: %w", err)
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag &^= unix.CSIZE | unix.PARENB
	raw.Cflag |= unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("set the terminal to raw: %w", err)
	}
	return func() {
		if unix.IoctlSetTermios(fd, unix.TCSETS, old) != nil {
			_ = exec.Command("stty", "sane").Run()
		}
	}, nil
}
