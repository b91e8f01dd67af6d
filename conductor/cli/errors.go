// Package cli is the slipway command line. It sees the conductor only through
// its HTTP API, with the wire types of proto.
package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/slipway-metal/slipway/proto/ironic"
)

// Exit codes, documented in docs/cli.md.
const (
	ExitOK          = 0
	ExitFailed      = 1 // the conductor or a node refused or failed
	ExitUsage       = 2 // the command line is wrong
	ExitNotFound    = 3
	ExitConflict    = 4 // wrong state, or busy
	ExitTimeout     = 5 // --timeout passed while waiting
	ExitUnreachable = 6 // no conductor at the URL
	ExitInterrupted = 130
)

// Error is what a command ends with: what failed, why, what to do next.
type Error struct {
	What, Why, Next string
	Code            int
}

// Error is the three lines.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "error: %s", e.What)
	if e.Why != "" {
		fmt.Fprintf(&b, "\n  why: %s", e.Why)
	}
	if e.Next != "" {
		fmt.Fprintf(&b, "\n next: %s", e.Next)
	}
	return b.String()
}

// ExitCode is the process's exit code for the error of a command.
func ExitCode(err error) int {
	var e *Error
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	}
	return ExitFailed
}

func usage(what, next string) error { return &Error{What: what, Next: next, Code: ExitUsage} }

// explain turns err into an *Error for what was tried.
func explainError(what, base string, err error) error {
	if err == nil {
		return nil
	}
	var done *Error
	if errors.As(err, &done) || errors.Is(err, context.Canceled) {
		return err
	}
	var api *ironic.Error
	if errors.As(err, &api) {
		e := &Error{What: what, Why: strings.TrimSpace(api.Message), Code: ExitFailed}
		switch api.Status {
		case 401, 403:
			e.Next = "check the credentials (--user, SLIPWAY_USER, SLIPWAY_PASSWORD)"
		case 404:
			e.Code, e.Next = ExitNotFound, "`slipway node list` shows what there is"
		case 409:
			e.Code, e.Next = ExitConflict, "`slipway explain NODE` says what the node is doing"
		case 406:
			e.Next = "conductor and command differ in version: update the older one"
		case 503:
			e.Next = "try again in a moment; the conductor's log has more"
		}
		return e
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var ne net.Error
	if errors.As(err, &ne) {
		return &Error{What: what, Why: fmt.Sprintf("no answer from %s: %v", base, err), Next: "is the conductor running there? Start one: slipway serve; or name it: --url, SLIPWAY_URL", Code: ExitUnreachable}
	}
	return &Error{What: what, Why: err.Error(), Code: ExitFailed}
}
