// Command slipway is the conductor (slipway serve) and its command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/slipway-metal/slipway/conductor/cli"
	"github.com/slipway-metal/slipway/conductor/serve"
)

var version = "unknown"

type grammar struct {
	cli.Globals
	cli.Commands
	Serve  serveCmd        `cmd:"" help:"Run the conductor."`
	Config kong.ConfigFlag `help:"Read flags from this JSON file." type:"existingfile" placeholder:"FILE"`
}

type serveCmd struct {
	Data     string `help:"Directory of the database and the key that seals BMC passwords." default:"slipway-data" env:"SLIPWAY_DATA" type:"path" placeholder:"DIR"`
	Listen   string `help:"Address of the API. Anything but loopback needs --auth and TLS." default:"127.0.0.1:6385" env:"SLIPWAY_LISTEN" placeholder:"ADDR:PORT"`
	Auth     string `help:"Who may use the API: none (loopback only) or http_basic." enum:"none,http_basic" default:"none" env:"SLIPWAY_AUTH"`
	Htpasswd string `help:"Users and bcrypt hashes for http_basic (htpasswd -B)." type:"path" placeholder:"FILE"`
	TLSCert  string `help:"Certificate chain of the API, PEM." type:"path" placeholder:"FILE"`
	TLSKey   string `help:"Its key, PEM." type:"path" placeholder:"FILE"`

	BootInterface   string        `help:"Network interface on the machines' provisioning network. Starts DHCP, TFTP and HTTP there; without it the conductor boots nobody." env:"SLIPWAY_BOOT_INTERFACE" placeholder:"IFACE"`
	ProvisionListen string        `help:"Address for machines: boot files, images and agents only. Default: port 8080 of the boot interface." placeholder:"ADDR:PORT"`
	DHCP            string        `help:"full hands out addresses; proxy only adds boot answers beside an existing server; off does neither." enum:"full,proxy,off" default:"full"`
	DHCPRange       string        `help:"Addresses to hand out, first-last. Default: the upper half of the interface's network." placeholder:"A-B"`
	IPXE            string        `help:"Directory of iPXE's binaries." default:"/usr/lib/ipxe" type:"path" placeholder:"DIR"`
	Ramdisk         string        `help:"Directory with vmlinuz and initramfs.cpio.zst." default:"build/cloud" type:"path" placeholder:"DIR"`
	KernelArg       []string      `help:"Argument for the ramdisk's kernel; repeatable. Default: console=tty0 console=ttyS0,115200n8 loglevel=4." placeholder:"ARG" sep:"none"`
	Images          string        `help:"Directory whose files machines may read as /images/NAME." type:"path" placeholder:"DIR"`
	CallbackTimeout time.Duration `help:"How long a machine has from power-on to its agent's first call." default:"30m"`
	AgentSilence    time.Duration `help:"How long an agent at work may not be heard of before its step has failed." default:"2m"`
	PowerSync       time.Duration `help:"How often every BMC at rest is asked for its power state; 0 is never." default:"1m"`
	BMCTimeout      time.Duration `help:"How long one exchange with a BMC may take." default:"30s"`
	PowerTimeout    time.Duration `help:"How long a machine's power may take to change once its BMC has agreed." default:"1m"`
	Workers         int           `help:"Nodes worked on at the same moment; waiting costs none." default:"32"`
	LogLevel        string        `help:"debug, info, warn or error." enum:"debug,info,warn,error" default:"info" env:"SLIPWAY_LOG_LEVEL"`
}

// Run serves until ctx ends.
func (c *serveCmd) Run(ctx context.Context) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	err := serve.Run(ctx, serve.Config{
		Data: c.Data, Listen: c.Listen, Auth: c.Auth, Htpasswd: c.Htpasswd, TLSCert: c.TLSCert, TLSKey: c.TLSKey,
		BootInterface: c.BootInterface, ProvisionListen: c.ProvisionListen, DHCP: c.DHCP, DHCPRange: c.DHCPRange,
		IPXE: c.IPXE, Ramdisk: c.Ramdisk, KernelArgs: c.KernelArg, Images: c.Images,
		CallbackTimeout: c.CallbackTimeout, AgentSilence: c.AgentSilence, PowerSync: c.PowerSync, BMCTimeout: c.BMCTimeout, PowerTimeout: c.PowerTimeout, Workers: c.Workers,
	}, log)
	var refused *serve.RefusedError
	if errors.As(err, &refused) {
		return &cli.Error{What: "serve", Why: refused.What, Next: refused.Next, Code: cli.ExitUsage}
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return &cli.Error{What: "serve", Why: err.Error(), Code: cli.ExitFailed}
	}
	return nil
}

func main() {
	cli.BuildVersion = version
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var g grammar
	g.Stdout, g.Stderr, g.Now = os.Stdout, os.Stderr, time.Now
	g.TTY = cli.IsTerminal(os.Stderr, os.Getenv("NO_COLOR"), os.Getenv("TERM"))
	k := kong.Must(&g,
		kong.Name("slipway"),
		kong.Description("Takes machines from power-on to a running cloud.\n\nStart a conductor with `slipway serve`, then: node create, manage, inspect, provide, deploy. `slipway explain NODE` says why something waits."),
		kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Configuration(kong.JSON),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	kctx, err := k.Parse(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n next: slipway --help, or --help after a command\n", err)
		os.Exit(cli.ExitUsage)
	}
	if err := kctx.Run(&g.Globals); err != nil {
		if !errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, err)
		}
		stop()
		os.Exit(cli.ExitCode(err))
	}
}
