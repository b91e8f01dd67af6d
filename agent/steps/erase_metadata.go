package steps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/slipway-metal/slipway/agent/events"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/agent/probe"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// endSize is what is wiped at each end of a disk and of each partition, bytes:
// it holds GPT and MBR (of 4 KiB sectors too), all md superblocks, two ZFS labels
// of 256 KiB, LVM's and LUKS2's headers, and what boot loaders put behind an MBR.
const endSize = 2 << 20

// aroundSize is what is wiped at a signature found elsewhere, bytes.
const aroundSize = 64 << 10

// btrfsMirrors are the other places of btrfs superblocks, bytes.
var btrfsMirrors = []int64{64 << 20, 256 << 30}

// Erased is what became of one disk.
type Erased struct {
	Disk    agent.DiskIdentity  `json:"disk"`
	Found   []agent.DiskContent `json:"found"`             // before
	Bytes   int64               `json:"bytes"`             // wiped
	Skipped string              `json:"skipped,omitempty"` // why nothing was
}

func eraseMetadata() Step {
	return New(Meta{
		Name: "erase_devices_metadata", Interface: "deploy", Destructive: true,
		Priority: map[Kind]int{Clean: 10, Deploy: 0, Service: 0},
	}, func(ctx context.Context, h host.Host, _ None) (Result, error) {
		return eachDisk(ctx, h, "erase_devices_metadata", eraseDiskMetadata)
	})
}

// eachDisk treats every disk the step may write to; a failure on one does not
// spare the others, and makes the step fail.
func eachDisk(ctx context.Context, h host.Host, step string, treat func(ctx context.Context, h host.Host, d agent.Disk) (Erased, error)) (Result, error) {
	found, err := h.Disks(ctx)
	if err != nil {
		return Result{}, err
	}
	disks, _, err := orders.Select(h, found)
	if err != nil {
		return Result{}, err
	}
	results, errs := map[string]Erased{}, []error(nil)
	for i, d := range disks {
		events.Report(ctx, event.Progress{Step: step, Stage: d.Name, Done: int64(i), Total: int64(len(disks)), Percent: 100 * float64(i) / float64(len(disks))})
		r, err := treat(ctx, h, d)
		r.Disk, r.Found = d.Identity(), d.Content
		switch {
		case errors.Is(err, host.ErrReadOnly):
			r.Skipped = "read-only"
		case err != nil:
			errs = append(errs, fmt.Errorf("disk %s: %w", d.Name, err))
		}
		results[d.Name] = r
		if ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Result{}, err
	}
	return Result{Value: results}, ctx.Err()
}

// span is a range of a disk, bytes.
type span struct{ off, end int64 }

func eraseDiskMetadata(ctx context.Context, h host.Host, d agent.Disk) (e Erased, err error) {
	dev, err := h.OpenWrite(ctx, d)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	r, err := h.OpenRead(ctx, d)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	table, err := probe.ReadTable(r, dev.Size(), dev.SectorSize())
	if err != nil {
		return e, err
	}
	spans, err := metadata(r, dev.Size(), table)
	if err != nil {
		return e, err
	}
	for _, s := range spans {
		s = align(s, dev.Size(), int64(dev.SectorSize()))
		if err := dev.Zero(s.off, s.end-s.off); err != nil {
			return e, err
		}
		e.Bytes += s.end - s.off
	}
	if err := dev.Flush(); err != nil {
		return e, err
	}
	if err := stillThere(r, dev.Size(), dev.SectorSize(), table); err != nil {
		return e, err
	}
	return e, dev.Reread()
}

// metadata lists what to wipe, partitions first and the disk's own table last:
// a run that is cut short still finds the partitions when it is repeated.
func metadata(r io.ReaderAt, size int64, table probe.Table) ([]span, error) {
	var out []span
	for _, p := range slices.Backward(table.Partitions) {
		part, err := signatures(io.NewSectionReader(r, p.Start, p.Size), p.Start, p.Size)
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
		out = append(out, ends(p.Start, p.Size)...)
	}
	whole, err := signatures(r, 0, size)
	if err != nil {
		return nil, err
	}
	return append(append(out, whole...), ends(0, size)...), nil
}

// ends are the two ends of a range, the far one first.
func ends(start, size int64) []span {
	n := min(endSize, size)
	return []span{{start + size - n, start + size}, {start, start + n}}
}

// signatures are the places of what is on a disk or partition beyond its ends.
func signatures(r io.ReaderAt, start, size int64) ([]span, error) {
	hits, err := probe.Signatures(r, size)
	if err != nil {
		return nil, err
	}
	var out []span
	for _, h := range hits {
		out = append(out, span{start + h.Offset, start + min(h.Offset+aroundSize, size)})
		if h.Type != "btrfs" {
			continue
		}
		for _, at := range btrfsMirrors {
			if at < size {
				out = append(out, span{start + at, start + min(at+aroundSize, size)})
			}
		}
	}
	return out, nil
}

// align widens a span to whole sectors.
func align(s span, size, sector int64) span {
	return span{s.off / sector * sector, min((s.end+sector-1)/sector*sector, size)}
}

// stillThere reads the disk again: what can still be found was not wiped.
func stillThere(r io.ReaderAt, size int64, sector int, old probe.Table) error {
	table, err := probe.ReadTable(r, size, sector)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if table.Scheme != "" {
		return fmt.Errorf("read back: the disk still has a partition table (%s) after it was wiped", table.Scheme)
	}
	ranges := []span{{0, size}}
	for _, p := range old.Partitions {
		ranges = append(ranges, span{p.Start, p.Start + p.Size})
	}
	for _, s := range ranges {
		hits, err := probe.Signatures(io.NewSectionReader(r, s.off, s.end-s.off), s.end-s.off)
		if err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		if len(hits) > 0 {
			return fmt.Errorf("read back: the disk still has a signature of %s at byte %d after it was wiped", hits[0].Type, s.off+hits[0].Offset)
		}
	}
	return nil
}
