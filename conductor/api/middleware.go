package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"time"

	"github.com/slipway-metal/slipway/proto/ironic"
)

// Limits of a request. Ironic's agents and clients stay far below.
const (
	maxBody        int64 = 1 << 20 // bytes
	maxDriveBody   int64 = 8 << 20 // bytes, where a config drive may travel
	maxDepth             = 64      // nesting of JSON
	requestTimeout       = 60 * time.Second
)

var clientRequestID = regexp.MustCompile(`^req-[0-9A-Fa-f-]{36}$`)

// withRequestID gives every request an id in OpenStack's form; a client's own
// well-formed one is kept.
func withRequestID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(ironic.HeaderRequestID)
		if !clientRequestID.MatchString(id) {
			id = "req-" + newUUID()
		}
		w.Header().Set(ironic.HeaderRequestID, id)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyRequestID, id)))
	})
}

func requestID(r *http.Request) string {
	id, _ := r.Context().Value(keyRequestID).(string)
	return id
}

// newUUID is a random (version 4) UUID.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // documented never to fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
}

// statusWriter remembers what was answered. Unwrap lets SSE reach the flusher.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes the status.
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write notes the implied 200.
func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// guard turns a panic into a 500 that shows nothing of the inside, and logs
// each request at debug level. The query is left out: it may hold a token.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun := s.now()
		sw := &statusWriter{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
				s.log.LogAttrs(r.Context(), slog.LevelError, "handler panicked",
					slog.String("request_id", requestID(r)), slog.String("path", r.URL.Path), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
				if sw.status == 0 {
					writeFault(sw, client(http.StatusInternalServerError, "The conductor could not do this; its log has the reason under request id %s.", requestID(r)))
				}
			}
			s.log.LogAttrs(r.Context(), slog.LevelDebug, "request",
				slog.String("request_id", requestID(r)), slog.String("method", r.Method), slog.String("path", r.URL.Path),
				slog.Int("status", sw.status), slog.Duration("took", s.now().Sub(begun)), slog.String("peer", r.RemoteAddr))
		}()
		next.ServeHTTP(sw, r)
	})
}

// limits bounds body and time of an ordinary (not streaming) request.
func limits(body int64) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
			defer cancel()
			r = r.WithContext(ctx)
			r.Body = http.MaxBytesReader(w, r.Body, body)
			next.ServeHTTP(w, r)
		})
	}
}
