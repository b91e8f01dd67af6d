// Command initramfs builds the ramdisks that machines boot into: Debian's
// kernel, the modules that reach NICs and disks, PID 1 and the agent. The same
// inputs give the same bytes.
//
//	go run ./initramfs build --flavor cloud --out build/
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/slipway-metal/slipway/initramfs/flavor"
	"github.com/slipway-metal/slipway/initramfs/kernel"
	"github.com/slipway-metal/slipway/initramfs/pack"
)

type cli struct {
	Build buildCmd `cmd:"" help:"Build a kernel and ramdisk into OUT/FLAVOR; does nothing when they are current."`
}

type buildCmd struct {
	Flavor    string `default:"cloud" enum:"cloud,metal" help:"Which ramdisk: cloud (virtual machines) or metal."`
	Out       string `default:"build" type:"path" help:"Directory to build into."`
	Agent     string `type:"existingfile" help:"The agent's binary (default: build ./agent)."`
	KernelDeb string `type:"existingfile" help:"Use this kernel package instead of the newest one by apt."`
	Cache     string `env:"SLIPWAY_CACHE" type:"path" default:"~/.cache/slipway" help:"Where kernel packages are kept."`
	Quiet     bool   `short:"q" help:"Say nothing when nothing had to be done."`
}

func main() {
	var c cli
	k := kong.Parse(&c, kong.Name("initramfs"), kong.Description("Build Slipway's ramdisks."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	k.BindTo(ctx, (*context.Context)(nil))
	k.FatalIfErrorf(k.Run())
}

// Run builds one flavor.
func (b *buildCmd) Run(ctx context.Context) error {
	f, err := flavor.ByName(b.Flavor)
	if err != nil {
		return err
	}
	var pkg *kernel.Package
	if b.KernelDeb != "" {
		pkg, err = kernel.Local(ctx, b.KernelDeb)
	} else {
		pkg, err = kernel.Fetch(ctx, f.Meta, b.Cache)
	}
	if err != nil {
		return err
	}
	programs := filepath.Join(b.Out, "programs")
	in := pack.Inputs{Flavor: f, Kernel: pkg, Init: filepath.Join(programs, "init"), Agent: b.Agent}
	if err := goBuild(ctx, "./initramfs/init", in.Init); err != nil {
		return err
	}
	if in.Agent == "" {
		in.Agent = filepath.Join(programs, "slipway-agent")
		if err := goBuild(ctx, "./agent", in.Agent); err != nil {
			return err
		}
	}
	dir := filepath.Join(b.Out, b.Flavor)
	m, built, err := pack.Build(ctx, in, dir, os.Stdout)
	if err != nil {
		return err
	}
	if !built && b.Quiet {
		return nil
	}
	state := "built"
	if !built {
		state = "current"
	}
	fmt.Printf("%s: %s, %d bytes of %d; kernel %s, %d modules\n",
		filepath.Join(dir, pack.RamdiskFile), state, m.Bytes, m.Budget, m.Release, len(m.Modules))
	return nil
}

// goBuild builds a static program the same way on every machine: no cgo, no
// paths, no build ids, no state of the repository.
func goBuild(ctx context.Context, pkg, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	return nil
}
