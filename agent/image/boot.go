package image

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/slipway-metal/slipway/agent/image/table"
)

// configDriveName is the label by which cloud-init and others find a config
// drive, and the GPT name of its partition.
const configDriveName = "config-2"

// boot is the plan for what makes the disk bootable.
type boot struct {
	table *table.Table
	drive *table.Partition // where the config drive goes; nil for none
	added bool             // the partition is new
	begun bool             // the first boot structure may be on the disk
}

// planBoot decides, from the image's first bytes, the final partition table.
// It changes nothing.
func planBoot(head, drive []byte, dev Device) (*boot, error) {
	t, err := table.Parse(head, dev.SectorSize())
	if err == nil {
		err = t.Fit(dev.Size())
	}
	switch {
	case errors.Is(err, table.ErrTooSmall):
		return nil, fmt.Errorf("%w: %w", ErrTooLarge, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	b := &boot{table: t}
	if drive == nil {
		return b, nil
	}
	if p, ok := t.Find(configDriveName); ok {
		b.drive = &p
		return b, driveFits(p, drive)
	}
	p, err := t.Add(configDriveName, int64(len(drive)))
	if err != nil {
		return nil, fmt.Errorf("config drive of %d bytes: %w", len(drive), err)
	}
	p.Label = configDriveName
	b.drive, b.added = &p, true
	return b, nil
}

func driveFits(p table.Partition, drive []byte) error {
	if int64(len(drive)) > p.Size {
		return fmt.Errorf("config drive: the image's own partition %d for it has %d bytes, the config drive %d: enlarge it or leave it out of the image", p.Number, p.Size, len(drive))
	}
	return nil
}

// wipeEnds removes every boot structure, old or new, from both ends.
func wipeEnds(dev Device) error {
	tail := (dev.Size() - table.HeadSize) / Alignment * Alignment
	for _, at := range []struct{ off, n int64 }{{0, table.HeadSize}, {tail, dev.Size() - tail}} {
		for n := int64(0); n < at.n; {
			c := min(at.n-n, int64(len(zeros)))
			if err := writeAt(dev, zeros[:c], at.off+n); err != nil {
				return err
			}
			n += c
		}
	}
	return flush(dev)
}

func flush(dev Device) error {
	if err := dev.Flush(); err != nil {
		return diskError(dev, "flush", 0, err)
	}
	return nil
}

// reuse looks for a partition of the image that holds a volume labelled
// config-2 already; a second one would leave first-boot software guessing.
func (b *boot) reuse(s *sink, drive []byte) error {
	if b.drive == nil || !b.added {
		return nil
	}
	const span = 36 << 10 // where ISO 9660 and FAT keep their labels
	buf := alignedBuffer(span + Alignment)
	for _, p := range b.table.Partitions {
		from := p.Start / Alignment * Alignment
		if p.Number == b.drive.Number || p.Start < table.HeadSize || from+int64(len(buf)) > s.tailOff {
			continue
		}
		if err := readAt(s.dev, buf, from); err != nil {
			return err
		}
		if at := p.Start - from; !strings.EqualFold(volumeLabel(buf[at:at+span]), configDriveName) {
			continue
		}
		if err := driveFits(p, drive); err != nil {
			return err
		}
		b.table.Remove(b.drive.Number)
		p.Label = configDriveName
		b.drive, b.added = &p, false
		return nil
	}
	return nil
}

// writeDrive puts the config drive into its partition and zeros behind it.
func (b *boot) writeDrive(s *sink, drive []byte) error {
	buf := alignedBuffer(chunkSize)
	off := b.drive.Start
	for rest := drive; len(rest) > 0; {
		n := copy(buf, rest)
		rest = rest[n:]
		padded := int(min(alignUp(int64(n), Alignment), b.drive.End()-off))
		clear(buf[n:padded])
		if err := b.place(s, buf[:padded], off); err != nil {
			return err
		}
		off += int64(padded)
	}
	clear(buf)
	for b.added && off < b.drive.End() {
		n := min(b.drive.End()-off, chunkSize)
		if err := b.place(s, buf[:n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// place writes p at off, the part in the held-back ends into memory.
func (b *boot) place(s *sink, p []byte, off int64) error {
	if off < int64(len(s.head)) {
		n := copy(s.head[off:], p)
		p, off = p[n:], off+int64(n)
	}
	if off+int64(len(p)) > s.tailOff {
		keep := max(s.tailOff, off)
		copy(s.tail[keep-s.tailOff:], p[keep-off:])
		p = p[:keep-off]
	}
	if len(p) == 0 {
		return nil
	}
	if err := writeAt(s.dev, p, off); err != nil {
		return err
	}
	check := alignedBuffer(len(p))
	if err := readAt(s.dev, check, off); err != nil {
		return err
	}
	if !bytes.Equal(check, p) {
		return mismatch(s.dev, off, len(p))
	}
	return nil
}

// commit makes the disk bootable: the ends first, but for the sectors that
// firmware reads to find anything at all; those last. Each step is durable
// before the next, and all of it is read back.
func (b *boot) commit(s *sink) error {
	b.begun = true
	b.table.Primary(s.head)
	if off, data := b.table.Backup(); data != nil {
		copy(s.tail[off-s.tailOff:], data)
	}
	first := int64(2 * Alignment) // MBR and GPT header, whatever the sector size
	for _, step := range []struct {
		data []byte
		off  int64
	}{{s.tail, s.tailOff}, {s.head[first:], first}, {s.head[:first], 0}} {
		if err := writeAt(s.dev, step.data, step.off); err != nil {
			return err
		}
		if err := flush(s.dev); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		data []byte
		off  int64
	}{{s.head, 0}, {s.tail, s.tailOff}} {
		check := alignedBuffer(len(part.data))
		if err := readAt(s.dev, check, part.off); err != nil {
			return err
		}
		if !bytes.Equal(check, part.data) {
			return mismatch(s.dev, part.off, len(part.data))
		}
	}
	return nil
}
