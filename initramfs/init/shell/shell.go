// Package shell is the ramdisk's debug shell: a POSIX shell (mvdan.cc/sh) whose
// commands run inside it, u-root's pkg/core for files and a few of its own for
// the machine. It is a few hundred kilobytes, where a busybox of u-root's
// commands would be some megabytes.
package shell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// killAfter is how long a program has to end after an interrupt.
const killAfter = 2 * time.Second

// Run runs a command line (sh -c), a script file, or, without either, what is
// typed, until its end.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	runner, err := interp.New(
		interp.StdIO(stdin, stdout, stderr),
		interp.ExecHandlers(builtins),
	)
	if err != nil {
		return fmt.Errorf("start the shell: %w", err)
	}
	switch {
	case len(args) >= 2 && args[0] == "-c":
		return runText(ctx, runner, strings.NewReader(args[1]), "-c")
	case len(args) >= 1 && !strings.HasPrefix(args[0], "-"):
		f, err := os.Open(args[0])
		if err != nil {
			return fmt.Errorf("open the script: %w", err)
		}
		defer f.Close()
		return runText(ctx, runner, f, args[0])
	}
	return interact(ctx, runner, stdin, stdout, stderr)
}

func runText(ctx context.Context, runner *interp.Runner, text io.Reader, name string) error {
	file, err := syntax.NewParser().Parse(text, name)
	if err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	return runner.Run(ctx, file)
}

// interact reads lines until "exit" or their end. A line with an error in it is
// told and forgotten. It returns as the last command of a script would.
func interact(ctx context.Context, runner *interp.Runner, stdin io.Reader, stdout, stderr io.Writer) error {
	lines := bufio.NewReader(stdin) // a terminal gives it one line at a time
	text, prompt := "", "slipway# "
	for {
		if _, err := io.WriteString(stdout, prompt); err != nil {
			return fmt.Errorf("write to the console: %w", err)
		}
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read from the console: %w", err)
		}
		text += line
		file, err := syntax.NewParser().Parse(strings.NewReader(text), "")
		if syntax.IsIncomplete(err) {
			prompt = "> "
			continue
		}
		text, prompt = "", "slipway# "
		if err != nil {
			file = &syntax.File{}
		}
		// Statements, not the file: that would count as the shell's end.
		for _, stmt := range file.Stmts {
			if err = runner.Run(ctx, stmt); runner.Exited() {
				return err
			}
		}
		if _, isStatus := interp.IsExitStatus(err); err != nil && !isStatus {
			if _, err := fmt.Fprintln(stderr, err); err != nil {
				return fmt.Errorf("write to the console: %w", err)
			}
		}
	}
}

// builtins runs the shell's own commands and leaves others to programs.
func builtins(next interp.ExecHandlerFunc) interp.ExecHandlerFunc {
	programs := interp.DefaultExecHandler(killAfter)
	return func(ctx context.Context, args []string) error {
		c := interp.HandlerCtx(ctx)
		run, ok := commands()[args[0]]
		if !ok {
			return programs(ctx, args)
		}
		if err := run(ctx, stream{in: c.Stdin, out: c.Stdout, err: c.Stderr, dir: c.Dir}, args[1:]); err != nil {
			if _, err := fmt.Fprintf(c.Stderr, "%s: %v\n", args[0], err); err != nil {
				return err
			}
			return interp.NewExitStatus(1)
		}
		return nil
	}
}
