package main

import (
	"errors"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/cmdline"
	"golang.org/x/sys/unix"
)

// modprobe is what the kernel runs when it wants a module itself
// ("/sbin/modprobe -q -- fs-vfat", kernel/kmod.c), and a person at the shell.
// An alias that nothing in the ramdisk has is no error to the kernel: it asks
// for many that it can do without.
func modprobe(args []string) error {
	loader, err := newLoader(cmdline.NewCmdLine())
	if err != nil {
		return err
	}
	quietly := false
	var errs []error
	loader.Loaded = func(_, _ string, _ time.Duration, err error) { errs = append(errs, err) }
	loader.Prepare()
	for _, arg := range args {
		switch {
		case arg == "-q":
			quietly = true
			continue
		case strings.HasPrefix(arg, "-"):
			continue
		}
		found := loader.Index.Match(arg)
		if len(found) == 0 {
			found = []string{arg} // a module's own name
		}
		for _, module := range found {
			loader.Load(module, arg)
		}
	}
	if err := errors.Join(errs...); err != nil && (!quietly || errors.Is(err, unix.EPERM)) {
		return err
	}
	return nil
}
