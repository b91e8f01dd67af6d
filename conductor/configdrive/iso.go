package configdrive

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf16"
)

// A small ISO 9660 writer: ECMA-119 level 2 names, Rock Ridge (IEEE P1282 with
// SUSP 1.12) and Joliet, as genisoimage -J -r writes them, so that Linux shows
// meta_data.json and not META_DATA.JSON;1 whichever it prefers.

const (
	sector     = 2048
	firstFree  = 23 // after descriptors, path tables
	maxName    = 60 // UTF-16 units: Joliet's limit is 64
	modeDir    = 0o040500
	modeFile   = 0o100400 // it may hold secrets: root alone reads it
	maxTables  = sector   // bytes of one path table
	rrID       = "RRIP_1991A"
	rrText     = "THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS"
	rrSource   = "PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN PRIMARY VOLUME DESCRIPTOR FOR CONTACT INFORMATION."
	flagDir    = 2
	dirIsSelf  = "\x00"
	dirIsUpper = "\x01"
)

// stamp is every file's date, 1980-01-01: the same content gives the same bytes.
var stamp = []byte{80, 1, 1, 0, 0, 0, 0}

// entry is a file or directory.
type entry struct {
	name     string
	children []*entry // nil for a file
	data     []byte
	dir      bool
	parent   *entry

	extent [2]uint32 // sector, in the primary and the Joliet tree (files: the same)
	size   [2]uint32 // bytes
	number [2]uint16 // in the path table
}

// tree selects the primary or the Joliet hierarchy.
type tree int

const (
	primary tree = iota
	joliet
)

// id is the name as the tree stores it.
func (e *entry) id(t tree) string {
	if t == joliet {
		var b []byte
		for _, u := range utf16.Encode([]rune(e.name)) {
			b = binary.BigEndian.AppendUint16(b, u)
		}
		return string(b)
	}
	up := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '.' && !e.dir:
			return r
		}
		return '_'
	}, e.name)
	if e.dir {
		return up
	}
	if !strings.Contains(up, ".") {
		up += "."
	}
	return up + ";1"
}

// writeISO makes a volume of files by slash-separated path.
func writeISO(label string, files map[string][]byte) ([]byte, error) {
	root := &entry{dir: true}
	root.parent = root
	for _, p := range slices.Sorted(maps.Keys(files)) {
		if err := root.insert(strings.Split(p, "/"), files[p]); err != nil {
			return nil, err
		}
	}
	dirs := root.dirs()
	w := &iso{label: label, root: root, dirs: dirs}
	return w.write()
}

func (e *entry) insert(parts []string, data []byte) error {
	name := parts[0]
	if name == "" || name != path.Base(name) || len(name) > maxName || len(strings.Split(name, ".")) > 2 {
		return fmt.Errorf("config drive: the file name %q cannot be stored", name)
	}
	i := slices.IndexFunc(e.children, func(c *entry) bool { return c.name == name })
	if i < 0 {
		e.children = append(e.children, &entry{name: name, dir: len(parts) > 1, parent: e})
		i = len(e.children) - 1
	}
	if len(parts) == 1 {
		e.children[i].data = data
		return nil
	}
	return e.children[i].insert(parts[1:], data)
}

// dirs lists the directories in the path table's order: by level, then parent.
func (e *entry) dirs() []*entry {
	all := []*entry{e}
	for i := 0; i < len(all); i++ {
		for _, c := range all[i].children {
			if c.dir {
				all = append(all, c)
			}
		}
	}
	return all
}

// sorted is the directory's content in the tree's order.
func (e *entry) sorted(t tree) []*entry {
	return slices.SortedFunc(slices.Values(e.children), func(a, b *entry) int { return cmp.Compare(a.id(t), b.id(t)) })
}

// iso is one volume being laid out.
type iso struct {
	label string
	root  *entry
	dirs  []*entry
	next  uint32 // free sector
	er    uint32 // sector of Rock Ridge's continuation area
}

func sectors(n int) uint32 { return uint32((n + sector - 1) / sector) }

func (w *iso) write() ([]byte, error) {
	w.next = firstFree
	for t := range []tree{primary, joliet} {
		for i, d := range w.dirs {
			n := len(w.directory(d, tree(t))) // extents are still zero; the length does not depend on them
			d.size[t], d.extent[t], d.number[t] = uint32(n), w.next, uint16(i+1)
			w.next += sectors(n)
		}
	}
	w.er = w.next
	w.next++
	// Equal content is stored once.
	stored := map[string]uint32{}
	var data []byte
	first := w.next
	for _, d := range w.dirs {
		for _, f := range d.sorted(primary) {
			if f.dir {
				continue
			}
			at, ok := stored[string(f.data)]
			if !ok {
				at = w.next
				stored[string(f.data)] = at
				w.next += sectors(len(f.data))
				data = append(data, padded(f.data)...)
			}
			n := uint32(len(f.data))
			f.extent, f.size = [2]uint32{at, at}, [2]uint32{n, n}
		}
	}
	out := make([]byte, 16*sector, int(w.next)*sector)
	for t := range []tree{primary, joliet} {
		out = append(out, w.descriptor(tree(t))...)
	}
	out = append(out, padded([]byte("\xffCD001\x01"))...) // set terminator
	for t := range []tree{primary, joliet} {
		for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
			p := w.pathTable(tree(t), order)
			if len(p) > maxTables {
				return nil, fmt.Errorf("config drive: its path table has %d bytes, at most %d fit", len(p), maxTables)
			}
			out = append(out, padded(p)...)
		}
	}
	for len(out) < firstFree*sector {
		out = append(out, make([]byte, sector)...)
	}
	for t := range []tree{primary, joliet} {
		for _, d := range w.dirs {
			out = append(out, w.directory(d, tree(t))...)
		}
	}
	out = append(out, padded(susp("ER", []byte{byte(len(rrID)), byte(len(rrText)), byte(len(rrSource)), 1}, rrID, rrText, rrSource))...)
	if uint32(len(out)) != first*sector {
		return nil, fmt.Errorf("config drive: laid out %d bytes before the files, planned %d", len(out), first*sector)
	}
	return append(out, data...), nil
}

