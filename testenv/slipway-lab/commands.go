package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/slipway-metal/slipway/testenv/lab"
)

type upCmd struct {
	File       string   `arg:"" help:"Lab file." type:"existingfile"`
	Foreground bool     `help:"Stay, and end the lab with Ctrl-C or when this process ends."`
	Fresh      bool     `help:"Throw away the machines' disks of an earlier run."`
	Forward    []string `help:"Lead an address of the host into the lab, e.g. 127.0.0.1:6385=10.77.0.1:6385." placeholder:"HOST:PORT=INSIDE:PORT"`
}

func (c *upCmd) Run(a *app) error {
	spec, err := lab.Load(c.File)
	if err != nil {
		return err
	}
	opts := lab.Options{Dir: a.dir(), Detach: !c.Foreground, Fresh: c.Fresh}
	if opts.Dir == "" {
		opts.Dir = filepath.Join(a.home, spec.Name)
	}
	for _, text := range c.Forward {
		f, err := lab.ParseForward(text)
		if err != nil {
			return &lab.Error{What: "read --forward", Why: err.Error(), Next: "slipway-lab up --help"}
		}
		opts.Forwards = append(opts.Forwards, f)
	}
	l, err := lab.Start(a.ctx, spec, opts)
	if err != nil {
		return err
	}
	info, err := l.Info(a.ctx)
	if err != nil {
		return err
	}
	fmt.Printf("The lab %s is up (files in %s).\n\n", info.Name, info.Dir)
	if err := table(os.Stdout, info); err != nil {
		return err
	}
	for _, f := range info.Forwards {
		fmt.Printf("\n%s on this host leads to %s in the lab.\n", f.Listen, f.To)
	}
	if c.Foreground {
		fmt.Print("\nCtrl-C ends it.\n")
		select {
		case <-a.ctx.Done():
		case <-l.Ended():
			return &lab.Error{What: "run the lab " + info.Name, Why: "it has ended by itself or by `slipway-lab down`", Next: "read " + filepath.Join(info.Dir, "supervisor.log")}
		}
		return l.Close()
	}
	first := info.Machines[0].Name
	fmt.Printf("\nNext:  slipway-lab exec -- COMMAND      run a conductor inside the lab's network\n"+
		"       slipway-lab power %s on      start a machine\n"+
		"       slipway-lab console %s -f    see what it says\n"+
		"       slipway-lab down                 end it all\n", first, first)
	return nil
}

type downCmd struct {
	Name string `arg:"" optional:"" help:"Name of the lab; not needed when one is running."`
	Keep bool   `help:"Keep disks, logs and the SSH key for the next up." default:"true" negatable:""`
}

func (c *downCmd) Run(a *app) error {
	if c.Name != "" {
		a.lab = c.Name
	}
	l, err := a.open()
	if err != nil {
		return err
	}
	if err := l.Down(a.ctx, !c.Keep); err != nil {
		return err
	}
	fmt.Printf("The lab %s is down.\n", l.Spec().Name)
	return nil
}

type listCmd struct{}

func (c *listCmd) Run(a *app) error {
	dirs := []string{a.dir()}
	if dirs[0] == "" {
		var err error
		if dirs, err = lab.Find(a.home); err != nil {
			return err
		}
	}
	for i, dir := range dirs {
		l, err := lab.Open(dir)
		if err != nil {
			return err
		}
		info, err := l.Info(a.ctx)
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Println()
		}
		fmt.Printf("%s (process %d, files in %s)\n", info.Name, info.PID, info.Dir)
		if err := table(os.Stdout, info); err != nil {
			return err
		}
	}
	if len(dirs) == 0 {
		fmt.Println("No lab is running. Start one: slipway-lab up testenv/labs/demo.yaml")
	}
	return nil
}

func table(w io.Writer, info lab.Info) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows := [][]string{{"MACHINE", "POWER", "FIRMWARE", "REDFISH", "MAC", "NEXT BOOT", "ADDRESS"}}
	for _, m := range info.Machines {
		power := "off"
		if m.On {
			power = "on"
		}
		rows = append(rows, []string{m.Name, power, m.Firmware, m.Redfish, strings.Join(m.MACs, ","), orDash(m.NextBoot), orDash(m.Address)})
	}
	for _, row := range rows {
		if _, err := fmt.Fprintln(t, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type powerCmd struct {
	Machine string `arg:"" help:"Name of the machine."`
	Action  string `arg:"" enum:"on,off,soft,reset,status" help:"One of on, off (pull the plug), soft (press the button), reset, status."`
}

func (c *powerCmd) Run(a *app) error {
	l, err := a.open()
	if err != nil {
		return err
	}
	m := l.Machine(c.Machine)
	if c.Action != "status" {
		return m.Power(a.ctx, c.Action)
	}
	st, err := m.Status(a.ctx)
	if err != nil {
		return err
	}
	if st.On {
		fmt.Println("on")
	} else {
		fmt.Println("off")
	}
	return nil
}

type execCmd struct {
	Command []string `arg:"" passthrough:"" help:"Command and arguments, after --."`
}

// Help says what the one-line summary cannot.
func (c *execCmd) Help() string {
	return "The command sees the lab's network and this host's files, as you. It replaces this process, so that\n" +
		"its exit status, signals and terminal are its own. `slipway-lab down` ends it with the lab."
}

func (c *execCmd) Run(a *app) error {
	argv := c.Command
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return &lab.Error{What: "run a command inside the lab", Why: "there is no command", Next: "slipway-lab exec -- ip address"}
	}
	l, err := a.open()
	if err != nil {
		return err
	}
	line, err := l.Enter(a.ctx, argv...)
	if err != nil {
		return err
	}
	return replace(line)
}

type sshCmd struct {
	Machine string   `arg:"" help:"Name of the machine."`
	Command []string `arg:"" optional:"" passthrough:"" help:"Command to run there, after --."`
}

func (c *sshCmd) Run(a *app) error {
	l, err := a.open()
	if err != nil {
		return err
	}
	argv := c.Command
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	line, err := l.Machine(c.Machine).SSHCommand(a.ctx, argv...)
	if err != nil {
		return err
	}
	return replace(line)
}
