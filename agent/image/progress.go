package image

import (
	"sync"
	"time"

	"github.com/slipway-metal/slipway/proto/event"
)

// rateWindow is over how many seconds the rate is taken.
const rateWindow = 5

// progress reports once a second from a goroutine of its own: the write never
// waits for a listener.
type progress struct {
	f    func(event.Progress)
	end  chan struct{}
	done chan struct{}

	mu       sync.Mutex
	a        *attempt
	stage    string
	imageOut int64
	imageAll int64   // bytes of the unpacked image, 0 when its headers don't say
	past     []int64 // Done, one a second, newest last
}

func newProgress(f func(event.Progress)) *progress {
	p := &progress{f: f, end: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

func (p *progress) run() {
	defer close(p.done)
	if p.f == nil {
		return
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if e, ok := p.event(); ok {
				p.f(e)
			}
		case <-p.end:
			return
		}
	}
}

// stop returns when no call is under way and none will come.
func (p *progress) stop() {
	close(p.end)
	<-p.done
}

func (p *progress) watch(a *attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.a, p.imageOut, p.imageAll, p.past = a, 0, 0, nil
}

func (p *progress) phase(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = s
}

func (p *progress) out(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.imageOut = max(p.imageOut, n)
}

// all notes the size of the unpacked image: progress is then told in its bytes.
func (p *progress) all(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.imageAll = n
}

// event measures by the image's own bytes where its headers give their number,
// else by the bytes that decoding has taken: those off the network run ahead of
// the disk by all that is queued between.
func (p *progress) event() (event.Progress, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.a == nil {
		return event.Progress{}, false
	}
	e := event.Progress{
		Step: "write_image", Stage: p.stage,
		Done: p.a.consumed.Load(), Total: max(p.a.obj.Size(), 0),
		BytesIn: p.a.network.bytes.Load(), BytesOut: p.imageOut,
		StageNanos: map[string]int64{},
	}
	if p.imageAll > 0 {
		e.Done, e.Total = p.imageOut, p.imageAll
	}
	if p.stage == PhaseWrite {
		for _, s := range p.a.stageReports() {
			e.StageNanos[s.Name] = int64(s.Seconds * 1e9)
		}
		e.Bottleneck = p.a.bottleneck()
	}
	p.past = append(p.past, e.Done)
	if len(p.past) > rateWindow+1 {
		p.past = p.past[1:]
	}
	if n := len(p.past) - 1; n > 0 {
		e.Rate = float64(p.past[n]-p.past[0]) / float64(n)
	}
	if e.Total > 0 {
		e.Percent = 100 * float64(e.Done) / float64(e.Total)
		if e.Rate > 0 {
			e.ETA = float64(e.Total-e.Done) / e.Rate
		}
	}
	return e, true
}
