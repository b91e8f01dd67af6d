package qcow2

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
)

// kind of an extent.
type kind uint32

const (
	plain      kind = iota // n clusters, as they are
	compressed             // one cluster in n bytes
	meta                   // n bytes of tables that were read before
)

// extent is one piece of the file: 16 bytes, for there may be many.
type extent struct {
	host  int64  // bytes into the file
	guest uint32 // cluster of the disk; of meta: index into sums
	kn    uint32 // kind in the top two bits, n below
}

const nMask = 1<<30 - 1

func (e extent) kind() kind { return kind(e.kn >> 30) }
func (e extent) n() int64   { return int64(e.kn & nMask) }

func newExtent(host, guest int64, k kind, n int64) extent {
	return extent{host: host, guest: uint32(guest), kn: uint32(k)<<30 | uint32(n)}
}

// Image is a file whose tables have been read.
type Image struct {
	Header
	fileSize int64
	extents  []extent            // data by disk order until Open ends, then all by file order
	holes    []Range             // parts of the disk without data
	partial  map[uint32]uint32   // extended L2: clusters of which only some subclusters hold data
	sums     [][sha256.Size]byte // of the tables, compared when they pass again
}

// Range is a part of the disk, in bytes.
type Range struct{ Off, Len int64 }

// Open reads the tables of a file by ranges. first holds the file's first
// bytes, at least FirstBytes of them if it is that long.
func Open(ra io.ReaderAt, first []byte, fileSize int64) (*Image, error) {
	first = first[:min(len(first), FirstBytes)]
	h, err := Parse(first, fileSize)
	if err != nil {
		return nil, err
	}
	m := &Image{Header: h, fileSize: fileSize, partial: map[uint32]uint32{}}
	m.addMeta(0, first)
	l1 := make([]byte, (h.clusters()+h.perL2()-1)/h.perL2()*8)
	if err := m.readMeta(ra, l1, h.L1Offset); err != nil {
		return nil, fmt.Errorf("qcow2: L1 table: %w", err)
	}
	table := make([]byte, h.ClusterSize)
	for i := int64(0); i < int64(len(l1))/8; i++ {
		entry := be.Uint64(l1[i*8:])
		off := int64(entry & offsetMask)
		firstCluster := i * h.perL2()
		count := min(h.perL2(), h.clusters()-firstCluster)
		if off == 0 {
			m.hole(firstCluster, count)
			continue
		}
		if off%h.ClusterSize != 0 || off > fileSize-h.ClusterSize {
			return nil, fmt.Errorf("%w: the L2 table %d at byte %d is outside of the file of %d bytes", ErrCorrupt, i, off, fileSize)
		}
		if err := m.readMeta(ra, table, off); err != nil {
			return nil, fmt.Errorf("qcow2: L2 table %d: %w", i, err)
		}
		if err := m.mapL2(table, firstCluster, count); err != nil {
			return nil, err
		}
	}
	return m, m.order()
}

const (
	offsetMask     = 1<<56 - 1<<9 // bits 9 to 55 of L1 and plain L2 entries
	flagCompressed = 1 << 62
	flagZero       = 1
	allSubclusters = 1<<32 - 1
)

func (m *Image) mapL2(table []byte, first, count int64) error {
	for i := range count {
		e := table[i*m.entrySize():]
		guest, entry := first+i, be.Uint64(e)
		if entry&flagCompressed != 0 {
			if err := m.mapCompressed(guest, entry); err != nil {
				return err
			}
			continue
		}
		off, zero := int64(entry&offsetMask), false
		if m.ExtendedL2 {
			bitmap := be.Uint64(e[8:])
			allocated, zeroed := uint32(bitmap), uint32(bitmap>>32)
			if allocated&zeroed != 0 || off == 0 && allocated != 0 {
				return fmt.Errorf("%w: cluster %d contradicts itself about its subclusters", ErrCorrupt, guest)
			}
			zero = allocated == 0
			if allocated != 0 && allocated != allSubclusters {
				m.partial[uint32(guest)] = allocated
			}
		} else if entry&flagZero != 0 {
			if m.Version < 3 {
				return fmt.Errorf("%w: cluster %d has a flag that version 2 does not know", ErrCorrupt, guest)
			}
			zero = true
		}
		if off == 0 || zero {
			m.hole(guest, 1)
			continue
		}
		if off%m.ClusterSize != 0 || off >= m.fileSize { // a file may end inside its last cluster: zeros follow
			return fmt.Errorf("%w: cluster %d at byte %d is outside of the file of %d bytes", ErrCorrupt, guest, off, m.fileSize)
		}
		if err := m.addPlain(off, guest); err != nil {
			return err
		}
	}
	return nil
}

