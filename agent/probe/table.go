package probe

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"
)

// Partition is one entry of a partition table. Offsets and sizes are bytes.
type Partition struct {
	Number      int // from 1
	Start, Size int64
	Type        string // GPT: the type's GUID; MBR: 0x and two hex digits
	GUID        string // GPT: unique GUID, lower case; MBR: "" (no identity)
	Label       string
}

// ESP is the partition type of an EFI system partition (UEFI 2.10, table 5-7).
const ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"

// IsESP says whether firmware would look for boot loaders here.
func (p Partition) IsESP() bool { return p.Type == ESP || p.Type == "0xef" }

// Table is a disk's partition table.
type Table struct {
	Scheme     string // gpt, mbr, or "" for none
	Partitions []Partition
	// Backup: the GPT was read from the backup header as the primary one is damaged.
	Backup bool
}

const (
	maxEntries     = 256 // of a GPT; the usual number is 128
	maxEntrySize   = 4096
	maxLogicals    = 128 // of an MBR's extended partition
	gptHeaderSize  = 92
	protectiveType = 0xee
)

// ReadTable reads the partition table of a disk of size bytes with logical
// sectors of sector bytes. A disk without one gives an empty Table.
func ReadTable(r io.ReaderAt, size int64, sector int) (Table, error) {
	if sector < 512 || sector > 65536 {
		return Table{}, fmt.Errorf("sector size of %d bytes", sector)
	}
	for i, lba := range []int64{1, size/int64(sector) - 1} {
		parts, ok, err := readGPT(r, size, int64(sector), lba)
		if err != nil {
			return Table{}, err
		}
		if ok {
			return Table{Scheme: "gpt", Partitions: parts, Backup: i == 1}, nil
		}
	}
	return readMBR(r, size, int64(sector))
}

// readGPT reads the header at lba and its entries, both by their checksums.
func readGPT(r io.ReaderAt, size, sector, lba int64) ([]Partition, bool, error) {
	head, err := read(r, size, lba*sector, sector)
	if err != nil || len(head) < gptHeaderSize || string(head[:8]) != "EFI PART" {
		return nil, false, err
	}
	le := binary.LittleEndian
	headLen := int(le.Uint32(head[12:]))
	if headLen < gptHeaderSize || headLen > len(head) {
		return nil, false, nil
	}
	sum := le.Uint32(head[16:])
	bare := slices.Clone(head[:headLen])
	clear(bare[16:20])
	if crc32.ChecksumIEEE(bare) != sum {
		return nil, false, nil
	}
	entriesLBA, n, each := int64(le.Uint64(head[72:])), int64(le.Uint32(head[80:])), int64(le.Uint32(head[84:]))
	if n > maxEntries || each < 128 || each > maxEntrySize || entriesLBA <= 0 || entriesLBA > size/sector {
		return nil, false, nil
	}
	raw, err := read(r, size, entriesLBA*sector, n*each)
	if err != nil || int64(len(raw)) != n*each || crc32.ChecksumIEEE(raw) != le.Uint32(head[88:]) {
		return nil, false, err
	}
	var out []Partition
	for i := range n {
		e := raw[i*each : (i+1)*each]
		if [16]byte(e[:16]) == ([16]byte{}) {
			continue
		}
		first, last := int64(le.Uint64(e[32:])), int64(le.Uint64(e[40:]))
		if first <= 0 || last < first || last >= size/sector {
			continue // outside the disk: nothing there to look at
		}
		name := make([]uint16, 36)
		for j := range name {
			name[j] = le.Uint16(e[56+2*j:])
		}
		out = append(out, Partition{
			Number: int(i) + 1, Start: first * sector, Size: (last - first + 1) * sector,
			Type: guid(e[:16]), GUID: guid(e[16:32]), Label: label([]byte(string(utf16.Decode(name)))),
		})
	}
	return out, true, nil
}

// guid prints a GUID as UEFI lays it out: the first three fields little-endian.
func guid(b []byte) string {
	le := []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6]}
	h := hex.EncodeToString(le) + hex.EncodeToString(b[8:16])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func readMBR(r io.ReaderAt, size, sector int64) (Table, error) {
	boot, err := read(r, size, 0, 512)
	if err != nil || !isMBR(boot) {
		return Table{}, err
	}
	t := Table{Scheme: "mbr"}
	var extended int64
	for i := range 4 {
		kind, start, count := mbrEntry(boot, i)
		switch {
		case kind == 0 || count == 0 || start*sector >= size:
		case kind == protectiveType: // what a GPT left behind
		case kind == 0x05 || kind == 0x0f || kind == 0x85:
			extended = start
		default:
			t.Partitions = append(t.Partitions, mbrPartition(i+1, kind, start, count, size, sector))
		}
	}
	// Logical partitions are a chain; each link's addresses count from its own
	// place (first entry) and from the extended partition's (second).
	for n, at := 5, extended; at > 0 && n < 5+maxLogicals; n++ {
		ebr, err := read(r, size, at*sector, 512)
		if err != nil {
			return Table{}, err
		}
		if !isMBR(ebr) {
			break
		}
		if kind, start, count := mbrEntry(ebr, 0); kind != 0 && count > 0 && (at+start)*sector < size {
			t.Partitions = append(t.Partitions, mbrPartition(n, kind, at+start, count, size, sector))
		}
		_, next, _ := mbrEntry(ebr, 1)
		if next == 0 || extended+next <= at {
			break // the end, or a loop
		}
		at = extended + next
	}
	return t, nil
}

// isMBR tells a table from a FAT or NTFS boot sector, which ends in the same
// two bytes: status bytes are 0x00 or 0x80 in a table.
func isMBR(b []byte) bool {
	if len(b) < 512 || b[510] != 0x55 || b[511] != 0xaa {
		return false
	}
	used := false
	for i := range 4 {
		if s := b[446+16*i]; s != 0 && s != 0x80 {
			return false
		}
		used = used || b[446+16*i+4] != 0
	}
	return used
}

func mbrEntry(b []byte, i int) (kind byte, start, count int64) {
	e := b[446+16*i:]
	return e[4], int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))
}

func mbrPartition(n int, kind byte, start, count, size, sector int64) Partition {
	return Partition{Number: n, Start: start * sector, Size: min(count*sector, size-start*sector), Type: fmt.Sprintf("0x%02x", kind)}
}
