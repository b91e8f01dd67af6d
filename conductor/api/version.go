package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/slipway-metal/slipway/proto/ironic"
)

// minor is a microversion 1.N of Ironic's API.
type minor int

// The microversions that decide more than one field (proto/testdata/microversions.json).
const (
	minorUnrestrictedName minor = 10
	minorFields           minor = 8
	minorDetailQuery      minor = 43
	minorResetInterfaces  minor = 45
	minorMax              minor = ironic.MaxMinor
)

type ctxKey int

const (
	keyMinor ctxKey = iota
	keyRequestID
)

func minorOf(r *http.Request) minor {
	if m, ok := r.Context().Value(keyMinor).(minor); ok {
		return m
	}
	return 1
}

// microversion reads the requested microversion, answers 406 with the range for
// one that is not served, and puts the three headers on every reply.
func microversion(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set(ironic.HeaderMinVersion, ironic.MinVersion)
		h.Set(ironic.HeaderMaxVersion, ironic.MaxVersion)
		h.Add("Vary", ironic.HeaderVersion)
		m, f := parseMinor(r.Header.Get(ironic.HeaderVersion))
		if f != nil {
			writeFault(w, f)
			return
		}
		h.Set(ironic.HeaderVersion, fmt.Sprintf("1.%d", m))
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyMinor, m)))
	})
}

// parseMinor takes "" (1.1), "latest" and "1.N".
func parseMinor(text string) (minor, *fault) {
	switch strings.ToLower(text) {
	case "":
		return 1, nil
	case "latest":
		return minorMax, nil
	}
	const served = "The supported version range is: [" + ironic.MinVersion + ", " + ironic.MaxVersion + "]."
	a, b, ok := strings.Cut(text, ".")
	major, err1 := strconv.ParseUint(a, 10, 31)
	n, err2 := strconv.ParseUint(b, 10, 31)
	switch {
	case !ok || err1 != nil || err2 != nil:
		return 0, edge(http.StatusNotAcceptable, "Invalid value for "+ironic.HeaderVersion+" header")
	case major != 1:
		return 0, edge(http.StatusNotAcceptable, fmt.Sprintf("Mutually exclusive versions requested. Version %d.%d requested but not supported by this service. %s", major, n, served))
	case n < 1 || n > uint64(minorMax):
		return 0, edge(http.StatusNotAcceptable, fmt.Sprintf("Version 1.%d was requested but the minor version is not supported by this service. %s", n, served))
	}
	return minor(n), nil
}

// since guards a route that younger microversions brought: older requests get
// the recorded refusal (proto/testdata/routes.json).
func since(m minor, refusal func() *fault) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if minorOf(r) < m {
				writeFault(w, refusal())
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// The refusals of since.
func hidden() *fault        { return edge(http.StatusNotFound, "") }
func notAcceptable() *fault { return client(http.StatusNotAcceptable, "Request not acceptable.") }
func notFound() *fault      { return client(http.StatusNotFound, "Resource could not be found.") }
func notInVersion() *fault {
	return client(http.StatusNotFound, "The API is not supported for this version")
}
func noAllocationsYet() *fault {
	return client(http.StatusNotFound, "The API version does not allow allocations")
}
func noRulesYet() *fault {
	return client(http.StatusNotFound, "The API version does not allow inspection rules")
}
func noShardsYet() *fault {
	return client(http.StatusNotFound, "The API version does not allow shards")
}
