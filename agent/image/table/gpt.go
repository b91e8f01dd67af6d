package table

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode"
	"unicode/utf16"
)

const (
	gptSignature  = "EFI PART"
	gptHeaderSize = 92 // bytes that this package reads and writes
	maxEntries    = 1024
	nameOffset    = 56
	nameBytes     = 72
)

// gptHeader is the header's fields that are not constants, LBAs in sectors.
type gptHeader struct {
	firstUsable, lastUsable uint64
	guid                    [16]byte
	entriesLBA              uint64
	entries, entrySize      uint32
}

var le = binary.LittleEndian

// gptSectorSize says for which sector size head holds a GPT header; 0 for none.
func gptSectorSize(head []byte) int {
	for _, s := range []int{512, 4096} {
		if len(head) >= s+gptHeaderSize && string(head[s:s+8]) == gptSignature {
			return s
		}
	}
	return 0
}

func (t *Table) parseGPT(head []byte) error {
	t.Kind = GPT
	s := uint64(t.Sector)
	h := head[t.Sector:min(2*t.Sector, len(head))]
	size := le.Uint32(h[12:])
	if size < gptHeaderSize || int(size) > len(h) {
		return fmt.Errorf("GPT: header size of %d bytes, want %d to %d", size, gptHeaderSize, len(h))
	}
	if got, want := headerCRC(h[:size]), le.Uint32(h[16:]); got != want {
		return fmt.Errorf("GPT: header checksum %08x, the header says %08x: the image is damaged", got, want)
	}
	if my := le.Uint64(h[24:]); my != 1 {
		return fmt.Errorf("GPT: the primary header calls itself LBA %d, want 1", my)
	}
	t.header = gptHeader{
		firstUsable: le.Uint64(h[40:]), lastUsable: le.Uint64(h[48:]), guid: [16]byte(h[56:72]),
		entriesLBA: le.Uint64(h[72:]), entries: le.Uint32(h[80:]), entrySize: le.Uint32(h[84:]),
	}
	g := t.header
	t.DiskGUID = guidString(g.guid[:])
	if g.entrySize < 128 || g.entrySize > 4096 || g.entrySize&(g.entrySize-1) != 0 {
		return fmt.Errorf("GPT: entry size of %d bytes, want a power of two from 128 to 4096", g.entrySize)
	}
	if g.entries == 0 || g.entries > maxEntries {
		return fmt.Errorf("GPT: %d entries, want 1 to %d", g.entries, maxEntries)
	}
	n := uint64(g.entries) * uint64(g.entrySize)
	if g.entriesLBA < 2 || g.entriesLBA > HeadSize/s || g.entriesLBA*s+n > uint64(len(head)) {
		return fmt.Errorf("GPT: entries at LBA %d with %d bytes lie outside the image's first %d bytes", g.entriesLBA, n, len(head))
	}
	if g.firstUsable < g.entriesLBA+(n+s-1)/s || g.firstUsable > g.lastUsable {
		return fmt.Errorf("GPT: usable LBAs %d to %d do not follow the entries", g.firstUsable, g.lastUsable)
	}
	t.raw = append([]byte(nil), head[g.entriesLBA*s:g.entriesLBA*s+n]...)
	if got, want := crc32.ChecksumIEEE(t.raw), le.Uint32(h[88:]); got != want {
		return fmt.Errorf("GPT: entries checksum %08x, the header says %08x: the image is damaged", got, want)
	}
	for i := range int(g.entries) {
		e := t.entry(i)
		if isZero(e[:16]) {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if first < g.firstUsable || first > last || last > g.lastUsable || last > (1<<63)/s-2 {
			return fmt.Errorf("GPT: partition %d covers LBA %d to %d, usable are %d to %d", i+1, first, last, g.firstUsable, g.lastUsable)
		}
		t.Partitions = append(t.Partitions, Partition{
			Number: i + 1, Start: int64(first * s), Size: int64((last - first + 1) * s),
			Type: guidString(e[:16]), GUID: guidString(e[16:32]), Name: nameString(e[nameOffset : nameOffset+nameBytes]),
		})
	}
	return t.overlap()
}

func (t *Table) entry(i int) []byte {
	n := int(t.header.entrySize)
	return t.raw[i*n : (i+1)*n]
}

// entrySectors is the length of the entries in sectors.
func (t *Table) entrySectors() uint64 {
	return (uint64(len(t.raw)) + uint64(t.Sector) - 1) / uint64(t.Sector)
}

func (t *Table) fitGPT() error {
	sectors := uint64(t.disk) / uint64(t.Sector)
	reserved := t.entrySectors() + 1 // backup entries and header
	if sectors <= t.header.firstUsable+reserved {
		return fmt.Errorf("%w: %d sectors do not hold a GPT", ErrTooSmall, sectors)
	}
	last := sectors - 1 - reserved
	for _, p := range t.Partitions {
		if end := uint64(p.End()) / uint64(t.Sector); end > last+1 {
			return fmt.Errorf("%w: partition %d ends at byte %d, the last one usable on this disk is %d",
				ErrTooSmall, p.Number, p.End(), int64(last+1)*int64(t.Sector))
		}
	}
	t.header.lastUsable = last
	return nil
}

func (t *Table) addGPT(name string, size int64) (Partition, error) {
	s := int64(t.Sector)
	slot := -1
	for i := range int(t.header.entries) {
		if isZero(t.entry(i)[:16]) {
			slot = i
			break
		}
	}
	if slot < 0 {
		return Partition{}, fmt.Errorf("GPT: %w: all %d entries are used", ErrNoRoom, t.header.entries)
	}
	start, err := t.gap(int64(t.header.firstUsable)*s, int64(t.header.lastUsable+1)*s, size)
	if err != nil {
		return Partition{}, fmt.Errorf("GPT: %w", err)
	}
	var guid [16]byte
	_, _ = rand.Read(guid[:])     // never fails: crypto/rand's contract since Go 1.24
	guid[7] = guid[7]&0x0f | 0x40 // version 4; the third field is stored little-endian
	guid[8] = guid[8]&0x3f | 0x80 // RFC 9562 variant
	e := t.entry(slot)
	clear(e)
	copy(e, guidBytes(TypeLinuxData))
	copy(e[16:], guid[:])
	le.PutUint64(e[32:], uint64(start/s))
	le.PutUint64(e[40:], uint64((start+size)/s-1))
	for i, u := range utf16.Encode([]rune(name)) {
		if 2*i+2 > nameBytes {
			break
		}
		le.PutUint16(e[nameOffset+2*i:], u)
	}
	p := Partition{Number: slot + 1, Start: start, Size: size, Type: TypeLinuxData, GUID: guidString(guid[:]), Name: name}
	t.Partitions = append(t.Partitions, p)
	return p, nil
}

// headerBytes is one sector with a header at LBA my.
func (t *Table) headerBytes(my, alternate, entriesLBA uint64) []byte {
	b := make([]byte, t.Sector)
	copy(b, gptSignature)
	le.PutUint32(b[8:], 0x00010000) // revision 1.0
	le.PutUint32(b[12:], gptHeaderSize)
	le.PutUint64(b[24:], my)
	le.PutUint64(b[32:], alternate)
	le.PutUint64(b[40:], t.header.firstUsable)
	le.PutUint64(b[48:], t.header.lastUsable)
	copy(b[56:], t.header.guid[:])
	le.PutUint64(b[72:], entriesLBA)
	le.PutUint32(b[80:], t.header.entries)
	le.PutUint32(b[84:], t.header.entrySize)
	le.PutUint32(b[88:], crc32.ChecksumIEEE(t.raw))
	le.PutUint32(b[16:], headerCRC(b[:gptHeaderSize]))
	return b
}

func (t *Table) primaryGPT(head []byte) {
	s := uint64(t.Sector)
	last := uint64(t.disk)/s - 1
	copy(head, t.mbr)
	for i := range 4 { // the protective entry covers the disk, up to what 32 bits hold
		e := head[446+16*i : 446+16*i+16]
		if e[4] == mbrTypeGPT && le.Uint32(e[8:]) == 1 {
			le.PutUint32(e[12:], uint32(min(last, 0xffffffff)))
		}
	}
	copy(head[s:], t.headerBytes(1, last, t.header.entriesLBA))
	copy(head[t.header.entriesLBA*s:], t.raw)
}

func (t *Table) backupGPT() (int64, []byte) {
	s := uint64(t.Sector)
	last := uint64(t.disk)/s - 1
	first := last - t.entrySectors()
	b := make([]byte, (t.entrySectors()+1)*s)
	copy(b, t.raw)
	copy(b[t.entrySectors()*s:], t.headerBytes(last, 1, first))
	return int64(first * s), b
}

// headerCRC is the checksum of a header with its own checksum field as zero.
func headerCRC(h []byte) uint32 {
	c := bytes.Clone(h)
	clear(c[16:20])
	return crc32.ChecksumIEEE(c)
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// swapped turns a GUID between its text's byte order and the mixed-endian one
// on disk (UEFI 2.10, appendix A); it is its own inverse.
func swapped(b []byte) []byte {
	return []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

func guidString(b []byte) string {
	x := hex.EncodeToString(swapped(b))
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}

// guidBytes is for this package's own constants.
func guidBytes(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		panic("table: bad GUID constant " + s)
	}
	return swapped(b)
}

func nameString(b []byte) string {
	u := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		c := le.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	// Names are the image's and end up on terminals: no control characters.
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, string(utf16.Decode(u)))
}
