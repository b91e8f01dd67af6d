package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/slipway-metal/slipway/conductor/boot/cpio"
	"github.com/slipway-metal/slipway/conductor/boot/dhcp"
	"github.com/slipway-metal/slipway/conductor/boot/ipxe"
	"github.com/slipway-metal/slipway/proto/event"
)

// Handler serves what machines fetch over HTTP. Mount it at MountPath.
//
//	GET /ipxe?mac=52:54:…      the script of a machine by its MAC; without mac one that asks with it
//	GET /{path}/script.ipxe    the script of one boot
//	GET /{path}/vmlinuz, initrd, config.cpio
//	GET /fw/{file}             iPXE for UEFI HTTP boot
func (s *Server) Handler() chi.Router {
	r := chi.NewRouter()
	r.Get("/ipxe", s.scriptByMAC)
	for _, method := range []func(string, http.HandlerFunc){r.Get, r.Head} {
		method("/fw/{file}", s.firmwareFile)
		method("/{path}/script.ipxe", s.byPath("script", s.scriptFile))
		method("/{path}/vmlinuz", s.byPath("kernel", kernelFile))
		method("/{path}/initrd", s.byPath("ramdisk", initrdFile))
		method("/{path}/config.cpio", s.byPath("configuration", configFile))
	}
	return r
}

// MountPath is where the conductor mounts Handler.
const MountPath = "/boot"

func (s *Server) url(elements ...string) string {
	return s.cfg.BaseURL + MountPath + "/" + strings.Join(elements, "/")
}

// content is something to serve. Close may be nil.
type content struct {
	io.ReadSeeker
	modified time.Time
	close    func() error
	mime     string
}

func inMemory(raw []byte, mime string) content {
	return content{ReadSeeker: bytes.NewReader(raw), mime: mime}
}

func openFile(name string) (content, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return content{}, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		_ = f.Close()
		return content{}, 0, err
	}
	return content{ReadSeeker: f, modified: info.ModTime(), close: f.Close, mime: "application/octet-stream"}, info.Size(), nil
}

func kernelFile(p Plan) (content, error) {
	c, _, err := openFile(p.Kernel)
	return c, err
}

// initrdFile pads the ramdisk: behind it comes config.cpio, which the kernel
// finds at a multiple of 4 bytes only. iPXE aligns under BIOS, but the EFI stub
// of the kernel joins its ramdisks without a gap.
func initrdFile(p Plan) (content, error) {
	c, size, err := openFile(p.Initrd)
	if err == nil {
		if pad := cpio.Pad(size); pad > 0 {
			c.ReadSeeker = &padded{file: c.ReadSeeker, size: size, pad: pad}
		}
	}
	return c, err
}

func configFile(p Plan) (content, error) {
	raw, err := ConfigArchive(p.Config)
	return inMemory(raw, "application/octet-stream"), err
}

func (s *Server) scriptFile(p Plan) (content, error) {
	text, err := s.script(p)
	return inMemory([]byte(text), "text/plain; charset=utf-8"), err
}

// script is the iPXE script of a plan.
func (s *Server) script(p Plan) (string, error) {
	if !p.Netboot {
		return ipxe.Disk(), nil
	}
	if err := checkPath(p.Path); err != nil {
		return "", err
	}
	args := p.Cmdline
	if p.Config.BootMAC != "" {
		// PXELINUX's convention, which agents and installers read.
		args = append([]string{"BOOTIF=01-" + strings.ReplaceAll(p.Config.BootMAC, ":", "-")}, args...)
	}
	b := ipxe.Boot{Node: p.Node, Kernel: s.url(p.Path, "vmlinuz"), Args: args, Initrds: []ipxe.Initrd{
		{Name: "initrd", URL: s.url(p.Path, "initrd")},
		{Name: "config.cpio", URL: s.url(p.Path, "config.cpio")},
	}}
	text, err := b.Script()
	if err != nil {
		return "", fmt.Errorf("boot script of node %s: %w", p.Node, err)
	}
	return text, nil
}

// checkPath keeps the secret to characters that mean nothing in a URL or script.
func checkPath(path string) error {
	if len(path) < 16 || len(path) > 128 {
		return fmt.Errorf("a boot's path has %d characters: want 16 to 128", len(path))
	}
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return errors.New("a boot's path has characters other than letters, digits, - and _")
	}
	return nil
}

// byPath serves one file of the boot that the URL's secret names.
func (s *Server) byPath(what string, open func(Plan) (content, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		path := chi.URLParam(r, "path")
		if checkPath(path) != nil {
			http.NotFound(w, r)
			return
		}
		p, err := s.cfg.Resolver.ResolvePath(r.Context(), path)
		if err == nil && !p.Netboot && what != "script" {
			err = ErrNoBoot
		}
		if errors.Is(err, ErrNoBoot) {
			s.tell(r, p, "", event.Evidence{Hop: event.HopHTTP, Fact: what + " refused", Detail: map[string]any{
				"error": "the machine asks for a boot that is over or unknown"}})
			http.NotFound(w, r)
			return
		}
		var c content
		if err == nil {
			c, err = open(p)
		}
		if err != nil {
			s.unavailable(w, r, p, what, err)
			return
		}
		s.serve(w, r, p, "", what, c)
	}
}

