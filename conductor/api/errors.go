package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

// fault is a refusal on its way to the client. It is an error, so that handlers
// return it like any other.
type fault struct {
	status int
	text   string
	// outer marks what Ironic's web framework says (title and description)
	// instead of its controllers (faultcode and faultstring).
	outer bool
}

// Error is what the client will read.
func (f *fault) Error() string { return f.text }

// client makes a refusal as Ironic's controllers word it.
func client(status int, format string, args ...any) *fault {
	if len(args) > 0 {
		format = fmt.Sprintf(format, args...)
	}
	return &fault{status: status, text: format}
}

// bad is a 400.
func bad(format string, args ...any) *fault { return client(http.StatusBadRequest, format, args...) }

// edge makes a refusal as Ironic's web framework words it.
func edge(status int, description string) *fault {
	return &fault{status: status, text: description, outer: true}
}

// body is the recorded shape: JSON in a string in JSON (proto/testdata/errors.json).
func (f *fault) body() []byte {
	text := jsonText(f.text)
	inner := fmt.Sprintf(`{"faultcode": %q, "faultstring": %s, "debuginfo": null}`, f.code(), text)
	if f.outer {
		inner = fmt.Sprintf(`{"code": %d, "title": %s, "description": %s}`, f.status, jsonText(http.StatusText(f.status)), text)
	}
	return []byte(`{"error_message": ` + jsonText(inner) + `}`)
}

func (f *fault) code() string {
	if f.status >= http.StatusInternalServerError {
		return "Server"
	}
	return "Client"
}

func jsonText(s string) string {
	raw, err := json.Marshal(s)
	if err != nil { // a string always marshals
		return `""`
	}
	return string(raw)
}

func writeFault(w http.ResponseWriter, f *fault) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	w.Write(f.body()) //nolint:errcheck // the client is gone; nobody is left to tell
}

// fail writes any error of a handler. What is not meant for the client is
// logged under the request's id and answered with 500 and that id.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	writeFault(w, s.faultOf(r, err))
}

func (s *server) faultOf(r *http.Request, err error) *fault {
	var f *fault
	var refused *state.NotAcceptedError
	var exists *store.ExistsError
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &refused):
		return client(http.StatusConflict, "%s", refused.Error())
	case errors.As(err, &exists):
		return client(http.StatusConflict, "%s.", exists.Error())
	case errors.Is(err, store.ErrExists):
		return client(http.StatusConflict, "The resource exists already.")
	case errors.Is(err, store.ErrInvalid):
		return bad("%s", err)
	case errors.Is(err, store.ErrNotFound):
		return notFound()
	case errors.Is(err, store.ErrStale):
		return client(http.StatusConflict, "The resource was changed by another request meanwhile; read it again and retry.")
	case errors.Is(err, context.DeadlineExceeded):
		return client(http.StatusServiceUnavailable, "The request took too long; retry.")
	case errors.Is(err, context.Canceled):
		return client(http.StatusServiceUnavailable, "The request was cancelled.")
	}
	id := requestID(r)
	s.log.LogAttrs(r.Context(), slog.LevelError, "request failed",
		slog.String("request_id", id), slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.String("error", err.Error()))
	return client(http.StatusInternalServerError, "The conductor could not do this; its log has the reason under request id %s.", id)
}
