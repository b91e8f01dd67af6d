// Package api serves ironic-python-agent's HTTP API: routes, token, envelopes
// and errors as recorded from the real one.
package api

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/agent/sequence"
	"github.com/slipway-metal/slipway/proto/agent"
)

const (
	docs      = "https://docs.openstack.org/ironic-python-agent/"
	mediaType = "application/vnd.openstack.ironic-python-agent.v1+json"
)

// Server is the agent's API.
type Server struct {
	runner *sequence.Runner
	// token gives the agent's token; "" before the lookup, when nothing that
	// needs one is answered.
	token   func() string
	log     *slog.Logger
	started time.Time
}

// New makes the API's handler.
func New(runner *sequence.Runner, token func() string, log *slog.Logger) *Server {
	return &Server{runner: runner, token: token, log: log, started: time.Now()}
}

// Listener gives an http.Server its limits: nobody may hold the agent's memory
// with slow or endless requests.
func Listener(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 2 * time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

// Fault words, as recorded.
const (
	notFoundText = "404 Not Found: The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again."
	methodText   = "405 Method Not Allowed: The method is not allowed for the requested URL."
	tokenText    = "401 Unauthorized: Token invalid."
	bodyText     = "400 Bad Request: Missing or invalid name or params"
)

// ServeHTTP implements http.Handler. Routes are few, and werkzeug's rules (an
// unversioned alias, a slash at the end or none) are simplest said in one place.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	if path == "" {
		s.only(w, r, http.MethodGet, func() { s.reply(w, s.versions(r)) })
		return
	}
	if path == "/v1" {
		s.only(w, r, http.MethodGet, func() { s.reply(w, s.v1(r)) })
		return
	}
	path = strings.TrimPrefix(path, "/v1")
	id, one := strings.CutPrefix(path, "/commands/")
	switch {
	case path == "/status":
		s.only(w, r, http.MethodGet, func() { s.reply(w, s.status()) })
	case path == "/commands" && r.Method == http.MethodPost:
		s.authentic(w, r, func() { s.execute(w, r) })
	case path == "/commands":
		s.only(w, r, http.MethodGet, func() {
			s.authentic(w, r, func() { s.reply(w, map[string][]agent.CommandResult{"commands": s.runner.List()}) })
		})
	case one && id != "" && !strings.Contains(id, "/"):
		s.only(w, r, http.MethodGet, func() {
			s.authentic(w, r, func() {
				res, err := s.runner.Get(r.Context(), id, wait(r))
				s.answer(w, res, err)
			})
		})
	default:
		s.fault(w, http.StatusNotFound, notFoundText)
	}
}

func (s *Server) only(w http.ResponseWriter, r *http.Request, method string, do func()) {
	if r.Method != method {
		s.fault(w, http.StatusMethodNotAllowed, methodText)
		return
	}
	do()
}

func (s *Server) authentic(w http.ResponseWriter, r *http.Request, do func()) {
	want, got := s.token(), r.URL.Query().Get("agent_token")
	if want == "" || subtle.ConstantTimeCompare([]byte(want), []byte(got)) != 1 {
		s.fault(w, http.StatusUnauthorized, tokenText)
		return
	}
	do()
}

func wait(r *http.Request) bool {
	return strings.EqualFold(r.URL.Query().Get("wait"), "true")
}

func (s *Server) execute(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Name   *string         `json:"name"`
		Params json.RawMessage `json:"params"`
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, agent.MaxCommandBody))
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		var tooBig *http.MaxBytesError
		if errors.As(err, &tooBig) {
			s.fault(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("413 Request Entity Too Large: more than %d bytes", agent.MaxCommandBody))
			return
		}
		s.fault(w, http.StatusBadRequest, "400 Bad Request: Failed to decode JSON object: "+err.Error())
		return
	}
	if json.Unmarshal(raw, &body) != nil || body.Name == nil || !isObject(body.Params) {
		s.fault(w, http.StatusBadRequest, bodyText)
		return
	}
	res, err := s.runner.Execute(r.Context(), *body.Name, body.Params, wait(r))
	s.answer(w, res, err)
}

func isObject(raw json.RawMessage) bool {
	return strings.HasPrefix(strings.TrimSpace(string(raw)), "{")
}

func (s *Server) answer(w http.ResponseWriter, res agent.CommandResult, err error) {
	switch {
	case err == nil:
		s.reply(w, res)
	case errors.Is(err, sequence.ErrBusy):
		s.fault(w, http.StatusConflict, err.Error())
	case errors.Is(err, sequence.ErrNotFound):
		s.fault(w, http.StatusNotFound, err.Error())
	default:
		s.fault(w, http.StatusBadRequest, err.Error())
	}
}

func (s *Server) reply(w http.ResponseWriter, body any) { s.write(w, http.StatusOK, body) }

func (s *Server) fault(w http.ResponseWriter, status int, text string) {
	code := agent.FaultClient
	if status >= http.StatusInternalServerError {
		code = agent.FaultServer
	}
	s.write(w, status, agent.Fault{Code: code, Message: text})
}

func (s *Server) write(w http.ResponseWriter, status int, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		s.log.Error("reply can't be written", "error", err)
		status, raw = http.StatusInternalServerError, []byte(`{"faultcode":"Server","faultstring":"reply can't be written"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(raw); err != nil {
		s.log.Debug("caller went away", "error", err)
	}
}

// link is one of the API's hypermedia links.
type link struct {
	Href string `json:"href"`
	Rel  string `json:"rel"`
	Type string `json:"type,omitempty"`
}

type version struct {
	ID    string `json:"id"`
	Links []link `json:"links"`
}

func base(r *http.Request) string {
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

func selfLinks(r *http.Request) []link {
	return []link{{Href: base(r) + "/v1", Rel: "self"}, {Href: docs, Rel: "describedby", Type: "text/html"}}
}

func (s *Server) versions(r *http.Request) any {
	v := version{ID: "v1", Links: selfLinks(r)}
	return struct {
		Name        string    `json:"name"`
		Description string    `json:"description"`
		Versions    []version `json:"versions"`
		Default     version   `json:"default_version"`
	}{"OpenStack Ironic Python Agent API", "Ironic Python Agent is a provisioning agent for OpenStack Ironic", []version{v}, v}
}

func (s *Server) v1(r *http.Request) any {
	links := func(name string) []link {
		return []link{{Href: base(r) + "/v1/" + name, Rel: "self"}, {Href: base(r) + "/" + name, Rel: "bookmark"}}
	}
	return map[string]any{
		"id": "v1", "links": selfLinks(r), "commands": links("commands"), "status": links("status"),
		"media_types": []map[string]string{{"base": "application/json", "type": mediaType}},
	}
}

func (s *Server) status() any {
	return map[string]any{"started_at": float64(s.started.UnixMicro()) / 1e6, "version": agent.AgentVersion}
}
