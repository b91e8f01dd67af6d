package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/slipway-metal/slipway/agent/image/qcow2"
	"github.com/slipway-metal/slipway/agent/image/source"
	"github.com/slipway-metal/slipway/agent/image/table"
)

// attempt is one pass from the source's first byte to a bootable disk.
type attempt struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	req    Request
	obj    *source.Object
	dev    Device
	p      *progress

	format string
	qcow   *qcow2.Image
	stages []Stage
	digest *digestStage // nil without a digest
	decode *decodeStage
	aheads []*ahead
	body   io.ReadCloser
	sink   *sink
	boot   *boot

	network, hashing, decoding, writing meter

	consumed atomic.Int64 // bytes of the source that decoding has taken
	decoders int          // goroutines that share decoding

	wrote      bool
	imageBytes int64
	verified   int
}

func newAttempt(ctx context.Context, cancel context.CancelCauseFunc, req Request, obj *source.Object, dev Device, p *progress) *attempt {
	a := &attempt{ctx: ctx, cancel: cancel, req: req, obj: obj, dev: dev, p: p}
	p.watch(a)
	return a
}

// run reads as the list of what a write is.
func (a *attempt) run() (Report, error) {
	a.p.phase(PhaseDownload)
	content, err := a.open()
	if err != nil {
		return Report{}, err
	}
	head, err := a.readHead(content)
	if err != nil {
		return Report{}, err
	}
	if a.boot, err = planBoot(head, a.req.ConfigDrive, a.dev); err != nil {
		return Report{}, err
	}
	// From here on the disk changes.
	a.p.phase(PhaseWrite)
	a.wrote = true
	if err := wipeEnds(a.dev); err != nil {
		return Report{}, err
	}
	if err := a.copy(content, head); err != nil {
		return Report{}, err
	}
	if err := a.finish(head); err != nil {
		return Report{}, err
	}
	return a.report(), nil
}

// open builds the chain of stages and looks at the first bytes.
func (a *attempt) open() (io.Reader, error) {
	a.body = a.obj.Stream()
	length := &lengthStage{want: a.obj.Size(), m: &a.network}
	r, err := length.Wrap(a.body)
	if err != nil {
		return nil, err
	}
	a.stages = append(a.stages, length)
	r = a.readAhead(r)
	if a.req.Digest.Hex != "" {
		h, err := newHash(a.req.Digest.Algo)
		if err != nil {
			return nil, err
		}
		a.digest = &digestStage{want: a.req.Digest, h: h, m: &a.hashing}
		if r, err = a.digest.Wrap(r); err != nil {
			return nil, err
		}
		a.stages = append(a.stages, a.digest)
		r = a.readAhead(r)
	}
	first := make([]byte, sniffLen)
	n, err := fill(r, first)
	if err != nil {
		return nil, err
	}
	first = first[:n]
	if n == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrCorrupt)
	}
	format, advice := sniff(first)
	if err := checkFormat(format, advice, a.req.DiskFormat); err != nil {
		return nil, err
	}
	a.format = format
	r = io.MultiReader(bytes.NewReader(first), r)
	r = &counted{r, &a.consumed}
	if format == QCOW2 {
		return r, a.openQCOW2(first)
	}
	if err := a.checkSizes(first); err != nil {
		return nil, err
	}
	if format == XZ {
		a.req.Log.Warn("image: xz unpacks at a fraction of any disk's speed on one core; publish the image as zstd to write it several times faster", "url", a.obj.String())
	}
	a.decode = &decodeStage{format: format, memory: a.req.Memory, m: &a.decoding}
	a.stages = append(a.stages, a.decode)
	return a.decode.Wrap(r)
}

