// Package table reads and rewrites the partition tables of whole-disk images:
// GPT (UEFI 2.10, section 5) and MBR. It works on bytes in memory and never
// touches a disk, so that every change is planned before the first write.
//
// Offsets and sizes are bytes unless a name says LBA.
package table

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// HeadSize is how much of an image's start holds every structure that makes a
// disk bootable: MBR, GPT header, partition entries, boot code before the
// first aligned partition.
const HeadSize = 1 << 20

// Kind of partition table.
type Kind string

// Kinds of tables.
const (
	GPT  Kind = "gpt"
	MBR  Kind = "mbr"
	None Kind = "none" // a file system or anything else without a table
)

// Partition types that matter here.
const (
	TypeESP       = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" // UEFI 2.10, table 5.7
	TypeLinuxData = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	mbrTypeGPT    = 0xee
	mbrTypeESP    = 0xef
	mbrTypeLinux  = 0x83
)

// Alignment of partitions that this package adds, in bytes.
const Alignment = 1 << 20

// Errors that callers tell apart.
var (
	// ErrNoTable: a partition was asked for on an image without a table.
	ErrNoTable = errors.New("the image has no partition table")
	// ErrNoRoom: no free space or no free entry for a new partition.
	ErrNoRoom = errors.New("no room for another partition")
	// ErrTooSmall: the disk ends before the image's last partition.
	ErrTooSmall = errors.New("the disk is smaller than the image's partitions")
	// ErrSectorSize: the image was made for another sector size than the disk's.
	ErrSectorSize = errors.New("the image was made for another sector size")
)

// Partition is one entry of a table.
type Partition struct {
	Number int    `json:"number"`          // from 1, as Linux counts
	Start  int64  `json:"start"`           // bytes from the start of the disk
	Size   int64  `json:"size"`            // bytes
	Type   string `json:"type"`            // GPT: GUID; MBR: two hex digits
	GUID   string `json:"guid,omitempty"`  // GPT's unique partition GUID
	Name   string `json:"name,omitempty"`  // GPT's partition name
	Label  string `json:"label,omitempty"` // of the file system inside, where known
}

// End is the byte after the partition.
func (p Partition) End() int64 { return p.Start + p.Size }

// Table is a parsed partition table.
type Table struct {
	Kind       Kind
	Sector     int // bytes
	DiskGUID   string
	Partitions []Partition

	disk   int64 // bytes; set by Fit
	mbr    []byte
	header gptHeader
	raw    []byte // GPT entries
}

// Parse reads the table at the start of an image that goes onto a disk with
// the given sector size. head holds the image's first bytes, up to HeadSize.
func Parse(head []byte, sector int) (*Table, error) {
	if sector != 512 && sector != 4096 {
		return nil, fmt.Errorf("partition table: the disk's sector size is %d bytes, want 512 or 4096", sector)
	}
	t := &Table{Kind: None, Sector: sector}
	if len(head) < 512 || head[510] != 0x55 || head[511] != 0xaa {
		if found := gptSectorSize(head); found != 0 {
			return nil, fmt.Errorf("partition table: a GPT header without a protective MBR: the image is damaged or was not finished")
		}
		return t, nil
	}
	t.mbr = append([]byte(nil), head[:512]...)
	if found := gptSectorSize(head); found != 0 {
		if found != sector {
			return nil, fmt.Errorf("partition table: %w: the image's GPT is for %d-byte sectors, the disk has %d: publish an image made for this disk (for example from a %d-byte loop device)",
				ErrSectorSize, found, sector, sector)
		}
		return t, t.parseGPT(head)
	}
	return t, t.parseMBR()
}

// Fit places the table on a disk of the given size: the GPT's backup goes to
// the disk's end. Every partition must end before it.
func (t *Table) Fit(disk int64) error {
	t.disk = disk - disk%int64(t.Sector)
	if t.Kind == GPT {
		return t.fitGPT()
	}
	for _, p := range t.Partitions {
		if p.End() > t.disk {
			return fmt.Errorf("%w: partition %d ends at byte %d, the disk at %d", ErrTooSmall, p.Number, p.End(), t.disk)
		}
	}
	return nil
}

// Find returns the partition with the given GPT name.
func (t *Table) Find(name string) (Partition, bool) {
	for _, p := range t.Partitions {
		if strings.EqualFold(p.Name, name) {
			return p, true
		}
	}
	return Partition{}, false
}

// ESP returns the first EFI system partition.
func (t *Table) ESP() (Partition, bool) {
	for _, p := range t.Partitions {
		if p.Type == TypeESP || t.Kind == MBR && p.Type == fmt.Sprintf("%02x", mbrTypeESP) {
			return p, true
		}
	}
	return Partition{}, false
}

// Add puts a Linux data partition of at least size bytes, rounded up to
// Alignment, into the last free gap of the disk. Call Fit first.
func (t *Table) Add(name string, size int64) (Partition, error) {
	size = (size + Alignment - 1) / Alignment * Alignment
	switch t.Kind {
	case GPT:
		return t.addGPT(name, size)
	case MBR:
		return t.addMBR(size)
	}
	return Partition{}, fmt.Errorf("add a partition %q: %w", name, ErrNoTable)
}

// Remove takes a partition out again.
func (t *Table) Remove(number int) {
	t.Partitions = slices.DeleteFunc(t.Partitions, func(p Partition) bool { return p.Number == number })
	switch t.Kind {
	case GPT:
		clear(t.entry(number - 1))
	case MBR:
		clear(t.mbr[446+16*(number-1) : 446+16*number])
	}
}

// gap returns the highest aligned start at which size bytes fit between first
// and end (bytes) beside the partitions.
func (t *Table) gap(first, end, size int64) (int64, error) {
	for limit := end; ; {
		// The candidate reaches up to limit; a partition in its way moves limit down.
		start := (limit - size) / Alignment * Alignment
		if limit < size || start < first {
			return 0, fmt.Errorf("%w: %d MiB of free space are needed, aligned to 1 MiB: use a larger disk or a smaller image", ErrNoRoom, size>>20)
		}
		lowest := int64(-1)
		for _, p := range t.Partitions {
			if p.Start < start+size && p.End() > start && (lowest < 0 || p.Start < lowest) {
				lowest = p.Start
			}
		}
		if lowest < 0 {
			return start, nil
		}
		limit = lowest
	}
}

// Primary writes the table's structures into head, which holds the image's
// first HeadSize bytes.
func (t *Table) Primary(head []byte) {
	switch t.Kind {
	case GPT:
		t.primaryGPT(head)
	case MBR:
		copy(head, t.mbr)
	}
}

// Backup returns the backup structures at the disk's end and their offset;
// nil when the table has none. The bytes reach exactly to the disk's end.
func (t *Table) Backup() (off int64, data []byte) {
	if t.Kind != GPT {
		return 0, nil
	}
	return t.backupGPT()
}

// overlap reports two partitions that share a byte.
func (t *Table) overlap() error {
	for i, a := range t.Partitions {
		for _, b := range t.Partitions[i+1:] {
			if a.Start < b.End() && b.Start < a.End() {
				return fmt.Errorf("partition table: partitions %d and %d overlap", a.Number, b.Number)
			}
		}
	}
	return nil
}
