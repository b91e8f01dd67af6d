package image

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/slipway-metal/slipway/agent/image/table"
)

const (
	chunkSize  = 1 << 20   // bytes of one write buffer
	queueDepth = 4         // writes at the device at a time
	buffers    = 8         // chunks in all: being filled, queued, at the device
	granule    = 64 << 10  // zeros are looked for in pieces of this many bytes
	maxZero    = 256 << 20 // bytes of one Zero call, so that a cancelled write ends soon
)

// zeros is compared with and written by wipe; never changed.
var zeros = alignedBuffer(chunkSize)

// alignedBuffer makes n bytes whose address is a multiple of Alignment.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+Alignment)
	shift := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (Alignment - 1))
	return b[shift : shift+n : shift+n]
}

func alignUp(n, to int64) int64 { return (n + to - 1) / to * to }

// chunk is a pooled buffer that one or more writes read from.
type chunk struct {
	b    []byte // chunkSize bytes
	refs atomic.Int32
}

// job is one call to the device: a write of data, or a Zero when data is nil.
type job struct {
	from *chunk
	data []byte
	off  int64
	n    int64
}

// sink puts pieces of the image onto the device, in any order, a few at a
// time. It keeps back what would make the disk bootable: the first
// table.HeadSize bytes and the last ones.
type sink struct {
	ctx  context.Context
	fail context.CancelCauseFunc
	dev  Device
	size int64

	head, tail []byte // held back
	tailOff    int64

	pool chan *chunk
	jobs chan job
	wg   sync.WaitGroup

	zmu              sync.Mutex
	zeroOff, zeroLen int64 // run of zeros not yet handed on

	samples *samples
	m       *meter       // device time summed over queueDepth workers; bytes written
	zeroed  atomic.Int64 // bytes
}

func newSink(ctx context.Context, fail context.CancelCauseFunc, dev Device, samples *samples, m *meter) *sink {
	s := &sink{
		ctx: ctx, fail: fail, dev: dev, size: dev.Size(), samples: samples, m: m,
		pool: make(chan *chunk, buffers), jobs: make(chan job, buffers),
	}
	s.tailOff = (s.size - table.HeadSize) / Alignment * Alignment
	s.head = alignedBuffer(table.HeadSize)
	s.tail = alignedBuffer(int(s.size - s.tailOff))
	for range buffers {
		s.pool <- nil // allocated on first use
	}
	for range queueDepth {
		s.wg.Add(1)
		go s.work()
	}
	return s
}