// padded is b with zeros up to a sector's end.
func padded(b []byte) []byte {
	return append(bytes.Clone(b), make([]byte, int(sectors(len(b)))*sector-len(b))...)
}

func both16(b []byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, v), v)
}

func both32(b []byte, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, v), v)
}

// text is s, padded with spaces to n bytes in the tree's encoding.
func text(t tree, s string, n int) []byte {
	if t == primary {
		return []byte(s + strings.Repeat(" ", n-len(s)))
	}
	var b []byte
	for _, u := range utf16.Encode([]rune(s + strings.Repeat(" ", n/2-len(s)))) {
		b = binary.BigEndian.AppendUint16(b, u)
	}
	return append(b, make([]byte, n-len(b))...)
}

// descriptor is the volume descriptor (ECMA-119, 8.4 and 8.5).
func (w *iso) descriptor(t tree) []byte {
	b := []byte{1, 'C', 'D', '0', '0', '1', 1, 0}
	if t == joliet {
		b[0] = 2
	}
	b = append(b, text(t, "", 32)...) // system
	b = append(b, text(t, w.label, 32)...)
	b = append(b, make([]byte, 8)...)
	b = both32(b, w.next)
	escape := make([]byte, 32)
	if t == joliet {
		copy(escape, "%/E") // UCS-2 level 3
	}
	b = append(b, escape...)
	b = both16(b, 1)
	b = both16(b, 1)
	b = both16(b, sector)
	b = both32(b, uint32(len(w.pathTable(t, binary.LittleEndian))))
	table := uint32(19 + 2*int(t))
	b = binary.LittleEndian.AppendUint32(b, table)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, table+1)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, record(w.root, t, dirIsSelf, nil)...)
	for _, n := range []int{128, 128, 128, 128, 37, 37, 37} { // set, publisher, preparer, application, three files
		b = append(b, text(t, "", n)...)
	}
	for range 2 { // created, modified
		b = append(b, "1980010100000000\x00"...)
	}
	for range 2 { // expires, effective: not given
		b = append(b, "0000000000000000\x00"...)
	}
	b = append(b, 1, 0) // file structure version
	return padded(b)
}

func (w *iso) pathTable(t tree, order binary.AppendByteOrder) []byte {
	var b []byte
	for _, d := range w.dirs {
		id := d.id(t)
		if d == w.root {
			id = dirIsSelf
		}
		b = append(b, byte(len(id)), 0)
		b = order.AppendUint32(b, d.extent[t])
		b = order.AppendUint16(b, max(d.parent.number[t], 1))
		b = append(b, id...)
		if len(id)%2 == 1 {
			b = append(b, 0)
		}
	}
	return b
}

// directory is a directory's extent; no record crosses a sector's end.
func (w *iso) directory(d *entry, t tree) []byte {
	var b []byte
	put := func(r []byte) {
		if len(b)%sector+len(r) > sector {
			b = padded(b)
		}
		b = append(b, r...)
	}
	var self, upper []byte
	if t == primary {
		upper = posix(d.parent)
		self = posix(d)
		if d == w.root {
			er := susp("ER", []byte{byte(len(rrID)), byte(len(rrText)), byte(len(rrSource)), 1}, rrID, rrText, rrSource)
			self = slices.Concat(susp("SP", []byte{0xbe, 0xef, 0}), self,
				susp("CE", both32(both32(both32(nil, w.er), 0), uint32(len(er)))))
		}
	}
	put(record(d, t, dirIsSelf, self))
	put(record(d.parent, t, dirIsUpper, upper))
	for _, c := range d.sorted(t) {
		var extra []byte
		if t == primary {
			extra = slices.Concat(posix(c), susp("NM", []byte{0}, c.name))
		}
		put(record(c, t, c.id(t), extra))
	}
	return padded(b)
}

// record is one directory record (ECMA-119, 9.1).
func record(e *entry, t tree, id string, extra []byte) []byte {
	b := []byte{0, 0}
	b = both32(b, e.extent[t])
	b = both32(b, e.size[t])
	b = append(b, stamp...)
	flags := byte(0)
	if e.dir {
		flags = flagDir
	}
	b = append(b, flags, 0, 0)
	b = both16(b, 1)
	b = append(b, byte(len(id)))
	b = append(b, id...)
	if len(id)%2 == 0 {
		b = append(b, 0)
	}
	b = append(b, extra...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

// susp is one system use entry.
func susp(signature string, payload []byte, more ...string) []byte {
	b := append([]byte(signature), 0, 1)
	b = append(b, payload...)
	for _, s := range more {
		b = append(b, s...)
	}
	b[2] = byte(len(b))
	return b
}

// posix is Rock Ridge's PX entry: mode, links, owner and group root.
func posix(e *entry) []byte {
	mode, links := uint32(modeFile), uint32(1)
	if e.dir {
		mode, links = modeDir, 2
		for _, c := range e.children {
			if c.dir {
				links++
			}
		}
	}
	var b []byte
	for _, v := range []uint32{mode, links, 0, 0} {
		b = both32(b, v)
	}
	return susp("PX", b)
}
