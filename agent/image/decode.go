package image

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// pipelineMemory is what a write holds beside the decoder: the write buffers,
// read-aheads, head and tail.
const pipelineMemory = 20 << 20

// maxWindow is the largest window that is ever allocated: what zstd --long=27
// and --ultra -22 need.
const maxWindow = 128 << 20

// windowCap is how large a decoder's window may be within memory bytes. The
// decoders hold a little more than the window (measured: 9.1 MiB for 8).
func windowCap(memory int64) int64 {
	return min(max((memory-pipelineMemory)*4/5, 8<<20), maxWindow)
}

// decodeStage turns the source's bytes into the disk's.
type decodeStage struct {
	format string
	memory int64
	m      *meter
	in     *upstream
	r      io.Reader
	stop   func()
	ended  bool
}

// upstream is a decoder's input: it counts the time spent waiting for it and
// remembers its error, for decoders wrap or replace what they are given.
type upstream struct {
	r     io.Reader
	nanos atomic.Int64
	err   atomic.Pointer[error]
}

func (u *upstream) Read(p []byte) (int, error) {
	begin := time.Now()
	n, err := u.r.Read(p)
	u.nanos.Add(int64(time.Since(begin)))
	if err != nil && err != io.EOF {
		u.err.Store(&err)
	}
	return n, err
}

func (s *decodeStage) Wrap(r io.Reader) (io.Reader, error) {
	s.stop = func() {}
	in := &upstream{r: r}
	s.in = in
	var err error
	switch s.format {
	case Raw:
		s.r = in
	case Gzip:
		s.r, err = gzip.NewReader(bufio.NewReaderSize(in, 64<<10))
	case Zstd:
		var d *zstd.Decoder
		d, err = zstd.NewReader(in,
			zstd.WithDecoderConcurrency(min(runtime.GOMAXPROCS(0), 4)),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(uint64(windowCap(s.memory))))
		if err == nil {
			s.r, s.stop = d, d.Close
		}
	case XZ:
		s.r, err = xz.NewReader(bufio.NewReaderSize(in, 64<<10))
	case Bzip2:
		s.r = bzip2.NewReader(bufio.NewReaderSize(in, 64<<10))
	case LZ4:
		s.r = lz4.NewReader(in)
	default:
		return nil, fmt.Errorf("%w: no decoder for %s", ErrFormat, s.format)
	}
	if err != nil {
		return nil, s.explain(err)
	}
	return s, nil
}

func (s *decodeStage) Read(p []byte) (int, error) {
	begin, waited := time.Now(), s.in.nanos.Load()
	n, err := s.r.Read(p)
	own := time.Since(begin) - time.Duration(s.in.nanos.Load()-waited)
	s.m.add(max(own, 0), n)
	if err == io.EOF { //nolint:errorlint // a wrapped EOF is not an end
		s.ended = true
		return n, io.EOF
	}
	if err != nil {
		err = s.explain(err)
	}
	return n, err
}

// explain keeps the source's own errors and names the decoder in others.
func (s *decodeStage) explain(err error) error {
	if up := s.in.err.Load(); up != nil {
		return *up
	}
	switch {
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return windowError(Zstd, 0, s.memory)
	case s.format == Raw:
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%w: the %s data ends in the middle: the published file is truncated", ErrCorrupt, s.format)
	}
	return fmt.Errorf("%w: %s: %w", ErrCorrupt, s.format, err)
}

// Finish says whether the decoder reached its data's end and the data the
// file's.
func (s *decodeStage) Finish() error {
	if !s.ended {
		return fmt.Errorf("%w: the %s data has not ended", ErrCorrupt, s.format)
	}
	rest, err := io.Copy(io.Discard, s.in)
	if err != nil {
		return err
	}
	if rest > 0 {
		return fmt.Errorf("%w: %d bytes follow the end of the %s data", ErrCorrupt, rest, s.format)
	}
	return nil
}

func windowError(format string, window, memory int64) error {
	need := "more"
	if window > 0 {
		need = fmt.Sprintf("%d MiB", window>>20)
	}
	return fmt.Errorf("%w: unpacking this %s needs a window of %s, this write may use %d MiB (%d MiB of memory): compress the image without --long/--ultra (zstd) or at most at level 6 (xz), or give the machine more memory",
		ErrFormat, format, need, windowCap(memory)>>20, memory>>20)
}

// declared is what a compressed stream's header says.
type declared struct {
	size   int64 // bytes of the first frame; -1 unknown
	window int64 // bytes; 0 unknown
}

func inspectHeader(format string, b []byte) declared {
	switch format {
	case Zstd:
		var h zstd.Header
		for h.Decode(b) == nil {
			if h.Skippable {
				skip := int64(h.HeaderSize) + int64(h.SkippableSize)
				if skip >= int64(len(b)) {
					break
				}
				b = b[skip:]
				continue
			}
			d := declared{size: -1, window: int64(min(h.WindowSize, 1<<62))}
			if h.HasFCS {
				d.size = int64(min(h.FrameContentSize, 1<<62))
				if h.SingleSegment {
					d.window = d.size
				}
			}
			return d
		}
	case XZ:
		return declared{size: -1, window: xzDictionary(b)}
	}
	return declared{size: -1}
}

// xzDictionary reads the LZMA2 dictionary size of the first block's header
// (The .xz File Format 1.2.0, 3.1 and 5.3.1); 0 when it cannot be found.
func xzDictionary(b []byte) int64 {
	const streamHeader = 12
	if len(b) < streamHeader+2 || b[streamHeader] == 0 {
		return 0
	}
	h := b[streamHeader:min(len(b), streamHeader+(int(b[streamHeader])+1)*4)]
	flags, pos := h[1], 2
	skip := func() { // a variable-length integer
		for pos < len(h) && h[pos]&0x80 != 0 {
			pos++
		}
		pos++
	}
	if flags&0x40 != 0 {
		skip()
	}
	if flags&0x80 != 0 {
		skip()
	}
	for range int(flags&3) + 1 {
		if pos+2 >= len(h) {
			return 0
		}
		id, n := h[pos], int(h[pos+1])
		pos += 2
		if id == 0x21 && n == 1 {
			bits := h[pos] & 0x3f
			if bits >= 40 {
				return 4<<30 - 1
			}
			return int64(2|bits&1) << (bits/2 + 11)
		}
		pos += n
	}
	return 0
}
