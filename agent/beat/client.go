// Package beat is the agent's side of the talk with its conductor: who am I,
// here is my inventory, I am still here.
package beat

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
	"strconv"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/agent/bootconf"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

const (
	versionHeader = "X-OpenStack-Ironic-API-Version"
	tokenHeader   = "X-Slipway-Token"
	// Highest microversions we know what they mean: IPA's own.
	lookupMinor    = 62
	heartbeatMinor = 68
	fallbackMinor  = 31 // IPA's, when the server names none
	requestTimeout = 30 * time.Second
	maxReply       = 1 << 20 // bytes
)

// StatusError is an answer that is no success.
type StatusError struct {
	What, Text string
	Status     int
}

// Error gives the conductor's own words.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: conductor answered %d: %s", e.What, e.Status, e.Text)
}

// Client makes the requests. It is safe for concurrent use.
type Client struct {
	base   string
	nonce  string
	bootID string
	http   *http.Client
}

// NewClient makes a client for the conductor of the boot configuration. With a
// CA given, nothing but it is trusted.
func NewClient(c bootconf.Config, bootID string) (*Client, error) {
	tr := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: requestTimeout,
		MaxIdleConnsPerHost:   2,
		IdleConnTimeout:       time.Minute,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.Insecure}, //nolint:gosec // ipa-insecure=1 is the operator's word
	}
	if c.CA != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(c.CA)) {
			return nil, errors.New("boot configuration: the CA is no PEM certificate")
		}
		tr.TLSClientConfig.RootCAs, tr.TLSClientConfig.InsecureSkipVerify = pool, false
	}
	return &Client{base: c.Conductor, nonce: c.Nonce, bootID: bootID, http: &http.Client{
		Transport: tr, Timeout: requestTimeout,
		// The token must not follow a redirect to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (c *Client) do(ctx context.Context, what, method, target string, minor int, body, out any, header http.Header) error {
	var payload io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		payload = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, payload)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if minor > 0 {
		req.Header.Set(versionHeader, fmt.Sprintf("1.%d", minor))
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return fmt.Errorf("%s: answer broke off: %w", what, err)
	}
	if len(raw) > maxReply {
		return fmt.Errorf("%s: answer of more than %d bytes", what, maxReply)
	}
	if resp.StatusCode/100 != 2 {
		return &StatusError{What: what, Status: resp.StatusCode, Text: errorText(raw)}
	}
	if out != nil {
		if err := json.Unmarshal(raw, out); err != nil {
			return fmt.Errorf("%s: answer is not what was asked for: %w", what, err)
		}
	}
	return nil
}

// errorText digs the words out of Ironic's error, JSON inside JSON (recorded).
func errorText(raw []byte) string {
	var outer struct {
		Message json.RawMessage `json:"error_message"`
	}
	text := raw
	if json.Unmarshal(raw, &outer) == nil && len(outer.Message) > 0 {
		text = outer.Message
		var inner string
		if json.Unmarshal(outer.Message, &inner) == nil {
			text = []byte(inner)
		}
	}
	var fault agent.Fault
	if json.Unmarshal(text, &fault) == nil && fault.Message != "" {
		text = []byte(fault.Message)
	}
	const longest = 300
	return strings.ToValidUTF8(string(text[:min(len(text), longest)]), "?")
}

// Minor asks for the server's newest microversion; IPA's fallback when it can't be told.
func (c *Client) Minor(ctx context.Context) (int, error) {
	var root struct {
		Default struct {
			Version string `json:"version"`
		} `json:"default_version"`
	}
	if err := c.do(ctx, "ask for the API version", http.MethodGet, c.base+"/", 0, nil, &root, nil); err != nil {
		return fallbackMinor, err
	}
	major, minor, _ := strings.Cut(root.Default.Version, ".")
	n, err := strconv.Atoi(minor)
	if major != "1" || err != nil {
		return fallbackMinor, nil
	}
	return n, nil
}

// Lookup asks who this machine is.
func (c *Client) Lookup(ctx context.Context, minor int, macs []string, nodeUUID string) (*agent.Lookup, error) {
	q := url.Values{"addresses": {strings.Join(macs, ",")}}
	if nodeUUID != "" {
		q.Set("node_uuid", nodeUUID)
	}
	h := http.Header{}
	h.Set(agent.HeaderBootID, c.bootID)
	if c.nonce != "" {
		h.Set(agent.HeaderNonce, c.nonce)
	}
	var out agent.Lookup
	if err := c.do(ctx, "lookup", http.MethodGet, c.base+"/v1/lookup?"+q.Encode(), min(minor, lookupMinor), nil, &out, h); err != nil {
		return nil, err
	}
	if out.Node.UUID == "" {
		return nil, errors.New("lookup: the answer names no node")
	}
	return &out, nil
}

// Heartbeat says that the agent is here.
func (c *Client) Heartbeat(ctx context.Context, minor int, nodeUUID string, h agent.Heartbeat) error {
	minor = min(minor, heartbeatMinor)
	if minor < heartbeatMinor {
		h.AgentVerifyCA = "" // added in 1.68
	}
	return c.do(ctx, "heartbeat", http.MethodPost, c.base+"/v1/heartbeat/"+url.PathEscape(nodeUUID), minor, h, nil, nil)
}

// Inspect posts the inventory. where is a path of the conductor or a whole URL.
func (c *Client) Inspect(ctx context.Context, minor int, where, token string, in agent.Inspection) error {
	h := http.Header{}
	if strings.HasPrefix(where, "/") { // our conductor's own; the token goes nowhere else
		where = c.base + where
		h.Set(tokenHeader, token)
	}
	return c.do(ctx, "post inventory", http.MethodPost, where, minor, in, nil, h)
}

// Events posts a batch of events.
func (c *Client) Events(ctx context.Context, path, token string, batch []event.Event) error {
	h := http.Header{}
	h.Set(tokenHeader, token)
	return c.do(ctx, "post events", http.MethodPost, c.base+path, 0, batch, nil, h)
}

// LocalAddress is the address by which the conductor reaches this machine: the
// one that packets to it leave from. Nothing is sent.
func (c *Client) LocalAddress() (string, error) {
	u, err := url.Parse(c.base)
	if err != nil {
		return "", err
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	conn, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return "", fmt.Errorf("no way to the conductor %s: %w", u.Host, err)
	}
	defer conn.Close() //nolint:errcheck // nothing was sent
	addr, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return "", errors.New("no local address")
	}
	return addr.IP.String(), nil
}
