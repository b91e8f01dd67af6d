// Package probe finds out what is on a disk: partition tables, and the
// signatures of file systems, RAID, volume managers and encryption. It reads
// untrusted bytes and only ever a bounded number of them.
package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Kinds of content.
const (
	KindTable      = "partition table"
	KindPartition  = "partition"
	KindFilesystem = "filesystem"
	KindRAID       = "raid"
	KindVolume     = "volume manager"
	KindCrypt      = "encryption"
	KindSwap       = "swap"
)

// Hit is a signature found on a disk or partition.
type Hit struct {
	Kind, Type, Label string
	Offset            int64 // bytes, of the magic
}

// magic is one signature: where it lies and what it says.
type magic struct {
	kind, name string
	// at is its offset for a device of size bytes; negative when it can't be there.
	at    func(size int64) int64
	bytes string
	// labelAt is the label's offset from the device's start, labelLen its longest length.
	labelAt, labelLen int64
}

func from(off int64) func(int64) int64 { return func(int64) int64 { return off } }

// magics are from the formats' own documents; where a format has several places,
// each is a row. The order is that of naming them to people.
var magics = []magic{
	{KindFilesystem, "ext", from(0x438), "\x53\xef", 0x478, 16},
	{KindFilesystem, "xfs", from(0), "XFSB", 108, 12},
	{KindFilesystem, "btrfs", from(0x10040), "_BHRfS_M", 0x1012b, 256},
	{KindFilesystem, "vfat", from(82), "FAT32   ", 71, 11},
	{KindFilesystem, "vfat", from(54), "FAT16   ", 43, 11},
	{KindFilesystem, "vfat", from(54), "FAT12   ", 43, 11},
	{KindFilesystem, "ntfs", from(3), "NTFS    ", 0, 0},
	{KindFilesystem, "exfat", from(3), "EXFAT   ", 0, 0},
	{KindFilesystem, "f2fs", from(0x400), "\x10\x20\xf5\xf2", 0, 0},
	{KindFilesystem, "squashfs", from(0), "hsqs", 0, 0},
	{KindFilesystem, "iso9660", from(0x8001), "CD001", 0x8028, 32},
	{KindFilesystem, "bluestore", from(0), "bluestore block device", 0, 0},
	{KindVolume, "lvm", from(0x000), "LABELONE", 0, 0},
	{KindVolume, "lvm", from(0x200), "LABELONE", 0, 0},
	{KindVolume, "lvm", from(0x400), "LABELONE", 0, 0},
	{KindVolume, "lvm", from(0x600), "LABELONE", 0, 0},
	{KindVolume, "bcache", from(4096 + 24), "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", 0, 0},
	{KindCrypt, "luks", from(0), "LUKS\xba\xbe", 0, 0},
	{KindCrypt, "luks", from(0x4000), "SKUL\xba\xbe", 0, 0},
	{KindCrypt, "bitlocker", from(3), "-FVE-FS-", 0, 0},
	{KindSwap, "swap", from(4096 - 10), "SWAPSPACE2", 1052, 16},
	{KindSwap, "swap", from(65536 - 10), "SWAPSPACE2", 0, 0},
	// md: superblock 1.1, 1.2, 1.0 and 0.90 (md(4)).
	{KindRAID, "md", from(0), mdMagic, 0, 0},
	{KindRAID, "md", from(4096), mdMagic, 0, 0},
	{KindRAID, "md", func(size int64) int64 { return (size/512 - 16) &^ 7 * 512 }, mdMagic, 0, 0},
	{KindRAID, "md", func(size int64) int64 { return size&^65535 - 65536 }, mdMagic, 0, 0},
	// Firmware RAID: SNIA DDF and Intel's matrix RAID keep their anchors at the end.
	{KindRAID, "ddf", func(size int64) int64 { return size - 512 }, "\xde\x11\xde\x11", 0, 0},
	{KindRAID, "imsm", func(size int64) int64 { return size - 1024 }, "Intel Raid ISM Cfg Sig. ", 0, 0},
}

const mdMagic = "\xfc\x4e\x2b\xa9"

// Signatures finds every known signature on r, size bytes long.
func Signatures(r io.ReaderAt, size int64) ([]Hit, error) {
	var out []Hit
	for _, m := range magics {
		off := m.at(size)
		got, err := read(r, size, off, int64(len(m.bytes)))
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(got, []byte(m.bytes)) || !sane(r, size, m) {
			continue
		}
		hit := Hit{Kind: m.kind, Type: m.name, Offset: off}
		if m.labelLen > 0 {
			raw, err := read(r, size, m.labelAt, m.labelLen)
			if err != nil {
				return nil, err
			}
			hit.Label = label(raw)
		}
		out = append(out, hit)
	}
	zfs, err := zfsHits(r, size)
	if err != nil {
		return nil, err
	}
	return append(out, zfs...), nil
}

// sane guards the magics that are too short or too common to stand alone.
func sane(r io.ReaderAt, size int64, m magic) bool {
	switch m.name {
	case "ext": // the block size, log2 of KiB, is at most 6
		b, err := read(r, size, 0x418, 4)
		return err == nil && len(b) == 4 && binary.LittleEndian.Uint32(b) <= 6
	case "vfat", "ntfs", "exfat": // a boot sector
		b, err := read(r, size, 510, 2)
		return err == nil && string(b) == "\x55\xaa"
	}
	return true
}

// zfsHits looks through the four labels of 256 KiB, whose second half is an
// array of uberblocks (OpenZFS, vdev_label.c).
func zfsHits(r io.ReaderAt, size int64) ([]Hit, error) {
	const labelSize, ring, slot = 256 << 10, 128 << 10, 1 << 10
	const uberblock = 0x00bab10c
	aligned := size &^ (labelSize - 1)
	var out []Hit
	for _, start := range []int64{0, labelSize, aligned - 2*labelSize, aligned - labelSize} {
		buf, err := read(r, size, start+ring, ring)
		if err != nil {
			return nil, err
		}
		for o := 0; o+8 <= len(buf); o += slot {
			if binary.LittleEndian.Uint64(buf[o:]) == uberblock || binary.BigEndian.Uint64(buf[o:]) == uberblock {
				out = append(out, Hit{Kind: KindVolume, Type: "zfs", Offset: start + ring + int64(o)})
				break
			}
		}
	}
	return out, nil
}

// read gives n bytes at off; fewer (or none) where the device ends, which is no error.
func read(r io.ReaderAt, size, off, n int64) ([]byte, error) {
	if off < 0 || off >= size {
		return nil, nil
	}
	buf := make([]byte, min(n, size-off))
	got, err := r.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return buf[:got], nil
}

// label makes a label of untrusted bytes fit to be shown.
func label(raw []byte) string {
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		raw = raw[:i]
	}
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || (c >= 0x80 && c < 0xa0) || c == '\uFFFD' {
			return -1
		}
		return c
	}, strings.ToValidUTF8(string(raw), "")))
}
