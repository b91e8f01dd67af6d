// Command initramfs builds the ramdisks that machines boot into: Debian's
// kernel, the modules that reach NICs and disks, PID 1 and the agent. The same
// inputs give the same bytes.
//
//	go run ./initramfs build --flavor cloud --out build/
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/slipway-metal/slipway/initramfs/flavor"
	"github.com/slipway-metal/slipway/initramfs/iso"
	"github.com/slipway-metal/slipway/initramfs/kernel"
	"github.com/slipway-metal/slipway/initramfs/pack"
	"github.com/slipway-metal/slipway/initramfs/uki"
)

type cli struct {
	Build buildCmd `cmd:"" help:"Build a kernel and ramdisk into OUT/FLAVOR; does nothing when they are current."`
	UKI   ukiCmd   `cmd:"" name:"uki" help:"Make OUT/FLAVOR/slipway.efi, a unified kernel image for UEFI."`
	ISO   isoCmd   `cmd:"" name:"iso" help:"Make OUT/FLAVOR/slipway.iso, bootable by BIOS and UEFI."`
}

// mediaCmd makes bootable media of what build has made.
type mediaCmd struct {
	Flavor  string `default:"metal" enum:"cloud,metal" help:"Which ramdisk."`
	Out     string `default:"build" type:"path" help:"Directory that build has built into."`
	Cmdline string `default:"console=tty0 console=ttyS0,115200" help:"The kernel's command line."`
}

type ukiCmd struct {
	mediaCmd
	Stub string `type:"existingfile" default:"/usr/lib/systemd/boot/efi/linuxx64.efi.stub" help:"systemd's EFI stub (Debian: systemd-boot-efi)."`
}

type isoCmd struct{ mediaCmd }

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
	unlock, err := lock(b.Out)
	if err != nil {
		return err
	}
	defer unlock()
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

// lock keeps two builds into one directory (make -j) from writing over each
// other; the second waits, and then finds everything current.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the build directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, ".initramfs.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the build directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the build directory: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}

// Run makes a unified kernel image.
func (c *ukiCmd) Run() error {
	dir := filepath.Join(c.Out, c.Flavor)
	parts := uki.Parts{Cmdline: c.Cmdline, OSRelease: "ID=slipway\nNAME=Slipway\nPRETTY_NAME=\"Slipway ramdisk\"\n"}
	for file, into := range map[string]*[]byte{
		c.Stub: &parts.Stub, filepath.Join(dir, pack.KernelFile): &parts.Kernel, filepath.Join(dir, pack.RamdiskFile): &parts.Ramdisk,
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("make a unified kernel image: %w", err)
		}
		*into = data
	}
	image, err := uki.Build(parts)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "slipway.efi")
	if err := os.WriteFile(file, image, 0o644); err != nil {
		return fmt.Errorf("make a unified kernel image: %w", err)
	}
	fmt.Printf("%s: %d bytes, unsigned\n", file, len(image))
	return nil
}

// Run makes an ISO image, and says beside it where its configuration goes.
func (c *isoCmd) Run(ctx context.Context) error {
	dir := filepath.Join(c.Out, c.Flavor)
	file := filepath.Join(dir, "slipway.iso")
	at, err := iso.Build(ctx, dir, c.Cmdline, file)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("{\"config_offset\": %d, \"config_bytes\": %d}\n", at, iso.ConfigBytes)
	if err := os.WriteFile(file+".json", []byte(text), 0o644); err != nil {
		return fmt.Errorf("note where the ISO's configuration goes: %w", err)
	}
	fmt.Printf("%s: room for configuration at byte %d\n", file, at)
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
