package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/agent/image/source"
	"github.com/slipway-metal/slipway/agent/image/table"
	"github.com/slipway-metal/slipway/proto/event"
)

// minDisk is the smallest disk that is written: both held-back ends and room
// between them.
const minDisk = 4 * table.HeadSize

// Write puts the image onto dev and returns when it is durable, verified and
// bootable. onProgress, which may be nil, is called from one goroutine at most
// once a second; a slow one does not slow the write.
//
// Nothing is written when the request, the source's first bytes or the sizes
// are wrong. After any later error the disk has no partition table.
func Write(ctx context.Context, req Request, dev Device, onProgress func(event.Progress)) (Report, error) {
	if err := req.normalize(); err != nil {
		return Report{}, err
	}
	if dev.Size() < minDisk {
		return Report{}, fmt.Errorf("write image: disk%s has %d bytes, at least %d are needed", deviceName(dev), dev.Size(), minDisk)
	}
	begin := time.Now()
	p := newProgress(onProgress)
	defer p.stop()

	// Several URLs are mirrors of the same bytes. What is wrong with one source
	// may be right with the next; what is wrong with the disk is not.
	var failures mirrorErrors // the last error of each URL
	restarts := 0
	for i := 0; i < len(req.URLs); {
		report, err := try(ctx, req, req.URLs[i], dev, p)
		if err == nil {
			report.Restarts = restarts
			report.Seconds = time.Since(begin).Seconds()
			return report, nil
		}
		failures = append(failures[:i], err)
		if ctx.Err() != nil || !mayTryAgain(req, err) {
			break
		}
		if lostForGood(err) && restarts < req.Restarts {
			restarts++
			req.Log.Warn("image: the source could not be resumed, writing again from the first byte", "attempt", restarts+1, "error", err)
			continue
		}
		i++
	}
	return Report{}, fmt.Errorf("write image: %w", failures)
}

// mirrorErrors are the errors of several mirrors, in their order.
type mirrorErrors []error

func (m mirrorErrors) Error() string {
	text := make([]string, len(m))
	for i, err := range m {
		text[i] = err.Error()
	}
	return strings.Join(text, "; then ")
}

func (m mirrorErrors) Unwrap() []error { return m }

// sourceFailure marks errors that another mirror of the image may not have.
type sourceFailure struct {
	error
	wrote bool // the disk was touched
}

func (s sourceFailure) Unwrap() error { return s.error }

// mayTryAgain says whether another pass could end better: the fault is the
// source's, and if the disk was touched, a digest will tell right from wrong.
func mayTryAgain(req Request, err error) bool {
	var f sourceFailure
	return errors.As(err, &f) && (!f.wrote || req.Digest.Hex != "")
}

// lostForGood is a connection that broke and cannot be continued, or content
// that changed under it: only the first byte is a place to go on.
func lostForGood(err error) bool {
	var e *source.Error
	return errors.Is(err, source.ErrChanged) ||
		errors.Is(err, source.ErrNoRanges) && errors.As(err, &e) && e.Attempts > 0
}

// try writes from one URL, once.
func try(ctx context.Context, req Request, url string, dev Device, p *progress) (Report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	obj, err := source.Open(ctx, url, req.Source)
	if err != nil {
		return Report{}, sourceFailure{err, false}
	}
	a := newAttempt(ctx, cancel, req, obj, dev, p)
	report, err := a.run()
	if err == nil {
		return report, nil
	}
	cancel(err)
	a.abandon()
	// The first error is the cause; what stages say after the cancel is its echo.
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return Report{}, a.blame(err)
}

// blame says whose fault err is.
func (a *attempt) blame(err error) error {
	var disk diskFailure
	var src *source.Error
	switch {
	case errors.As(err, &disk), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &src):
		return sourceFailure{err, a.wrote}
	case errors.Is(err, ErrDigest), errors.Is(err, ErrCorrupt), errors.Is(err, ErrFormat), errors.Is(err, ErrTooLarge):
		return sourceFailure{fmt.Errorf("image %s: %w", a.obj, err), a.wrote}
	}
	return fmt.Errorf("image %s: %w", a.obj, err)
}
