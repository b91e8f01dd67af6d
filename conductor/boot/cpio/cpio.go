// Package cpio writes "newc" archives as the Linux kernel reads them behind a
// ramdisk (Documentation/driver-api/early-userspace/buffer-format.rst). Same
// files, same bytes.
package cpio

import (
	"bytes"
	"fmt"
	"path"
	"strings"
)

// File is a regular file. Parents are made as needed.
type File struct {
	Name string // relative, clean, e.g. etc/slipway/boot.json
	Mode uint32 // permission bits, e.g. 0o600
	Data []byte
}

// Block is what an archive's size is a multiple of, in bytes. The kernel wants
// every archive at a multiple of 4; 512 is cpio's own habit.
const Block = 512

// Pad returns how many zero bytes make size a multiple of Align: what has to
// follow a compressed ramdisk before another archive may begin. The kernel skips
// zeros between archives, and takes "0707…" only at a multiple of 4
// (init/initramfs.c, unpack_to_rootfs).
func Pad(size int64) int64 { return -size & (Align - 1) }

// Align is the kernel's alignment of archives in bytes.
const Align = 4

// Archive returns the archive of files, with their directories (mode 0755) first,
// owned by root, with no times.
func Archive(files []File) ([]byte, error) {
	var w writer
	const directory, file = 1, 2
	made := map[string]int{".": directory}
	for _, f := range files {
		if f.Name == "" || path.Clean("/"+f.Name) != "/"+f.Name || strings.ContainsRune(f.Name, 0) {
			return nil, fmt.Errorf("cpio: %q is not a clean relative name", f.Name)
		}
		if made[f.Name] != 0 {
			return nil, fmt.Errorf("cpio: %s is there twice", f.Name)
		}
		if int64(len(f.Data)) > 1<<30 {
			return nil, fmt.Errorf("cpio: %s has %d bytes: more than a boot payload may have", f.Name, len(f.Data))
		}
		var parents []string
		d := path.Dir(f.Name)
		for ; made[d] == 0; d = path.Dir(d) {
			parents = append(parents, d)
			made[d] = directory
		}
		if made[d] == file {
			return nil, fmt.Errorf("cpio: %s lies below %s, which is a file", f.Name, d)
		}
		for i := len(parents) - 1; i >= 0; i-- {
			w.entry(parents[i], 0o040755, 2, nil)
		}
		w.entry(f.Name, 0o100000|f.Mode&0o7777, 1, f.Data)
		made[f.Name] = file
	}
	w.entry("TRAILER!!!", 0, 1, nil)
	w.pad(Block)
	return w.Bytes(), nil
}

type writer struct {
	bytes.Buffer
	inode uint32
}

// entry writes header, name and data, the latter two padded to 4 bytes.
func (w *writer) entry(name string, mode, links uint32, data []byte) {
	inode := uint32(0)
	if mode != 0 {
		w.inode++
		inode = w.inode
	}
	w.WriteString("070701")
	for _, field := range []uint32{
		inode, mode, 0 /* uid */, 0 /* gid */, links, 0 /* mtime */, uint32(len(data)),
		0, 0 /* device */, 0, 0 /* special device */, uint32(len(name) + 1), 0, /* checksum: none in newc */
	} {
		fmt.Fprintf(w, "%08X", field)
	}
	w.WriteString(name)
	w.WriteByte(0)
	w.pad(Align)
	w.Write(data)
	w.pad(Align)
}

func (w *writer) pad(to int) {
	w.Write(make([]byte, -w.Len()&(to-1)))
}
