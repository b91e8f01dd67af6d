package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/proto/event"
	"github.com/slipway-metal/slipway/proto/ironic"
)

// client speaks to one conductor.
type client struct {
	base, user, password string
	http                 *http.Client
}

func newClient(base, user, password string) *client {
	return &client{strings.TrimSuffix(base, "/"), user, password, &http.Client{}}
}

// maxReply bounds one answer, bytes.
const maxReply = 64 << 20

func (c *client) request(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set(ironic.HeaderVersion, ironic.MaxVersion)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.user != "" {
		req.SetBasicAuth(c.user, c.password)
	}
	return c.http.Do(req)
}

// do sends body and decodes the answer into out (nil: ignored).
func (c *client) do(ctx context.Context, method, path string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	resp, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // the answer was read
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return ironic.ParseError(resp.StatusCode, raw)
	}
	if out == nil || len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("%s answered with something else than the JSON expected: %w", c.base, err)
	}
	return nil
}

// node finds a node by UUID, name, or a unique prefix of either.
func (c *client) node(ctx context.Context, ident string) (*ironic.Node, error) {
	var n ironic.Node
	err := c.do(ctx, http.MethodGet, "/v1/nodes/"+url.PathEscape(ident), nil, &n)
	if err == nil {
		return &n, nil
	}
	if !isNotFound(err) && !isBadRequest(err) {
		return nil, err
	}
	nodes, lerr := c.nodes(ctx, url.Values{"fields": {"uuid,name"}})
	if lerr != nil {
		return nil, err
	}
	var hits []string
	for _, x := range nodes {
		if strings.HasPrefix(x.UUID, ident) || strings.HasPrefix(x.Name, ident) {
			hits = append(hits, x.UUID)
		}
	}
	switch len(hits) {
	case 0:
		return nil, err
	case 1:
		err = c.do(ctx, http.MethodGet, "/v1/nodes/"+hits[0], nil, &n)
		return &n, err
	}
	return nil, usage(fmt.Sprintf("%q begins the name or UUID of %d nodes", ident, len(hits)), "write more of it")
}

func isNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

func isBadRequest(err error) bool { return hasStatus(err, http.StatusBadRequest) }

// nodes lists every page.
func (c *client) nodes(ctx context.Context, q url.Values) ([]ironic.Node, error) {
	var all []ironic.Node
	path := "/v1/nodes?" + q.Encode()
	for path != "" {
		var page ironic.NodeList
		if err := c.do(ctx, http.MethodGet, path, nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Nodes...)
		path = ""
		if page.Next != "" && len(page.Nodes) > 0 {
			u, err := url.Parse(page.Next)
			if err != nil {
				return nil, fmt.Errorf("the conductor's link to the next page: %w", err)
			}
			path = u.RequestURI() // its host may be the conductor's own view of itself
		}
	}
	return all, nil
}

// stream follows the events of a node ("" is all) into ch until ctx ends,
// reconnecting from the last id. It reports nothing: events are an extra, the
// state is polled.
func (c *client) stream(ctx context.Context, node string, ch chan<- event.Event) {
	defer close(ch)
	last := int64(-1)
	for ctx.Err() == nil {
		c.streamOnce(ctx, node, &last, ch)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (c *client) streamOnce(ctx context.Context, node string, last *int64, ch chan<- event.Event) {
	q := url.Values{}
	if node != "" {
		q.Set("node", node)
	}
	if *last >= 0 {
		q.Set("last_event_id", fmt.Sprint(*last))
	}
	resp, err := c.request(ctx, http.MethodGet, "/slipway/v1/events?"+q.Encode(), nil)
	if err != nil {
		return
	}
	defer resp.Body.Close() //nolint:errcheck // read until it ends
	if resp.StatusCode != http.StatusOK {
		return
	}
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		data, ok := strings.CutPrefix(sc.Text(), "data:")
		if !ok {
			continue
		}
		var e event.Event
		if json.Unmarshal([]byte(strings.TrimSpace(data)), &e) != nil || e.Kind == "" {
			continue
		}
		*last = max(*last, e.ID)
		select {
		case ch <- e:
		case <-ctx.Done():
			return
		}
	}
}
