// Package qmp is a small client of QEMU's machine protocol (QMP, QEMU
// docs/interop/qmp-spec): a unix socket, a greeting, commands with ids, and
// events. A client lives as long as its QEMU process; start a new one with Dial
// for the next process.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ErrClosed means that QEMU has gone or the client was closed.
var ErrClosed = errors.New("qmp connection closed")

// Error is QEMU's refusal of a command.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"` // GenericError, CommandNotFound, DeviceNotFound, …
	Desc    string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("qmp %s: %s: %s", e.Command, e.Class, e.Desc) }

// Event is something QEMU tells without being asked: RESET, SHUTDOWN, STOP, …
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time
}

// message is anything QEMU sends.
type message struct {
	Greeting *struct {
		Version json.RawMessage `json:"version"`
	} `json:"QMP"`
	ID        *uint64         `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *Error          `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// lineLimit bounds one message; QEMU's largest answers (qom-list, query-qmp-schema) are near 200 kB.
const lineLimit = 8 << 20

// eventBuffer is how many events wait for a slow reader before the oldest is dropped.
const eventBuffer = 64

// Client is one connection. Its methods may be called concurrently.
type Client struct {
	conn   net.Conn
	events chan Event
	done   chan struct{}

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan message
	cause   error // why done was closed
	closing sync.Once
}

// Dial connects to the socket at path and shakes hands. It keeps trying until ctx
// ends, for a QEMU that was only just started makes its socket a moment later.
func Dial(ctx context.Context, path string) (*Client, error) {
	var last error
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		c, err := dialOnce(ctx, path)
		if err == nil {
			return c, nil
		}
		last = err
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("qmp %s: %w (last attempt: %w)", path, ctx.Err(), last)
		case <-t.C:
		}
	}
}

func dialOnce(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c := &Client{
		conn: conn, events: make(chan Event, eventBuffer), done: make(chan struct{}),
		waiting: map[uint64]chan message{},
	}
	greeted := make(chan struct{})
	go c.read(greeted)
	// A second client of one socket is accepted by the kernel and greeted only
	// when the first leaves: the wait for the greeting has its own limit.
	t := time.NewTimer(5 * time.Second)
	defer t.Stop()
	select {
	case <-greeted:
	case <-c.done:
		return nil, c.closedErr()
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), c.Close())
	case <-t.C:
		return nil, errors.Join(errors.New("no greeting within 5 s: is another client connected?"), c.Close())
	}
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Events delivers events in order; when nobody reads, the oldest are dropped. The
// channel is closed when the connection ends.
func (c *Client) Events() <-chan Event { return c.events }

// Done is closed when QEMU has gone or Close was called.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection; QEMU goes on.
func (c *Client) Close() error { return c.shut(ErrClosed) }

func (c *Client) shut(cause error) (err error) {
	c.closing.Do(func() {
		c.mu.Lock()
		c.cause = cause
		c.mu.Unlock()
		close(c.done)
		err = c.conn.Close()
	})
	return err
}

func (c *Client) closedErr() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(c.cause, ErrClosed) {
		return c.cause
	}
	return fmt.Errorf("%w: %w", ErrClosed, c.cause)
}

// Execute runs a command and decodes its return value into out, unless nil. args
// is marshalled as the command's arguments, unless nil. An error is *Error when
// QEMU refused, and ErrClosed when it went away (which is what quit does).
func (c *Client) Execute(ctx context.Context, command string, args, out any) error {
	answer := make(chan message, 1)
	c.mu.Lock()
	c.nextID++
	id := c.nextID
	c.waiting[id] = answer
	line, err := json.Marshal(request{command, args, id})
	if err == nil {
		// Under the lock, so that lines do not mix. QEMU reads at once; the
		// deadline is for one that is stopped in a debugger.
		_ = c.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, err = c.conn.Write(append(line, '\n'))
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	if err != nil {
		return fmt.Errorf("qmp %s: %w: %w", command, ErrClosed, err)
	}
	var m message
	select {
	case m = <-answer:
	case <-c.done:
		select {
		case m = <-answer: // it came with the last breath
		default:
			return fmt.Errorf("qmp %s: %w", command, c.closedErr())
		}
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: no answer: %w", command, ctx.Err())
	}
	if m.Error != nil {
		m.Error.Command = command
		return m.Error
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return fmt.Errorf("qmp %s: answer: %w", command, err)
	}
	return nil
}

func (c *Client) read(greeted chan<- struct{}) {
	defer close(c.events)
	s := bufio.NewScanner(c.conn)
	s.Buffer(make([]byte, 64<<10), lineLimit)
	for s.Scan() {
		var m message
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			_ = c.shut(fmt.Errorf("not QMP: %w", err))
			return
		}
		switch {
		case m.Greeting != nil:
			if greeted != nil {
				close(greeted)
				greeted = nil
			}
		case m.Event != "":
			c.deliver(Event{m.Event, m.Data, time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
		case m.ID != nil:
			c.mu.Lock()
			ch := c.waiting[*m.ID]
			c.mu.Unlock()
			if ch != nil {
				ch <- m // capacity 1, one answer an id
				c.mu.Lock()
				delete(c.waiting, *m.ID)
				c.mu.Unlock()
			}
		}
	}
	err := s.Err()
	if err == nil {
		err = io.EOF
	}
	_ = c.shut(err)
}

// deliver drops the oldest event when nobody reads. Only read calls it.
func (c *Client) deliver(e Event) {
	for {
		select {
		case c.events <- e:
			return
		default:
		}
		select {
		case <-c.events:
		default:
		}
	}
}
