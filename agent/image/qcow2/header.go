// Package qcow2 reads QEMU's disk image format (docs/interop/qcow2.txt of
// QEMU) in the order of the file, not of the disk: the tables are fetched
// first by range reads, then the whole file passes once through a digest and
// every cluster goes to its place as it comes by. Nothing larger than the map
// of clusters is held.
//
// Images that name other files, are encrypted or use features this package
// does not know are refused: see CVE-2024-44082.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Magic is how every qcow2 file begins.
const Magic = "QFI\xfb"

// Errors that callers tell apart.
var (
	// ErrRefused: the image may be sound, but is not taken.
	ErrRefused = errors.New("qcow2 refused")
	// ErrCorrupt: the image contradicts itself.
	ErrCorrupt = errors.New("qcow2 damaged")
)

// Limits of what is read, so that a hostile header costs nothing.
const (
	headerV2 = 72       // bytes
	headerV3 = 104      // bytes
	maxL1    = 32 << 20 // bytes, QEMU's own limit
	// MaxExtents bounds the map of clusters: 16 bytes each, so 16 MiB. That is
	// 64 GiB of compressed clusters of 64 KiB; runs of plain ones count once.
	MaxExtents = 1 << 20
	// MinCluster is the smallest cluster written: what O_DIRECT can place.
	MinCluster = 4096
	// FirstBytes is how much of the file Parse wants to see.
	FirstBytes = 4096
)

// Incompatible feature bits.
const (
	featureDirty       = 1 << 0 // reference counts may be wrong; they are not used
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3
	featureExtendedL2  = 1 << 4
	featuresKnown      = featureDirty | featureCorrupt | featureDataFile | featureCompression | featureExtendedL2
)

// Header extensions that name or hide content.
const (
	extEnd        = 0
	extDataFile   = 0x44415441
	extEncryption = 0x0537be77
)

// Header is what of the file's header is used. Sizes are bytes.
type Header struct {
	Version     uint32
	ClusterSize int64
	Size        int64 // of the disk
	L1Offset    int64
	L1Entries   int64
	ExtendedL2  bool
	ZstdCluster bool // compressed clusters are zstd, not deflate
}

var be = binary.BigEndian

// Parse reads and judges a header. b holds the file's first bytes, fileSize
// the file's length.
func Parse(b []byte, fileSize int64) (Header, error) {
	if len(b) < headerV2 || string(b[:4]) != Magic {
		return Header{}, fmt.Errorf("%w: no complete header", ErrCorrupt)
	}
	h := Header{Version: be.Uint32(b[4:])}
	if h.Version != 2 && h.Version != 3 {
		return Header{}, fmt.Errorf("%w: version %d, known are 2 and 3", ErrRefused, h.Version)
	}
	if be.Uint64(b[8:]) != 0 || be.Uint32(b[16:]) != 0 {
		return Header{}, fmt.Errorf("%w: it has a backing file: flatten it with qemu-img convert -O qcow2", ErrRefused)
	}
	bits := be.Uint32(b[20:])
	if bits < 9 || bits > 21 {
		return Header{}, fmt.Errorf("%w: cluster_bits is %d, want 9 to 21", ErrCorrupt, bits)
	}
	h.ClusterSize = 1 << bits
	if h.ClusterSize < MinCluster {
		return Header{}, fmt.Errorf("%w: clusters of %d bytes, at least %d are needed: qemu-img convert -O qcow2 -o cluster_size=65536", ErrRefused, h.ClusterSize, MinCluster)
	}
	if m := be.Uint32(b[32:]); m != 0 {
		return Header{}, fmt.Errorf("%w: it is encrypted (method %d): publish a decrypted image", ErrRefused, m)
	}
	size, l1, l1off := be.Uint64(b[24:]), be.Uint32(b[36:]), be.Uint64(b[40:])
	if size == 0 || size > 1<<62 || size%512 != 0 {
		return Header{}, fmt.Errorf("%w: a virtual size of %d bytes", ErrCorrupt, size)
	}
	h.Size, h.L1Entries, h.L1Offset = int64(size), int64(l1), int64(l1off)
	if err := h.parseV3(b); err != nil {
		return Header{}, err
	}
	return h, h.checkL1(fileSize)
}

func (h *Header) parseV3(b []byte) error {
	length := headerV2
	if h.Version == 3 {
		if len(b) < headerV3 {
			return fmt.Errorf("%w: no complete header", ErrCorrupt)
		}
		length = int(min(be.Uint32(b[100:]), 1<<20))
		if length < headerV3 || length > len(b) || length%8 != 0 {
			return fmt.Errorf("%w: a header length of %d bytes", ErrCorrupt, length)
		}
		f := be.Uint64(b[72:])
		switch {
		case f&^featuresKnown != 0:
			return fmt.Errorf("%w: it needs features that are not known (bits %#x)", ErrRefused, f&^featuresKnown)
		case f&featureDataFile != 0:
			return fmt.Errorf("%w: its data is in another file: qemu-img convert -O qcow2", ErrRefused)
		case f&featureCorrupt != 0:
			return fmt.Errorf("%w: it is marked corrupt: qemu-img check", ErrCorrupt)
		}
		h.ExtendedL2 = f&featureExtendedL2 != 0
		compression := byte(0)
		if length > headerV3 {
			compression = b[104]
		}
		if compression > 1 || (compression != 0) != (f&featureCompression != 0) {
			return fmt.Errorf("%w: compression type %d is not known", ErrRefused, compression)
		}
		h.ZstdCluster = compression == 1
	}
	for pos := length; pos+8 <= len(b); {
		kind, n := be.Uint32(b[pos:]), int64(be.Uint32(b[pos+4:]))
		switch kind {
		case extEnd:
			return nil
		case extDataFile:
			return fmt.Errorf("%w: it names a data file: qemu-img convert -O qcow2", ErrRefused)
		case extEncryption:
			return fmt.Errorf("%w: it is encrypted: publish a decrypted image", ErrRefused)
		}
		next := int64(pos) + 8 + (n+7)/8*8
		if next > int64(len(b)) {
			return nil // QEMU's own extensions are far shorter; what follows is not interpreted
		}
		pos = int(next)
	}
	return nil
}

// entrySize is the length of an L2 entry in bytes.
func (h Header) entrySize() int64 {
	if h.ExtendedL2 {
		return 16
	}
	return 8
}

// perL2 is how many clusters one L2 table maps.
func (h Header) perL2() int64 { return h.ClusterSize / h.entrySize() }

// clusters is the disk's length in clusters, the last one maybe partial.
func (h Header) clusters() int64 { return (h.Size + h.ClusterSize - 1) / h.ClusterSize }

func (h Header) checkL1(fileSize int64) error {
	if h.clusters() > 1<<32 {
		return fmt.Errorf("%w: %d clusters of %d bytes are more than this program maps: use larger clusters", ErrRefused, h.clusters(), h.ClusterSize)
	}
	need := (h.clusters() + h.perL2() - 1) / h.perL2()
	switch {
	case h.L1Entries < need:
		return fmt.Errorf("%w: %d L1 entries, its size needs %d", ErrCorrupt, h.L1Entries, need)
	case need*8 > maxL1:
		return fmt.Errorf("%w: an L1 table of %d bytes, the limit is %d", ErrRefused, need*8, maxL1)
	case h.L1Offset <= 0 || h.L1Offset%h.ClusterSize != 0 || h.L1Offset > fileSize-need*8:
		return fmt.Errorf("%w: the L1 table at byte %d is outside of the file of %d bytes", ErrCorrupt, h.L1Offset, fileSize)
	}
	return nil
}