// counted counts what is read through it.
type counted struct {
	r io.Reader
	n *atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func (a *attempt) readAhead(r io.Reader) io.Reader {
	ahead := newAhead(a.ctx, r)
	a.aheads = append(a.aheads, ahead)
	return ahead
}

// checkSizes refuses by what the headers say what cannot fit.
func (a *attempt) checkSizes(first []byte) error {
	d := inspectHeader(a.format, first)
	if a.format == Raw {
		d.size = a.obj.Size()
	}
	if d.size > a.dev.Size() {
		return tooLarge(d.size, a.dev)
	}
	if d.size > 0 {
		a.p.all(d.size)
	}
	if d.window > windowCap(a.req.Memory) {
		return windowError(a.format, d.window, a.req.Memory)
	}
	return nil
}

func tooLarge(size int64, dev Device) error {
	return fmt.Errorf("%w: the image has %d bytes, disk%s has %d: choose a larger disk or shrink the image", ErrTooLarge, size, deviceName(dev), dev.Size())
}

// readHead reads the image's first bytes, which say whether it can be booted
// from this disk, before anything is written.
func (a *attempt) readHead(content io.Reader) ([]byte, error) {
	head := make([]byte, table.HeadSize)
	if a.qcow != nil {
		return head, a.qcow.ReadHead(a.obj, head)
	}
	n, err := fill(content, head)
	if err != nil {
		return nil, err
	}
	a.imageBytes = int64(n)
	if err := checkInner(head[:n], a.format); err != nil {
		return nil, err
	}
	return head, nil // zeros follow a shorter image
}

// copy streams everything behind the head onto the disk and ends when the
// device has it all.
func (a *attempt) copy(content io.Reader, head []byte) error {
	a.sink = newSink(a.ctx, a.cancel, a.dev, newSamples(), &a.writing)
	var err error
	if a.qcow != nil {
		err = a.copyClusters(content)
	} else {
		copy(a.sink.head, head)
		err = a.copyStream(content)
	}
	if err != nil {
		return err
	}
	return a.sink.finish()
}

func (a *attempt) copyStream(content io.Reader) error {
	for off := a.imageBytes; ; {
		c, err := a.sink.get()
		if err != nil {
			return err
		}
		n, err := fill(content, c.b)
		if err != nil || n == 0 {
			a.sink.release(c)
			return err
		}
		if off < table.HeadSize { // a short head was the whole image
			a.sink.release(c)
			return fmt.Errorf("%w: data follows its end", ErrCorrupt)
		}
		a.imageBytes = off + int64(n)
		if a.imageBytes > a.dev.Size() {
			a.sink.release(c)
			return fmt.Errorf("%w: unpacking passed the %d bytes of disk%s: choose a larger disk or shrink the image", ErrTooLarge, a.dev.Size(), deviceName(a.dev))
		}
		padded := int(min(alignUp(int64(n), Alignment), a.dev.Size()-off))
		clear(c.b[n:padded])
		if err := a.sink.put(c, padded, off); err != nil {
			return err
		}
		off += int64(n)
		a.p.out(a.imageBytes)
	}
}

// fill reads until p is full or the content ends. It exists because
// io.ReadFull reports a short last piece by the same io.ErrUnexpectedEOF as a
// cut connection; here only a real end is no error.
func fill(r io.Reader, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := r.Read(p[n:])
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// abandon ends every goroutine after a failure and makes sure that nothing on
// the disk looks bootable. The context is cancelled already.
func (a *attempt) abandon() {
	a.close()
	if a.boot != nil && a.boot.begun {
		if err := wipeEnds(a.dev); err != nil {
			a.req.Log.Error("image: the disk's ends could not be wiped after a failure; it may look bootable", "error", err)
		}
	}
}

// close ends the goroutines; the context must be done or the content read.
func (a *attempt) close() {
	if a.sink != nil {
		a.sink.stop()
	}
	if a.decode != nil && a.decode.stop != nil {
		a.decode.stop()
	}
	for _, r := range a.aheads {
		r.wait()
	}
	if a.body != nil {
		_ = a.body.Close() // read only; its error was reported by Read
	}
	_ = a.obj.Close()
}
