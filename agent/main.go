// Command slipway-agent runs in the ramdisk as /init's child: it brings the
// network up, tells the conductor what machine this is, and does what the
// conductor asks for. It touches no disk on its own.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/slipway-metal/slipway/agent/bootconf"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/linux"
	"github.com/slipway-metal/slipway/agent/life"
	"github.com/slipway-metal/slipway/agent/logring"
	"github.com/slipway-metal/slipway/proto/agent"
)

type options struct {
	root, state, listen string
	noNetwork           bool
}

func main() {
	var o options
	flag.StringVar(&o.root, "root", "/", "directory with etc/slipway/boot.json and proc/cmdline")
	flag.StringVar(&o.state, "state", "/run/slipway/agent.json", "where the agent keeps its identity for as long as this boot lasts")
	flag.StringVar(&o.listen, "listen", fmt.Sprintf(":%d", agent.AgentAPIPort), "address of the agent's API")
	flag.BoolVar(&o.noNetwork, "no-network", false, "leave links and addresses as they are")
	flag.Parse()
	level := new(slog.LevelVar)
	ring := logring.New(os.Stderr, level)
	log := slog.New(ring)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, level, ring, log); err != nil {
		log.Error("agent ends", "error", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// run builds everything and stays until ctx ends or the machine is to go.
func run(ctx context.Context, o options, level *slog.LevelVar, ring *logring.Log, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conf, err := bootconf.Load(os.DirFS(o.root))
	if err != nil {
		return err
	}
	if conf.LogLevel != "" {
		if err := level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
			log.Warn("log level of the boot configuration", "error", err)
		}
	}
	machine := linux.New(log, conf.BootMAC)
	l := &life.Life{
		Conf: conf, Machine: machine, State: o.state, Listen: o.listen, Memory: limitMemory(log), Log: log, Ring: ring, LastWords: linux.LastCrash(),
	}
	log.Info("agent starts", "conductor", conf.Conductor, "from", conf.Source, "boot_id", machine.BootID())
	if !o.noNetwork {
		network := machine.StartNetwork(ctx)
		defer network.Wait()
		defer cancel() // before the wait
		l.Ready = func(ctx context.Context) error {
			select {
			case <-network.Ready():
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	action, err := l.Run(ctx)
	if action != 0 {
		if err := machine.Halt(action); err != nil {
			return err
		}
		if action == host.Lockdown {
			select {} // the conductor's BMC ends this
		}
	}
	if ctx.Err() != nil {
		return nil // asked to end
	}
	return err
}

// limitMemory keeps the Go heap to a share of a small machine's RAM: the
// ramdisk itself and the kernel's buffers live in the rest. It returns what an
// image's decoder may take, bytes: an xz made with -9 wants 64 MiB.
func limitMemory(log *slog.Logger) int64 {
	const least, most = 40 << 20, 256 << 20
	total := linux.MemoryTotal()
	limit := min(max(total/5, least), most)
	debug.SetMemoryLimit(limit)
	log.Debug("memory limit", "bytes", limit)
	return min(max(total/3, 48<<20), 512<<20)
}