// scriptByMAC serves machines whose iPXE was started by something other than our DHCP.
func (s *Server) scriptByMAC(w http.ResponseWriter, r *http.Request) {
	asked := r.URL.Query().Get("mac")
	if asked == "" {
		s.serve(w, r, Plan{}, "", "script", inMemory([]byte(ipxe.AskMAC(s.url("ipxe"))), "text/plain; charset=utf-8"))
		return
	}
	mac, ok := cleanMAC(asked)
	if !ok {
		http.Error(w, "mac: want six hexadecimal bytes, as 52:54:00:12:34:56", http.StatusBadRequest)
		return
	}
	p, err := s.cfg.Resolver.Resolve(r.Context(), Request{MAC: mac, IP: remoteIP(r), Arch: dhcp.ArchNone, Stage: StageScript})
	text := ""
	if err == nil {
		text, err = s.script(p)
	}
	if err != nil {
		// A machine that is told nothing would go on to whatever is on its disk.
		s.tell(r, p, mac, event.Evidence{Hop: event.HopHTTP, Fact: "script delayed", Detail: map[string]any{"error": err.Error()}})
		if text, err = ipxe.Wait(s.url("ipxe") + "?mac=" + url.QueryEscape(mac)); err != nil {
			s.unavailable(w, r, p, "script", err)
			return
		}
	}
	s.serve(w, r, p, mac, "script", inMemory([]byte(text), "text/plain; charset=utf-8"))
}

// firmwareFile serves iPXE to UEFI HTTP boot, which goes by the media type (UEFI 2.10 §24.7.4).
func (s *Server) firmwareFile(w http.ResponseWriter, r *http.Request) {
	name := chi.URLParam(r, "file")
	raw, ok := s.firmware[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	mime := "application/octet-stream"
	if strings.HasSuffix(name, ".efi") {
		mime = "application/efi"
	}
	s.serve(w, r, Plan{}, s.macOf(remoteIP(r)), name, inMemory(raw, mime))
}

func (s *Server) unavailable(w http.ResponseWriter, r *http.Request, p Plan, what string, err error) {
	s.tell(r, p, "", event.Evidence{Hop: event.HopHTTP, Fact: what + " failed", Detail: map[string]any{"error": err.Error()}})
	// The reason is for the operator's eyes, in the evidence.
	http.Error(w, "not available now; see the conductor's log", http.StatusServiceUnavailable)
}

// serve sends c and tells how much of it left.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, p Plan, mac, what string, c content) {
	start := time.Now()
	if c.close != nil {
		defer func() { _ = c.close() }()
	}
	size, err := c.Seek(0, io.SeekEnd)
	if err != nil {
		s.unavailable(w, r, p, what, err)
		return
	}
	w.Header().Set("Content-Type", c.mime)
	w.Header().Set("Cache-Control", "no-store") // secrets, and made for one boot
	counted := &counter{ResponseWriter: w}
	http.ServeContent(counted, r, "", c.modified, c)
	if r.Method == http.MethodHead {
		return
	}
	s.tell(r, p, mac, served(what, counted, size, time.Since(start)))
}

// served words what was sent. A range counts as whole when all of it left.
func served(what string, c *counter, size int64, took time.Duration) event.Evidence {
	want := size
	if c.status == http.StatusPartialContent {
		want = c.length()
	}
	e := event.Evidence{Hop: event.HopHTTP, Fact: what + " served", OK: c.n == want && c.status < 300, Detail: map[string]any{
		"file": what, "bytes": c.n, "size": size, "seconds": took.Seconds(),
		"summary": fmt.Sprintf("%s served %s of %s in %.1f s", what, megabytes(c.n), megabytes(size), took.Seconds()),
	}}
	switch {
	case c.status == http.StatusNotModified:
		e.OK = true
	case c.status >= 300:
		e.Fact, e.Detail["error"] = what+" refused", "HTTP status "+fmt.Sprint(c.status)
	case !e.OK:
		e.Fact = what + " cut off"
		e.Detail["error"] = fmt.Sprintf("client closed at %d %%", 100*c.n/max(want, 1))
	}
	return e
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// tell records evidence with the request's address.
func (s *Server) tell(r *http.Request, p Plan, mac string, e event.Evidence) {
	ip := remoteIP(r)
	e.Detail["ip"] = ip.String()
	if mac == "" {
		mac = p.Config.BootMAC
	}
	if mac == "" {
		mac = s.macOf(ip)
	}
	s.record(context.WithoutCancel(r.Context()), p.Node, mac, e)
}

func remoteIP(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap()
}

// counter counts the bytes that the connection took. ReadFrom keeps sendfile.
type counter struct {
	http.ResponseWriter
	n      int64
	status int
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom.
func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.n += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// length is the announced Content-Length.
func (c *counter) length() int64 {
	var n int64
	if _, err := fmt.Sscan(c.Header().Get("Content-Length"), &n); err != nil {
		return -1
	}
	return n
}

// padded is a file with zeros behind it.
type padded struct {
	file      io.ReadSeeker
	size, pad int64
	at        int64
}

func (p *padded) Read(b []byte) (int, error) {
	switch {
	case p.at < p.size:
		n, err := p.file.Read(b[:min(int64(len(b)), p.size-p.at)])
		p.at += int64(n)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the file became shorter
		}
		return n, err
	case p.at < p.size+p.pad:
		n := int(min(int64(len(b)), p.size+p.pad-p.at))
		clear(b[:n])
		p.at += int64(n)
		return n, nil
	}
	return 0, io.EOF
}

func (p *padded) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += p.at
	case io.SeekEnd:
		offset += p.size + p.pad
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	if _, err := p.file.Seek(min(offset, p.size), io.SeekStart); err != nil {
		return 0, err
	}
	p.at = offset
	return offset, nil
}
