package bmc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"github.com/stmcginnis/gofish/common"

	"github.com/slipway-metal/slipway/conductor/bmc/internal/guard"
	"github.com/slipway-metal/slipway/conductor/bmc/internal/safehttp"
)

// notRedfishError is an answer that does not read as Redfish.
type notRedfishError struct {
	path string
	err  error
}

func (e *notRedfishError) Error() string { return fmt.Sprintf("%s: not Redfish: %v", e.path, e.err) }
func (e *notRedfishError) Unwrap() error { return e.err }

// said is a cause with its text made fit to show.
type said struct {
	text string
	err  error
}

func (s *said) Error() string { return s.text }
func (s *said) Unwrap() error { return s.err }

// status is the HTTP status of an answer that is an error, or 0.
func status(err error) int {
	var e *common.Error
	if errors.As(err, &e) {
		return e.HTTPReturnedStatusCode
	}
	var a *answerError
	if errors.As(err, &a) {
		return a.status
	}
	return 0
}

func messageIDs(err error) []string {
	var e *common.Error
	if !errors.As(err, &e) {
		return nil
	}
	ids := []string{e.Code}
	for _, x := range e.ExtendedInfos {
		ids = append(ids, x.MessageID)
	}
	return ids
}

// words is what err says, without the password.
func (r *redfish) words(err error) string {
	if err == nil {
		return ""
	}
	return clean(err.Error(), r.in.password)
}

// answerError is a BMC's refusal, in its own words made fit to show. gofish's own
// error is dropped: it holds the whole body.
type answerError struct {
	status   int
	text     string
	notNow   bool // the BMC says to try again
	messages []string
}

func (e *answerError) Error() string { return e.text }

func (r *redfish) answer(e *common.Error) *answerError {
	ids := messageIDs(e)
	a := &answerError{status: e.HTTPReturnedStatusCode, notNow: isTransient(ids), messages: ids}
	text := e.Message
	for _, x := range e.ExtendedInfos {
		if x.Message != "" {
			text = x.Message
			break
		}
	}
	head := ""
	if a.status != 0 {
		head = fmt.Sprintf("HTTP %d %s: ", a.status, http.StatusText(a.status))
	}
	a.text = head + clean(text, r.in.password)
	return a
}

// explain puts err into its class. It leaves an *Error and an *InfoError as they are.
func (r *redfish) explain(op string, err error) error {
	var (
		done  *Error
		info  *InfoError
		open  *guard.OpenError
		login *guard.LoginError
		from  *common.Error
		odd   *notRedfishError
		cert  *tls.CertificateVerificationError
		auth  x509.UnknownAuthorityError
	)
	out := &Error{Address: r.in.address, Op: op}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &open):
		open.Last = short(open.Last)
		out.Class, out.Cause, out.RetryAt = ErrUnreachable, errors.New(r.words(open)), open.RetryAt
		out.Next = "check the BMC's network and power"
		return out
	case errors.As(err, &login):
		login.Last = short(login.Last)
		out.Class, out.Cause, out.RetryAt = ErrRefused, errors.New(r.words(login)), login.RetryAt
		out.Next = nextLogin
		return out
	case errors.As(err, &done), errors.As(err, &info):
		return err
	case errors.As(err, &from):
		a := r.answer(from)
		out.Cause = a
		out.Next, out.Class = classOf(a)
		return out
	}
	out.Cause = &said{r.words(err), err}
	switch {
	case errors.Is(err, safehttp.ErrSlow):
		out.Class, out.Next = ErrTimeout, "check the BMC's load and network; restart the BMC if it stays"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		out.Class, out.Next = ErrTimeout, "try again"
	case errors.As(err, &cert), errors.As(err, &auth):
		out.Class, out.Next = ErrUnreachable, "set driver_info/redfish_verify_ca to the CA's file, or to false to trust any certificate"
	case errors.Is(err, safehttp.ErrRedirect), errors.Is(err, safehttp.ErrTooLarge), errors.As(err, &odd):
		out.Class, out.Next = ErrUnreachable, "check that driver_info/redfish_address is a Redfish service"
	default:
		out.Class, out.Next = ErrUnreachable, "check driver_info/redfish_address and the BMC's network and power"
	}
	return out
}

// short is err without the BMC's address and the next step, which the error around it names.
func short(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return fmt.Errorf("%s: %w", e.Op, e.Cause)
	}
	return err
}

const nextLogin = "check driver_info/redfish_username and redfish_password"

func classOf(a *answerError) (next string, class error) {
	switch a.status {
	case http.StatusUnauthorized:
		return nextLogin, ErrRefused
	case http.StatusForbidden:
		return "give the account in driver_info/redfish_username the Administrator or Operator role", ErrRefused
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return "the BMC is busy or starting; restart the BMC if it stays", ErrUnreachable
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return "update the BMC's firmware, or do it by hand", ErrUnsupported
	}
	return "see the BMC's own event log", ErrFailed
}

// outcome is what the guard learns. A caller who gave up says nothing about the BMC.
func outcome(ctx context.Context, err error) guard.Outcome {
	switch {
	case err == nil:
		return guard.Answered
	case status(err) == http.StatusUnauthorized:
		return guard.Refused
	case errors.Is(err, ErrUnreachable), errors.Is(err, ErrTimeout):
		if ctx.Err() != nil {
			return guard.GaveUp
		}
		return guard.Down
	}
	return guard.Answered
}
