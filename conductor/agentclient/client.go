// Package agentclient speaks the ironic-python-agent command API to an agent,
// ours or a stock one.
package agentclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/proto/agent"
)

// Errors that flows tell apart with errors.Is.
var (
	// ErrUnreachable: no connection, or it broke before an answer came. The
	// command may or may not have been taken.
	ErrUnreachable = errors.New("agent unreachable")
	// ErrBusy: the agent carries out another command.
	ErrBusy = errors.New("agent is busy")
	// ErrToken: the agent does not accept the token; it is in another life.
	ErrToken = errors.New("agent refused the token")
)

// FaultError is an answer of the agent that is no command result.
type FaultError struct {
	Status int
	Fault  agent.Fault
}

// Error gives the agent's own words.
func (e *FaultError) Error() string {
	return fmt.Sprintf("agent answered %d: %s", e.Status, e.Fault.Message)
}

// maxReply bounds an answer, bytes: an inventory of 10,000 NICs stays below.
const maxReply = 16 << 20

// Client talks to one agent.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// New makes a client for the agent that called back with callbackURL. verifyCA,
// PEM, pins an https agent's own certificate; the name in it is not checked, as
// the agent made it for an address it got a moment ago.
func New(callbackURL, token, verifyCA string) (*Client, error) {
	u, err := url.Parse(callbackURL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("agent callback URL %q: want http(s)://address:port", callbackURL)
	}
	tr := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		ResponseHeaderTimeout: 60 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConns:          2,
		Proxy:                 nil, // never: the agent is on the provisioning network
	}
	if u.Scheme == "https" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(verifyCA)) {
			return nil, fmt.Errorf("agent at %s speaks TLS and its heartbeat brought no certificate to check", u.Host)
		}
		tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	return &Client{
		base:  strings.TrimSuffix(u.Scheme+"://"+u.Host+u.Path, "/"),
		token: token,
		http: &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a command is never sent on to somebody else
		}},
	}, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Execute sends a command ("extension.name"). With wait, the answer is the
// command's end; else it may still be running.
func (c *Client) Execute(ctx context.Context, name string, params any, wait bool) (*agent.CommandResult, error) {
	raw, err := json.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("command %s: %w", name, err)
	}
	body, err := json.Marshal(agent.CommandRequest{Name: name, Params: raw})
	if err != nil {
		return nil, fmt.Errorf("command %s: %w", name, err)
	}
	q := url.Values{"wait": {fmt.Sprint(wait)}, "agent_token": {c.token}}
	var out agent.CommandResult
	if err := c.do(ctx, http.MethodPost, "/v1/commands/?"+q.Encode(), body, &out); err != nil {
		return nil, fmt.Errorf("command %s: %w", name, err)
	}
	return &out, nil
}

// Commands lists the commands of the agent's present life, oldest first.
func (c *Client) Commands(ctx context.Context) ([]agent.CommandResult, error) {
	var out struct {
		Commands []agent.CommandResult `json:"commands"`
	}
	q := url.Values{"agent_token": {c.token}}
	if err := c.do(ctx, http.MethodGet, "/v1/commands/?"+q.Encode(), nil, &out); err != nil {
		return nil, fmt.Errorf("list of commands: %w", err)
	}
	return out.Commands, nil
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// The URL holds the token: give the cause without it.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return fmt.Errorf("%w at %s: %w", ErrUnreachable, c.base, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end below
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return fmt.Errorf("%w at %s: answer broke off: %w", ErrUnreachable, c.base, err)
	}
	if len(raw) > maxReply {
		return fmt.Errorf("agent at %s answered with more than %d bytes", c.base, maxReply)
	}
	switch {
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode == http.StatusConflict:
		return ErrBusy
	case resp.StatusCode == http.StatusUnauthorized:
		return ErrToken
	default:
		fe := &FaultError{Status: resp.StatusCode}
		if json.Unmarshal(raw, &fe.Fault) != nil || fe.Fault.Message == "" {
			fe.Fault.Message = http.StatusText(resp.StatusCode)
		}
		return fe
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("agent at %s answered with something else than JSON: %w", c.base, err)
	}
	return nil
}
