package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

// FAT reads the directories of a FAT12, FAT16 or FAT32 volume: enough to see
// which boot loaders an EFI system partition has. (Microsoft's FAT
// specification 1.03 has the layout.)
type FAT struct {
	r                 io.ReaderAt
	size              int64
	cluster           int64 // bytes of a cluster
	fat, root, data   int64 // offsets, bytes
	rootSize          int64 // bytes of the fixed root directory; 0 on FAT32
	rootCluster, kind uint32
	clusters          uint32
}

// errNotFAT: the volume is something else.
var errNotFAT = errors.New("no FAT file system")

// Bounds on what a volume may make us read.
const (
	maxChain      = 4096 // clusters of a directory
	maxDirEntries = 16384
)

// OpenFAT reads the boot sector of a volume of size bytes.
func OpenFAT(r io.ReaderAt, size int64) (*FAT, error) {
	b, err := read(r, size, 0, 512)
	if err != nil {
		return nil, err
	}
	if len(b) < 512 || b[510] != 0x55 || b[511] != 0xaa {
		return nil, errNotFAT
	}
	le := binary.LittleEndian
	sector := int64(le.Uint16(b[11:]))
	perCluster, reserved, fats := int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	rootEntries := int64(le.Uint16(b[17:]))
	total := int64(le.Uint16(b[19:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	fatSectors := int64(le.Uint16(b[22:]))
	if fatSectors == 0 {
		fatSectors = int64(le.Uint32(b[36:]))
	}
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || perCluster == 0 || reserved == 0 || fats == 0 || fatSectors == 0 {
		return nil, errNotFAT
	}
	f := &FAT{r: r, size: size, cluster: sector * perCluster, fat: reserved * sector}
	f.root = (reserved + fats*fatSectors) * sector
	f.rootSize = (rootEntries*32 + sector - 1) / sector * sector
	f.data = f.root + f.rootSize
	if f.data >= size || total*sector > size {
		return nil, errNotFAT
	}
	f.clusters = uint32(min((total*sector-f.data)/f.cluster, 1<<28))
	switch { // the number of clusters alone decides the kind
	case f.clusters < 4085:
		f.kind = 12
	case f.clusters < 65525:
		f.kind = 16
	default:
		f.kind, f.rootCluster = 32, le.Uint32(b[44:])
	}
	return f, nil
}

// Entry is a name in a directory.
type Entry struct {
	Name    string
	Dir     bool
	cluster uint32
}

// List gives the entries of the directory path, which is empty for the root;
// its parts are parted by slashes and compared without case. A missing
// directory is no error: it has no entries.
func (f *FAT) List(path string) ([]Entry, error) {
	entries, err := f.rootDir()
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		if err != nil {
			return nil, err
		}
		var next *Entry
		for i := range entries {
			if entries[i].Dir && strings.EqualFold(entries[i].Name, part) {
				next = &entries[i]
			}
		}
		if next == nil {
			return nil, nil
		}
		entries, err = f.dir(next.cluster)
	}
	return entries, err
}

func (f *FAT) rootDir() ([]Entry, error) {
	if f.kind == 32 {
		return f.dir(f.rootCluster)
	}
	raw, err := read(f.r, f.size, f.root, f.rootSize)
	if err != nil {
		return nil, err
	}
	return parseDir(raw), nil
}

func (f *FAT) dir(cluster uint32) ([]Entry, error) {
	var raw []byte
	for i := 0; cluster >= 2 && cluster < f.clusters+2; i++ {
		if i == maxChain || len(raw) > maxDirEntries*32 {
			return nil, fmt.Errorf("FAT directory of more than %d clusters", i)
		}
		part, err := read(f.r, f.size, f.data+int64(cluster-2)*f.cluster, f.cluster)
		if err != nil {
			return nil, err
		}
		raw = append(raw, part...)
		if cluster, err = f.next(cluster); err != nil {
			return nil, err
		}
	}
	return parseDir(raw), nil
}

// next follows the chain of clusters; what is out of range ends it.
func (f *FAT) next(c uint32) (uint32, error) {
	off, n := int64(c)*4, int64(4)
	switch f.kind {
	case 16:
		off, n = int64(c)*2, 2
	case 12:
		off, n = int64(c)*3/2, 2
	}
	b, err := read(f.r, f.size, f.fat+off, n)
	if err != nil || int64(len(b)) < n {
		return 0, err
	}
	switch f.kind {
	case 32:
		return binary.LittleEndian.Uint32(b) & 0x0fffffff, nil
	case 16:
		return uint32(binary.LittleEndian.Uint16(b)), nil
	}
	v := uint32(binary.LittleEndian.Uint16(b))
	if c%2 == 1 {
		return v >> 4, nil
	}
	return v & 0xfff, nil
}

// parseDir reads a directory's records; long names come in pieces, last first,
// before the record they name.
func parseDir(raw []byte) []Entry {
	const record, deleted, volume, longName, directory = 32, 0xe5, 0x08, 0x0f, 0x10
	var out []Entry
	var long []uint16
	for ; len(raw) >= record && raw[0] != 0; raw = raw[record:] {
		attr := raw[11]
		switch {
		case raw[0] == deleted:
			long = nil
		case attr&longName == longName:
			if raw[0]&0x40 != 0 {
				long = nil
			}
			var piece []uint16
			for _, span := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
				for o := span[0]; o < span[1]; o += 2 {
					piece = append(piece, binary.LittleEndian.Uint16(raw[o:]))
				}
			}
			long = append(piece, long...)
		case attr&volume != 0:
			long = nil
		default:
			e := Entry{Name: shortName(raw), Dir: attr&directory != 0,
				cluster: uint32(binary.LittleEndian.Uint16(raw[20:]))<<16 | uint32(binary.LittleEndian.Uint16(raw[26:]))}
			if len(long) > 0 {
				e.Name = longText(long)
			}
			long = nil
			if e.Name != "." && e.Name != ".." {
				out = append(out, e)
			}
		}
	}
	return out
}

// shortName heeds the bits by which Windows NT and Linux keep 8.3 names that are
// all lower case.
func shortName(raw []byte) string {
	base, ext := strings.TrimRight(string(raw[:8]), " "), strings.TrimRight(string(raw[8:11]), " ")
	if raw[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if raw[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		base += "." + ext
	}
	return label([]byte(base))
}

func longText(units []uint16) string {
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	return label([]byte(string(utf16.Decode(units))))
}
