// Package image writes a whole-disk image from a URL onto a disk: raw, or raw
// inside gzip, xz, zstd, bzip2 or lz4, or qcow2, told apart by content. The
// image is never held whole, in memory or on disk.
//
// Bytes flow through stages (source, digest, decode, zero detection, aligned
// writes), each with its own counters; attempt.finish alone declares success,
// after length, digest, the decoder's end and the flush. What makes a disk
// bootable (the first and last MiB: MBR, GPT and its backup) is wiped first
// and written last, so that no failure leaves a disk that boots half an image.
//
// The package keeps no state and knows nothing of the agent around it.
package image

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/slipway-metal/slipway/agent/image/source"
	"github.com/slipway-metal/slipway/agent/image/table"
)

// Alignment of buffers, offsets and lengths that reach a Device, in bytes.
// O_DIRECT asks for the logical block size; 4096 serves every disk.
const Alignment = 4096

// Device is the disk to write. Offsets and lengths are bytes. Every buffer
// handed to ReadAt and WriteAt starts at an address that is a multiple of
// Alignment; every offset and length is a multiple of Alignment too, but for a
// piece that ends at the device's end, whose length may be a multiple of
// SectorSize only. Several calls run at once, never on overlapping ranges.
type Device interface {
	io.ReaderAt // must not be answered from a cache, or verification means nothing
	io.WriterAt
	// Size is the disk's length.
	Size() int64
	// SectorSize is the logical sector's length, 512 or 4096.
	SectorSize() int
	// Zero makes n bytes at off read back as zeros. Discard alone will not do
	// where the disk does not promise zeros.
	Zero(off, n int64) error
	// Flush returns when everything written is durable.
	Flush() error
}

// Digest names the expected digest of the bytes at the URL.
type Digest struct {
	Algo string `json:"algo"` // sha256, sha512, or md5 with Request.AllowMD5
	Hex  string `json:"hex"`
}

func (d Digest) String() string { return d.Algo + ":" + d.Hex }

// Request is one image to write.
type Request struct {
	// URLs are mirrors of the same bytes, tried in order.
	URLs   []string
	Digest Digest
	// DiskFormat is what the operator believes: "", "raw" or "qcow2". Content
	// that says otherwise is refused (CVE-2024-44082).
	DiskFormat string
	// Source has the HTTP client, its headers and its patience.
	Source source.Options
	// ConfigDrive is an ISO 9660 (or FAT) volume labelled config-2 that gets a
	// partition of its own at the disk's end; nil for none.
	ConfigDrive []byte

	AllowNoDigest bool // write without any digest; a restart is then impossible
	AllowMD5      bool // accept Digest.Algo md5

	// Memory is how many bytes the write may hold, decoder included; 0 means
	// 48 MiB. It bounds the window of zstd and the dictionary of xz.
	Memory int64
	// Restarts is how often the write may begin again from the first byte when
	// the source could not be resumed; 0 means 2, negative none.
	Restarts int

	Log *slog.Logger
}

// Report says what was done. Offsets and sizes are bytes.
type Report struct {
	URL          string        `json:"url"`    // redacted
	Format       string        `json:"format"` // e.g. "zstd"; "qcow2"
	Digest       Digest        `json:"digest"` // of the source's bytes, as computed; empty when none was asked for
	BytesIn      int64         `json:"bytes_in"`
	ImageBytes   int64         `json:"image_bytes"`   // length of the disk image
	BytesWritten int64         `json:"bytes_written"` // data handed to the disk
	BytesZero    int64         `json:"bytes_zero"`    // zeroed without sending zeros
	Seconds      float64       `json:"seconds"`
	Stages       []StageReport `json:"stages"`
	Bottleneck   string        `json:"bottleneck"`
	Resumes      int           `json:"resumes"`  // lost connections that were continued
	Restarts     int           `json:"restarts"` // times the write began again
	Verified     int           `json:"verified"` // pieces read back and compared

	Table       table.Kind        `json:"table"`
	DiskGUID    string            `json:"disk_guid,omitempty"`
	Partitions  []table.Partition `json:"partitions,omitempty"`
	ESP         *table.Partition  `json:"esp,omitempty"`
	ConfigDrive *table.Partition  `json:"config_drive,omitempty"`
}

// StageReport is one stage's share of the work.
type StageReport struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"` // busy, not waiting for another stage
	Bytes   int64   `json:"bytes"`
	Rate    float64 `json:"rate"` // bytes a second while busy
}

// Names of stages, as progress and reports print them.
const (
	StageNetwork = "network"
	StageDigest  = "digest"
	StageDecode  = "decode"
	StageDisk    = "disk"
)

// Phases of a write, the stage of event.Progress.
const (
	PhaseDownload = "download" // the first bytes: what is it, does it fit
	PhaseWrite    = "write"
	PhaseFlush    = "flush"
	PhaseVerify   = "verify"
	PhaseBoot     = "boot structures"
)

// Errors that callers tell apart.
var (
	ErrNoDigest = errors.New("image_info has no os_hash_value: give the image's sha256 or sha512 (os_hash_algo, os_hash_value), or allow images without a digest on purpose")
	ErrDigest   = errors.New("the image's digest is wrong")
	ErrTooLarge = errors.New("the image is larger than the disk")
	ErrFormat   = errors.New("the image's format is refused")
	ErrCorrupt  = errors.New("the image is damaged")
	ErrVerify   = errors.New("the disk does not hold what was written")
)

const (
	defaultMemory   = 48 << 20
	defaultRestarts = 2
)

func (r *Request) normalize() error {
	if len(r.URLs) == 0 {
		return errors.New("write image: image_info has no urls: give at least one http or https URL")
	}
	if r.Memory == 0 {
		r.Memory = defaultMemory
	}
	if r.Restarts == 0 {
		r.Restarts = defaultRestarts
	}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	if r.Source.Log == nil {
		r.Source.Log = r.Log
	}
	r.DiskFormat = strings.ToLower(r.DiskFormat)
	switch r.DiskFormat {
	case "", "raw", "qcow2":
	default:
		return fmt.Errorf("write image: disk_format %q: %w: use raw or qcow2", r.DiskFormat, ErrFormat)
	}
	if err := r.Digest.normalize(r.AllowNoDigest, r.AllowMD5); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	if r.ConfigDrive != nil {
		if err := checkConfigDrive(r.ConfigDrive); err != nil {
			return fmt.Errorf("write image: %w", err)
		}
	}
	return nil
}

func (d *Digest) normalize(allowNone, allowMD5 bool) error {
	d.Algo, d.Hex = strings.ToLower(d.Algo), strings.ToLower(strings.TrimSpace(d.Hex))
	if d.Hex == "" {
		if allowNone {
			d.Algo = ""
			return nil
		}
		return ErrNoDigest
	}
	h, err := newHash(d.Algo)
	if err != nil {
		return err
	}
	if d.Algo == "md5" && !allowMD5 {
		return errors.New("os_hash_algo md5 is broken and not allowed here: use sha256 or sha512")
	}
	if b, err := hex.DecodeString(d.Hex); err != nil || len(b) != h.Size() {
		return fmt.Errorf("os_hash_value is not a %s in hex: want %d hex digits, got %d characters", d.Algo, 2*h.Size(), len(d.Hex))
	}
	return nil
}
