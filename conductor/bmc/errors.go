package bmc

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// The classes of failure. Errors of this package's drivers match exactly one by
// errors.Is.
var (
	// ErrRefused: the BMC does not accept the credentials. Not retried by itself.
	ErrRefused = errors.New("credentials refused")
	// ErrUnreachable: no connection, or answers that are not the protocol's.
	ErrUnreachable = errors.New("unreachable")
	// ErrTimeout: the BMC took the call and did not finish in time.
	ErrTimeout = errors.New("timed out")
	// ErrIgnored: the BMC accepted the write and did nothing.
	ErrIgnored = errors.New("accepted and did nothing")
	// ErrUnsupported: this BMC or driver cannot do that.
	ErrUnsupported = errors.New("not supported")
	// ErrFailed: the BMC answered that it failed.
	ErrFailed = errors.New("failed at the BMC")
	// ErrInvalid: driver_info or an argument is wrong; nothing was sent.
	ErrInvalid = errors.New("invalid")
)

// Error is a failed call: which BMC, what was asked, why, and what to do next.
type Error struct {
	Class   error  // one of the classes above
	Address string // of the BMC
	Op      string // "power off", "set boot device pxe once", …
	Cause   error
	Next    string // what the operator can do
	// RetryAt is when the driver will try this BMC again; zero is at once.
	RetryAt time.Time
}

// Error is one line: object, operation, cause, next step.
func (e *Error) Error() string {
	s := fmt.Sprintf("BMC %s: %s: %v", e.Address, e.Op, e.Class)
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	if e.Next != "" {
		s += "; " + e.Next
	}
	return s
}

// Unwrap gives the class and the cause.
func (e *Error) Unwrap() []error { return []error{e.Class, e.Cause} }

// InfoError is a wrong driver_info: Key is what to change.
type InfoError struct {
	Driver, Key, Problem string
}

// Error names the key.
func (e *InfoError) Error() string {
	return fmt.Sprintf("driver %s: driver_info/%s %s", e.Driver, e.Key, e.Problem)
}

// Unwrap makes it an ErrInvalid.
func (e *InfoError) Unwrap() error { return ErrInvalid }

// causeLimit is how many characters of a BMC's own words go into an error.
const causeLimit = 300

// clean makes text from a BMC fit for an error: no control characters (a
// terminal would obey them), no secret, not too long.
func clean(s string, secrets ...Secret) string {
	for _, secret := range secrets {
		if v := secret.Reveal(); v != "" {
			s = strings.ReplaceAll(s, v, "***")
		}
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > causeLimit {
		s = string(r[:causeLimit]) + "…"
	}
	return s
}