// get waits for a free chunk.
func (s *sink) get() (*chunk, error) {
	select {
	case c := <-s.pool:
		if c == nil {
			c = &chunk{b: alignedBuffer(chunkSize)}
		}
		c.refs.Store(1)
		return c, nil
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

func (s *sink) release(c *chunk) {
	if c.refs.Add(-1) == 0 {
		s.pool <- c
	}
}

// put may be called by several goroutines. It takes over c, which came from get, and writes its first n bytes at off:
// runs of zeros as Zero, the disk's two ends into memory. Both numbers are
// multiples of Alignment, but at the device's end.
func (s *sink) put(c *chunk, n int, off int64) error {
	defer s.release(c)
	data := c.b[:n]
	if off < table.HeadSize {
		k := copy(s.head[off:], data)
		data, off = data[k:], off+int64(k)
	}
	if end := off + int64(len(data)); end > s.tailOff && len(data) > 0 {
		keep := max(s.tailOff, off)
		copy(s.tail[keep-s.tailOff:], data[keep-off:])
		data = data[:keep-off]
	}
	for len(data) > 0 {
		n, zero := run(data)
		var err error
		if zero {
			err = s.zero(off, int64(n))
		} else {
			c.refs.Add(1)
			if err = s.send(job{from: c, data: data[:n], off: off, n: int64(n)}); err != nil {
				s.release(c)
			}
		}
		if err != nil {
			return err
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// run is the length of data's first run of zeros or of anything else, in
// granules.
func run(data []byte) (n int, zero bool) {
	for n < len(data) {
		g := data[n:min(n+granule, len(data))]
		z := bytes.Equal(g, zeros[:len(g)])
		if n > 0 && z != zero {
			break
		}
		n, zero = n+len(g), z
	}
	return n, zero
}

// zero makes n bytes at off zero; neighbouring runs are joined.
func (s *sink) zero(off, n int64) error {
	s.zmu.Lock()
	defer s.zmu.Unlock()
	off, n = s.clearEnds(off, n)
	if n == 0 {
		return nil
	}
	if s.zeroLen > 0 && s.zeroOff+s.zeroLen == off && s.zeroLen+n <= maxZero {
		s.zeroLen += n
		return nil
	}
	if err := s.sendZeros(); err != nil {
		return err
	}
	for n > maxZero {
		if err := s.send(job{off: off, n: maxZero}); err != nil {
			return err
		}
		off, n = off+maxZero, n-maxZero
	}
	s.zeroOff, s.zeroLen = off, n
	return nil
}

// clearEnds zeroes what is held back of a range and returns the rest of it.
func (s *sink) clearEnds(off, n int64) (int64, int64) {
	if off < table.HeadSize {
		c := min(n, table.HeadSize-off)
		clear(s.head[off : off+c])
		off, n = off+c, n-c
	}
	if n > 0 && off+n > s.tailOff {
		keep := max(s.tailOff, off)
		clear(s.tail[keep-s.tailOff : off+n-s.tailOff])
		n = keep - off
	}
	return off, n
}

// zeroNow zeroes a range in the caller's goroutine, past the queue: a large
// hole must not hold up the data that streams in beside it.
func (s *sink) zeroNow(off, n int64) error {
	for off, n = s.clearEnds(off, n); n > 0; {
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		c := min(n, maxZero)
		if err := s.do(job{off: off, n: c}); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

// sendZeros hands on the open run; zmu is held.
func (s *sink) sendZeros() error {
	if s.zeroLen == 0 {
		return nil
	}
	j := job{off: s.zeroOff, n: s.zeroLen}
	s.zeroLen = 0
	return s.send(j)
}

func (s *sink) send(j job) error {
	select {
	case s.jobs <- j:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

func (s *sink) work() {
	defer s.wg.Done()
	for j := range s.jobs {
		if s.ctx.Err() == nil {
			if err := s.do(j); err != nil {
				s.fail(err)
			}
		}
		if j.from != nil {
			s.release(j.from)
		}
	}
}

func (s *sink) do(j job) error {
	begin := time.Now()
	defer func() { s.m.nanos.Add(int64(time.Since(begin))) }()
	if j.data == nil {
		if err := s.dev.Zero(j.off, j.n); err != nil {
			return diskError(s.dev, "zero", j.off, err)
		}
		s.zeroed.Add(j.n)
		s.samples.zero(j.off, j.n)
		return nil
	}
	s.samples.data(j.off, j.data)
	if err := writeAt(s.dev, j.data, j.off); err != nil {
		return err
	}
	s.m.bytes.Add(j.n)
	return nil
}

// finish hands on what is left and waits for the device. Call stop as well
// after a failure.
func (s *sink) finish() error {
	s.zmu.Lock()
	err := s.sendZeros()
	s.zmu.Unlock()
	s.stop()
	if err != nil {
		return err
	}
	return context.Cause(s.ctx)
}

func (s *sink) stop() {
	if s.jobs != nil {
		close(s.jobs)
		s.wg.Wait()
		s.jobs = nil
	}
}

// writeAt writes all of p or says at which sector it failed.
func writeAt(dev Device, p []byte, off int64) error {
	n, err := dev.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = fmt.Errorf("short write of %d of %d bytes", n, len(p))
	}
	if err != nil {
		return diskError(dev, "write", off, err)
	}
	return nil
}

// diskFailure marks errors of the device: neither another mirror nor a
// restart cures them.
type diskFailure struct{ error }

func (d diskFailure) Unwrap() error { return d.error }

func diskError(dev Device, op string, off int64, err error) error {
	return diskFailure{fmt.Errorf("disk%s: %s at byte %d (LBA %d): %w: replace the disk or choose another by root device hints",
		deviceName(dev), op, off, off/int64(dev.SectorSize()), err)}
}

func deviceName(dev Device) string {
	if s, ok := dev.(fmt.Stringer); ok {
		return " " + s.String()
	}
	return ""
}
