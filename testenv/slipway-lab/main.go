// Command slipway-lab runs virtual machines with BMCs of their own in a network
// of their own: a rack to try Slipway on. See package lab for how it works.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/slipway-metal/slipway/testenv/lab"
	"github.com/slipway-metal/slipway/testenv/netns"
)

const help = `Run virtual machines with BMCs of their own, in a network of their own.

A lab is a small file (see testenv/labs/demo.yaml, which explains every field).
It needs no root where the host allows user namespaces, and touches nothing of
the host's network.

  slipway-lab up testenv/labs/demo.yaml       # networks and BMCs; machines are off
  slipway-lab list                            # machines, power, Redfish addresses
  slipway-lab exec -- slipway serve …         # a conductor inside the lab's network
  slipway-lab power node-1 on                 # what its BMC would do
  slipway-lab console node-1 -f               # follow its serial port
  slipway-lab ssh node-1 -- uname -a          # log in to the system deployed on it
  slipway-lab down                            # end all of it; disks stay

Where several labs run, name one with --lab or --state.`

type cli struct {
	Lab   string `help:"Name of the lab; not needed when one is running." placeholder:"NAME"`
	State string `help:"Directory of the lab's files." placeholder:"DIR" type:"path"`

	Up      upCmd      `cmd:"" help:"Start a lab: its networks and BMCs. All machines are off."`
	Down    downCmd    `cmd:"" help:"End a lab and everything in it."`
	List    listCmd    `cmd:"" help:"Show the running labs and their machines."`
	Console consoleCmd `cmd:"" help:"Show what a machine's serial port said."`
	SSH     sshCmd     `cmd:"" name:"ssh" help:"Log in to the system on a machine."`
	Power   powerCmd   `cmd:"" help:"Switch a machine, past its BMC."`
	Exec    execCmd    `cmd:"" help:"Run a command inside the lab's network."`
	Image   imageCmd   `cmd:"" help:"Build the OS images that labs deploy."`
}

// app is what every command gets.
type app struct {
	ctx   context.Context
	lab   string
	state string
	home  string // directory of all labs' directories
	cache string // directory of built images
}

func main() {
	lab.Reexec()
	var c cli
	parser, err := kong.New(&c, kong.Name("slipway-lab"), kong.Description(help), kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	if err != nil {
		die(err)
	}
	parsed, err := parser.Parse(os.Args[1:])
	if err != nil {
		die(&lab.Error{What: "read the command line", Why: err.Error(), Next: "slipway-lab --help"})
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = parsed.Run(&app{ctx: ctx, lab: c.Lab, state: c.State, home: stateHome(), cache: cacheHome()})
	if err != nil {
		die(err)
	}
}

// die prints three lines, what, why and next, and exits.
func die(err error) {
	var file *lab.FileError
	var known *lab.Error
	var refusal *netns.Refusal
	what, why, next := "slipway-lab", err.Error(), "slipway-lab --help"
	switch {
	case errors.As(err, &file):
		what, why, next = "the lab file is not right", file.Error(), "mend it as said; testenv/labs/demo.yaml explains every field"
	case errors.As(err, &known):
		what, why, next = known.What, known.Why, known.Next
	case errors.As(err, &refusal):
		what, why, next = refusal.What, refusal.Why, refusal.Next
	}
	fmt.Fprintf(os.Stderr, "error: %s\n  why: %s\n next: %s\n", what, strings.ReplaceAll(why, "\n", "\n       "), next)
	os.Exit(1)
}

// stateHome is where labs keep their files (XDG base directory specification).
func stateHome() string { return base("XDG_STATE_HOME", ".local/state", "slipway-lab") }

// cacheHome is where built images are kept.
func cacheHome() string {
	if dir := os.Getenv("SLIPWAY_CACHE"); dir != "" {
		return dir
	}
	return base("XDG_CACHE_HOME", ".cache", "slipway")
}

func base(variable, fallback, name string) string {
	if dir := os.Getenv(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, name)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = os.TempDir()
	}
	return filepath.Join(home, fallback, name)
}

// dir is the lab directory that --state or --lab names, or "".
func (a *app) dir() string {
	switch {
	case a.state != "":
		return a.state
	case a.lab != "":
		return filepath.Join(a.home, a.lab)
	default:
		return ""
	}
}

// open returns the lab that is meant: the one named, or the only one.
func (a *app) open() (*lab.Lab, error) {
	if dir := a.dir(); dir != "" {
		return lab.Open(dir)
	}
	dirs, err := lab.Find(a.home)
	if err != nil {
		return nil, err
	}
	switch len(dirs) {
	case 0:
		return nil, &lab.Error{What: "find the lab", Why: "no lab is running", Next: "start one: slipway-lab up testenv/labs/demo.yaml"}
	case 1:
		return lab.Open(dirs[0])
	}
	names := make([]string, len(dirs))
	for i, dir := range dirs {
		names[i] = filepath.Base(dir)
	}
	return nil, &lab.Error{What: "find the lab", Why: "several are running: " + strings.Join(names, ", "), Next: "say which: --lab " + names[0]}
}

// replace turns this process into another program.
func replace(argv []string) error {
	err := syscall.Exec(argv[0], argv, os.Environ())
	return fmt.Errorf("run %s: %w", argv[0], err)
}
