package source

import (
	"context"
	"io"
	"sync"
)

// partSize is how many bytes one of several range requests asks for.
const partSize = 1 << 20

// parallel reads an object by several range requests at a time and gives the
// bytes in order. It holds Connections+1 parts.
type parallel struct {
	ctx    context.Context
	cancel context.CancelFunc
	order  chan *part // by offset
	free   chan *part
	wg     sync.WaitGroup

	cur *part
	pos int
	err error
}

type part struct {
	off  int64
	b    []byte
	n    int // bytes asked for
	err  error
	done chan struct{} // one token when b or err is set
}

func newParallel(o *Object) *parallel {
	ctx, cancel := context.WithCancel(o.ctx)
	n := o.opts.Connections
	p := &parallel{ctx: ctx, cancel: cancel, order: make(chan *part, n+1), free: make(chan *part, n+1)}
	for range n + 1 {
		p.free <- &part{done: make(chan struct{}, 1)}
	}
	todo := make(chan *part)
	for range n {
		p.wg.Go(func() {
			for x := range todo {
				_, x.err = o.ReadAt(x.b[:x.n], x.off)
				x.done <- struct{}{}
			}
		})
	}
	p.wg.Go(func() {
		defer close(p.order)
		defer close(todo)
		for off := int64(0); off < o.size; off += partSize {
			var x *part
			select {
			case x = <-p.free:
			case <-ctx.Done():
				return
			}
			if x.b == nil {
				x.b = make([]byte, partSize)
			}
			x.off, x.n = off, int(min(partSize, o.size-off))
			select {
			case todo <- x:
			case <-ctx.Done():
				return
			}
			p.order <- x // never blocks: there are as many places as parts
		}
	})
	return p
}

func (p *parallel) Read(b []byte) (int, error) {
	if p.cur != nil && p.pos == p.cur.n {
		p.free <- p.cur
		p.cur = nil
	}
	if p.cur == nil && p.err == nil {
		x, ok := <-p.order
		switch {
		case ok:
			<-x.done
			p.cur, p.pos, p.err = x, 0, x.err
		case p.ctx.Err() != nil:
			p.err = context.Cause(p.ctx)
		default:
			p.err = io.EOF
		}
	}
	if p.err != nil {
		return 0, p.err
	}
	n := copy(b, p.cur.b[p.pos:p.cur.n])
	p.pos += n
	return n, nil
}

// Close waits for the requests under way; they end with the Object's context.
func (p *parallel) Close() error {
	p.cancel()
	p.wg.Wait()
	return nil
}
