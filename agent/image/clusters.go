package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/slipway-metal/slipway/agent/image/qcow2"
)

// openQCOW2 reads the image's tables by range requests.
func (a *attempt) openQCOW2(first []byte) error {
	h, err := qcow2.Parse(first[:min(len(first), qcow2.FirstBytes)], max(a.obj.Size(), 0))
	if err != nil {
		return qcowError(err)
	}
	if h.Size > a.dev.Size() {
		return tooLarge(h.Size, a.dev)
	}
	if !a.obj.Ranged() {
		return fmt.Errorf("%w: qcow2 is read by ranges and this server gives none (or no ETag or Last-Modified): serve it with range requests (nginx, Apache, S3), or publish the image as raw inside zstd", ErrFormat)
	}
	a.qcow, err = qcow2.Open(a.obj, first, a.obj.Size())
	return qcowError(err)
}

// qcowError adds this package's kinds to that one's.
func qcowError(err error) error {
	switch {
	case errors.Is(err, qcow2.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case errors.Is(err, qcow2.ErrRefused):
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return err
}

// copyClusters streams the file once: every byte passes the digest, and every
// cluster goes to its place as it comes by.
func (a *attempt) copyClusters(content io.Reader) error {
	a.imageBytes = a.qcow.Size
	var wg sync.WaitGroup
	defer wg.Wait() // no goroutine outlives its sink
	wg.Go(func() {
		for _, h := range a.qcow.Holes() {
			if err := a.sink.zeroNow(h.Off, alignTail(h, a.dev.Size())); err != nil {
				a.cancel(err)
				return
			}
		}
	})
	workers := min(runtime.GOMAXPROCS(0), 4)
	if a.qcow.ClusterSize > chunkSize { // batches of 2 MiB: fewer of them
		workers = min(workers, 2)
	}
	a.decoders = workers
	free := make(chan *qcow2.Batch, workers+2)
	for range cap(free) {
		free <- &qcow2.Batch{}
	}
	full := make(chan *qcow2.Batch)
	for range workers {
		wg.Go(func() {
			if err := a.decodeClusters(full, free); err != nil {
				a.cancel(err)
			}
		})
	}
	err := a.qcow.Stream(content, func() (*qcow2.Batch, error) {
		select {
		case b := <-free:
			return b, nil
		case <-a.ctx.Done():
			return nil, context.Cause(a.ctx)
		}
	}, func(b *qcow2.Batch) error {
		select {
		case full <- b:
			return nil
		case <-a.ctx.Done():
			return context.Cause(a.ctx)
		}
	})
	close(full)
	if err != nil {
		a.cancel(qcowError(err))
	}
	wg.Wait()
	return context.Cause(a.ctx)
}

// alignTail rounds a hole at the disk image's end up to what the device takes.
func alignTail(h qcow2.Range, size int64) int64 {
	return min(alignUp(h.Off+h.Len, Alignment), size) - h.Off
}

// decodeClusters is one of several goroutines that turn batches into writes.
func (a *attempt) decodeClusters(full <-chan *qcow2.Batch, free chan<- *qcow2.Batch) error {
	d, err := a.qcow.NewDecoder()
	if err != nil {
		return err
	}
	defer d.Close()
	for b := range full {
		d.Reset(b)
		for off := b.Off; ; {
			c, err := a.sink.get()
			if err != nil {
				return err
			}
			begin := time.Now()
			n, err := fill(d, c.b)
			a.decoding.add(time.Since(begin), n)
			if err != nil || n == 0 {
				a.sink.release(c)
				if err != nil {
					return qcowError(err)
				}
				break
			}
			padded := int(min(alignUp(int64(n), Alignment), a.dev.Size()-off))
			clear(c.b[n:padded])
			if err := a.sink.put(c, padded, off); err != nil {
				return err
			}
			off += int64(n)
			a.p.out(off)
		}
		free <- b
	}
	return nil
}
