package table

import "fmt"

// maxMBR is the first byte that an MBR with 512-byte sectors cannot address.
const maxMBR = int64(1) << 32 * 512

func (t *Table) parseMBR() error {
	// A boot sector of a bare FAT or NTFS volume ends in 55 AA as well; its
	// partition area holds code or text, which does not look like entries.
	var parts []Partition
	for i := range 4 {
		e := t.mbr[446+16*i : 446+16*i+16]
		start, n := int64(le.Uint32(e[8:])), int64(le.Uint32(e[12:]))
		if e[4] == 0 && isZero(e) {
			continue
		}
		if e[0] != 0 && e[0] != 0x80 || e[4] == 0 || start == 0 || n == 0 {
			t.Partitions = nil
			return nil // not a partition table: Kind stays None
		}
		if e[4] == mbrTypeGPT {
			return fmt.Errorf("MBR: a protective entry without a GPT header: the image is damaged or was made for another sector size")
		}
		parts = append(parts, Partition{Number: i + 1, Start: start * 512, Size: n * 512, Type: fmt.Sprintf("%02x", e[4])})
	}
	if len(parts) == 0 {
		return nil
	}
	t.Kind, t.Partitions = MBR, parts
	t.DiskGUID = fmt.Sprintf("%08x", le.Uint32(t.mbr[440:]))
	if t.Sector != 512 {
		return fmt.Errorf("MBR: %w: its entries count 512-byte sectors and the disk has %d-byte ones: use a GPT image made for this disk", ErrSectorSize, t.Sector)
	}
	return t.overlap()
}

func (t *Table) addMBR(size int64) (Partition, error) {
	slot := -1
	for i := range 4 {
		if isZero(t.mbr[446+16*i : 446+16*i+16]) {
			slot = i
			break
		}
	}
	if slot < 0 {
		return Partition{}, fmt.Errorf("MBR: %w: all four primary entries are used", ErrNoRoom)
	}
	start, err := t.gap(Alignment, min(t.disk, maxMBR), size)
	if err != nil {
		return Partition{}, fmt.Errorf("MBR: %w", err)
	}
	e := t.mbr[446+16*slot : 446+16*slot+16]
	copy(e, []byte{0, 0xfe, 0xff, 0xff, mbrTypeLinux, 0xfe, 0xff, 0xff}) // CHS out of range: use the LBA
	le.PutUint32(e[8:], uint32(start/512))
	le.PutUint32(e[12:], uint32(size/512))
	p := Partition{Number: slot + 1, Start: start, Size: size, Type: fmt.Sprintf("%02x", mbrTypeLinux)}
	t.Partitions = append(t.Partitions, p)
	return p, nil
}
