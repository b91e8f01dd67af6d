package image

import (
	"bytes"
	"context"
	"fmt"
	"slices"
)

// finish is the only place that declares success: every stage saw the whole,
// the disk has it durably and gives it back, and only then is it bootable.
func (a *attempt) finish(head []byte) error {
	for _, s := range slices.Backward(a.stages) { // a decoder's end first: it reads the last bytes
		if err := s.Finish(); err != nil {
			return err
		}
	}
	if !bytes.Equal(a.sink.head, head) { // qcow2's head was read before the stream
		return fmt.Errorf("%w: its first bytes changed while it was read", ErrCorrupt)
	}
	a.p.phase(PhaseFlush)
	if err := flush(a.dev); err != nil {
		return err
	}
	a.p.phase(PhaseVerify)
	var err error
	a.verified, err = a.sink.samples.verify(a.dev, func() error { return context.Cause(a.ctx) })
	if err != nil {
		return err
	}
	a.p.phase(PhaseBoot)
	if err := a.boot.reuse(a.sink, a.req.ConfigDrive); err != nil {
		return err
	}
	if a.boot.drive != nil {
		if err := a.boot.writeDrive(a.sink, a.req.ConfigDrive); err != nil {
			return err
		}
		if err := flush(a.dev); err != nil {
			return err
		}
	}
	if err := context.Cause(a.ctx); err != nil {
		return err
	}
	if err := a.boot.commit(a.sink); err != nil {
		return err
	}
	a.close()
	return nil
}

func (a *attempt) report() Report {
	t := a.boot.table
	r := Report{
		URL: a.obj.String(), Format: a.format,
		BytesIn: a.network.bytes.Load(), ImageBytes: a.imageBytes,
		BytesWritten: a.writing.bytes.Load() + int64(len(a.sink.head)+len(a.sink.tail)) + int64(len(a.req.ConfigDrive)),
		BytesZero:    a.sink.zeroed.Load(),
		Stages:       a.stageReports(), Bottleneck: a.bottleneck(),
		Resumes: a.obj.Resumes(), Verified: a.verified,
		Table: t.Kind, DiskGUID: t.DiskGUID, Partitions: t.Partitions, ConfigDrive: a.boot.drive,
	}
	if a.digest != nil {
		r.Digest = a.digest.sum()
	}
	if p, ok := t.ESP(); ok {
		r.ESP = &p
	}
	return r
}

// stageReports lists what each stage did. The time of a stage with several
// workers is divided by their number: equal to the wall clock when all are busy.
func (a *attempt) stageReports() []StageReport {
	list := []struct {
		name    string
		m       *meter
		workers int
	}{
		{StageNetwork, &a.network, 1},
		{StageDigest, &a.hashing, 1},
		{StageDecode, &a.decoding, max(a.decoders, 1)},
		{StageDisk, &a.writing, queueDepth},
	}
	var out []StageReport
	for _, x := range list {
		if x.m.bytes.Load() > 0 {
			out = append(out, stageReport(x.name, x.m, float64(x.workers)))
		}
	}
	return out
}

func stageReport(name string, m *meter, workers float64) StageReport {
	r := StageReport{Name: name, Seconds: float64(m.nanos.Load()) / 1e9 / workers, Bytes: m.bytes.Load()}
	if r.Seconds > 0 {
		r.Rate = float64(r.Bytes) / r.Seconds
	}
	return r
}

// bottleneck is the stage that was busy longest: the others waited for it.
func (a *attempt) bottleneck() string {
	name, most := "", -1.0
	for _, s := range a.stageReports() {
		if s.Seconds > most {
			name, most = s.Name, s.Seconds
		}
	}
	return name
}
