package steps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/slipway-metal/slipway/agent/events"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// zeroPiece is what is zeroed between two looks at the clock, bytes.
const zeroPiece = 64 << 20

// samples is how many places of a zeroed disk are read back.
const samples = 256

// eraseDevices overwrites whole disks with zeros. It says what it does: data is
// gone for everyone who reads the disk through its interface. Spare cells of a
// flash disk, which only the disk's own sanitize reaches, are not touched.
func eraseDevices() Step {
	return New(Meta{
		Name: "erase_devices", Interface: "deploy", Destructive: true,
		Priority: map[Kind]int{Clean: 0, Service: 0},
	}, func(ctx context.Context, h host.Host, _ None) (Result, error) {
		return eachDisk(ctx, h, "erase_devices", zeroDisk)
	})
}

func zeroDisk(ctx context.Context, h host.Host, d agent.Disk) (e Erased, err error) {
	dev, err := h.OpenWrite(ctx, d)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	size, start, said := dev.Size(), time.Now(), time.Now()
	for off := int64(0); off < size; off += zeroPiece {
		if ctx.Err() != nil {
			return e, fmt.Errorf("stopped at %d of %d bytes: %w", off, size, ctx.Err())
		}
		n := min(zeroPiece, size-off)
		if err := dev.Zero(off, n); err != nil {
			return e, err
		}
		e.Bytes += n
		if now := time.Now(); now.Sub(said) >= time.Second {
			said = now
			rate := float64(e.Bytes) / now.Sub(start).Seconds()
			events.Report(ctx, event.Progress{
				Step: "erase_devices", Stage: "zero " + d.Name, Done: e.Bytes, Total: size, BytesOut: e.Bytes,
				Percent: 100 * float64(e.Bytes) / float64(size), Rate: rate, ETA: float64(size-e.Bytes) / rate, Bottleneck: "disk",
			})
		}
	}
	if err := dev.Flush(); err != nil {
		return e, err
	}
	r, err := h.OpenRead(ctx, d)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := allZero(r, size); err != nil {
		return e, err
	}
	return e, dev.Reread()
}

// allZero reads samples spread over the disk, its first and last block among them.
func allZero(r host.Device, size int64) error {
	const block = 4096
	buf, zero := make([]byte, min(block, size)), make([]byte, block)
	last := size - int64(len(buf))
	for i := range int64(samples) {
		off := last / (samples - 1) * i / block * block
		if i == samples-1 {
			off = last
		}
		if _, err := r.ReadAt(buf, off); err != nil {
			return fmt.Errorf("read back at byte %d: %w", off, err)
		}
		if !bytes.Equal(buf, zero[:len(buf)]) {
			return fmt.Errorf("read back at byte %d: the disk took zeros and gives something else", off)
		}
	}
	return nil
}
