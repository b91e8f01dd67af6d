// Package tftp serves iPXE's binaries to firmware (RFC 1350, 2347 to 2349). Names
// are looked up in a fixed map and never reach a file system, and nothing can be
// written.
package tftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	pin "github.com/pin/tftp/v3"

	"github.com/slipway-metal/slipway/conductor/boot/udp"
	"github.com/slipway-metal/slipway/proto/event"
)

// Port is TFTP's.
const Port = 69

// ErrNotServed is the answer for a name outside the map.
var ErrNotServed = errors.New("no such file here")

// Server serves files. Listen, then Serve.
type Server struct {
	Interface string
	Address   netip.Addr
	Files     map[string][]byte // by name without slash
	// Record takes evidence of what was sent to ip.
	Record func(ctx context.Context, ip netip.Addr, e event.Evidence)
	Log    *slog.Logger

	conn *net.UDPConn
}

// Listen opens the socket.
func (s *Server) Listen(ctx context.Context) error {
	conn, err := udp.Listen(ctx, s.Interface, s.Address, Port)
	if err != nil {
		return fmt.Errorf("TFTP: %w", err)
	}
	s.conn = conn
	return nil
}

// Serve answers until ctx ends. Transfers on the way are cut off.
func (s *Server) Serve(ctx context.Context) error {
	t := pin.NewServer(func(name string, to io.ReaderFrom) error { return s.send(ctx, name, to) }, nil)
	t.SetTimeout(time.Second)
	t.SetRetries(5)
	t.SetBackoff(func(int) time.Duration { return 0 }) // the timeout is the pause
	stop := context.AfterFunc(ctx, t.Shutdown)
	defer stop()
	err := t.Serve(s.conn)
	if ctx.Err() != nil {
		t.Shutdown() // waits for the transfers, which end at their next block
		return nil
	}
	if err != nil {
		return fmt.Errorf("TFTP on %s: %w", s.Interface, err)
	}
	return nil
}

// send serves one request.
func (s *Server) send(ctx context.Context, name string, to io.ReaderFrom) error {
	out := to.(pin.OutgoingTransfer)
	remote := out.RemoteAddr()
	ip, _ := netip.AddrFromSlice(remote.IP.To4())
	start := time.Now()
	clean := strings.TrimPrefix(strings.TrimSuffix(name, "\x00"), "/")
	data, ok := s.Files[clean]
	if !ok {
		s.record(ctx, ip, "file refused", false, map[string]any{"file": fmt.Sprintf("%.64q", name), "error": ErrNotServed.Error()})
		return ErrNotServed
	}
	file := &reader{ctx: ctx, Reader: bytes.NewReader(data)}
	n, err := to.ReadFrom(file)
	detail := map[string]any{"file": clean, "bytes": n, "size": len(data), "seconds": time.Since(start).Seconds()}
	switch {
	case err == nil && n == int64(len(data)):
		s.record(ctx, ip, "file served", true, detail)
	case file.blocks <= 1:
		// Firmware asks for the size (tsize), aborts, and comes again for the content.
		s.Log.DebugContext(ctx, "tftp: size asked for", "file", clean, "ip", ip)
	default:
		detail["error"] = fmt.Sprintf("cut off at %d %%: %v", 100*n/int64(max(len(data), 1)), err)
		s.record(ctx, ip, "file cut off", false, detail)
	}
	return err
}

func (s *Server) record(ctx context.Context, ip netip.Addr, what string, ok bool, detail map[string]any) {
	detail["ip"] = ip.String()
	level := slog.LevelInfo
	if !ok {
		level = slog.LevelWarn
	}
	s.Log.LogAttrs(ctx, level, "tftp: "+what, slog.Any("detail", detail))
	if s.Record != nil {
		s.Record(context.WithoutCancel(ctx), ip, event.Evidence{Hop: event.HopTFTP, Fact: what, OK: ok, Detail: detail})
	}
}

// reader ends with ctx and counts the blocks that were read.
type reader struct {
	*bytes.Reader
	ctx    context.Context
	blocks int
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	r.blocks++
	return r.Reader.Read(p)
}