// tailOf is how many bytes of a cluster belong to the disk: the disk's last
// cluster may be cut, and so may be the file in it.
func (m *Image) tailOf(guest int64) int64 {
	return min(m.ClusterSize, m.Size-guest*m.ClusterSize)
}

func (m *Image) mapCompressed(guest int64, entry uint64) error {
	bits := 0
	for 1<<bits < m.ClusterSize {
		bits++
	}
	x := 62 - (bits - 8) // where the sector count begins
	off := int64(entry & (1<<x - 1))
	sectors := int64(entry & (flagCompressed - 1) >> x)
	n := (sectors+1)*512 - off%512
	if off >= m.fileSize || off < m.ClusterSize {
		return fmt.Errorf("%w: compressed cluster %d at byte %d is outside of the file of %d bytes", ErrCorrupt, guest, off, m.fileSize)
	}
	if n > m.maxCompressed() {
		return fmt.Errorf("%w: compressed cluster %d takes %d bytes, more than it holds", ErrCorrupt, guest, n)
	}
	// The sector count may reach past a file that ends with the data.
	return m.add(newExtent(off, guest, compressed, min(n, m.fileSize-off)))
}

// maxCompressed is the most bytes of the file that a compressed cluster may
// take: what does not shrink is stored plain, and its end is a sector's.
func (m *Image) maxCompressed() int64 { return m.ClusterSize + 512 }

func (m *Image) addPlain(off, guest int64) error {
	if k := len(m.extents) - 1; k >= 0 {
		last := &m.extents[k]
		n := last.n()
		if last.kind() == plain && last.host+n*m.ClusterSize == off && int64(last.guest)+n == guest && n < nMask {
			last.kn++
			return nil
		}
	}
	return m.add(newExtent(off, guest, plain, 1))
}

func (m *Image) add(e extent) error {
	if len(m.extents)+len(m.partial) >= MaxExtents {
		return fmt.Errorf("%w: its map has more than %d pieces, which this program does not hold in memory: publish it as raw inside zstd, or with larger clusters", ErrRefused, MaxExtents)
	}
	m.extents = append(m.extents, e)
	return nil
}

func (m *Image) hole(first, count int64) {
	off := first * m.ClusterSize
	n := min(count*m.ClusterSize, m.Size-off)
	if k := len(m.holes) - 1; k >= 0 && m.holes[k].Off+m.holes[k].Len == off {
		m.holes[k].Len += n
		return
	}
	m.holes = append(m.holes, Range{off, n})
}

// readMeta fills p from off and remembers its digest.
func (m *Image) readMeta(ra io.ReaderAt, p []byte, off int64) error {
	if n, err := ra.ReadAt(p, off); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: the file ends in it", ErrCorrupt)
		}
		return err
	}
	m.addMeta(off, p)
	return nil
}

func (m *Image) addMeta(off int64, p []byte) {
	m.sums = append(m.sums, sha256.Sum256(p))
	m.extents = append(m.extents, newExtent(off, int64(len(m.sums)-1), meta, int64(len(p))))
}

// order sorts the extents by their place in the file and refuses those that
// share bytes; only compressed clusters may, by less than a sector.
func (m *Image) order() error {
	slices.SortFunc(m.extents, func(a, b extent) int {
		return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.guest, b.guest))
	})
	var end int64
	for _, e := range m.extents {
		if e.host < end {
			return fmt.Errorf("%w: two of its clusters overlap at byte %d: qemu-img check", ErrCorrupt, e.host)
		}
		end = e.host
		switch e.kind() {
		case plain:
			end += e.n() * m.ClusterSize
		case meta:
			end += e.n()
		}
	}
	return nil
}

// Holes are the parts of the disk that hold no data and read as zeros, in order.
func (m *Image) Holes() []Range { return m.holes }
