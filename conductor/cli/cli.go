package cli

import (
	"context"
	"io"
	"os"
	"time"
)

// Globals are the flags of every command, and where it prints.
type Globals struct {
	URL      string `help:"The conductor's API." default:"http://127.0.0.1:6385" env:"SLIPWAY_URL" placeholder:"URL"`
	User     string `help:"User for http_basic authentication." env:"SLIPWAY_USER"`
	Password string `help:"Its password; better by the environment, where ps does not show it." env:"SLIPWAY_PASSWORD" placeholder:"***"`
	Output   string `short:"o" help:"Output: table, wide, json or yaml." enum:"table,wide,json,yaml" default:"table"`

	Stdout io.Writer        `kong:"-"`
	Stderr io.Writer        `kong:"-"`
	TTY    bool             `kong:"-"` // Stderr is a terminal that may be drawn on
	Now    func() time.Time `kong:"-"`
}

func (g *Globals) client() *client { return newClient(g.URL, g.User, g.Password) }

// Waiting are the flags of commands that start long work.
type Waiting struct {
	Wait    bool          `help:"Wait until the node has arrived, showing progress."`
	Timeout time.Duration `help:"Give up waiting after this long (the work goes on); 0 is never." default:"60m"`
}

// Commands are the client commands, embedded in main's grammar.
type Commands struct {
	Node    NodeCmd    `cmd:"" help:"Machines: enrol, inspect, clean, deploy, watch."`
	Port    PortCmd    `cmd:"" help:"NICs of machines: how the conductor knows who boots."`
	Driver  DriverCmd  `cmd:"" help:"What kinds of BMC the conductor can drive."`
	Explain ExplainCmd `cmd:"" help:"Say what a node is waiting for, since when, and the likeliest cause."`
	Plan    PlanCmd    `cmd:"" help:"Show what a deploy of a node would destroy, without doing it."`
	Doctor  DoctorCmd  `cmd:"" help:"Check this host and the conductor for what commonly goes wrong."`
	Version VersionCmd `cmd:"" help:"Versions of this command and of the conductor."`
}

// IsTerminal says whether f is a terminal that may be drawn on.
func IsTerminal(f *os.File, noColor, term string) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && noColor == "" && term != "dumb"
}

// runner is what kong calls with the context of the process. It looks for Run by
// reflection; the list below lets the compiler look, too.
type runner interface {
	Run(ctx context.Context, g *Globals) error
}

var _ = []runner{
	&NodeList{}, &NodeShow{}, &NodeCreate{}, &NodeSet{}, &NodeDelete{}, &NodeManage{}, &NodeProvide{}, &NodeInspect{}, &NodeDeploy{},
	&NodeUndeploy{}, &NodeClean{}, &NodeAbort{}, &NodeRescue{}, &NodePower{}, &NodeMaintenance{}, &NodeWatch{}, &NodeLogs{},
	&PortList{}, &PortCreate{}, &PortDelete{}, &DriverList{}, &ExplainCmd{}, &PlanCmd{}, &DoctorCmd{}, &VersionCmd{},
}
