// Package pack makes ramdisks: a cpio archive whose bytes depend on nothing
// but its contents, compressed, within a budget, with a table of what takes
// the space.
package pack

import (
	"bytes"
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// File is one file of the ramdisk.
type File struct {
	Path string // without a leading slash
	Mode uint64 // permission bits
	Data []byte
	// Target makes it a symbolic link.
	Target string
	// Part is the row of the size table it counts in.
	Part string
}

// Archive returns the newc cpio archive of the files and of the directories
// above them. Times are zero, owners root, inodes counted in order of paths.
func Archive(files []File, devices ...cpio.Record) ([]byte, error) {
	var records []cpio.Record
	seen := make(map[string]bool)
	for _, f := range files {
		if seen[f.Path] {
			return nil, fmt.Errorf("pack ramdisk: two files called /%s", f.Path)
		}
		seen[f.Path] = true
		if f.Target != "" {
			records = append(records, cpio.Symlink(f.Path, f.Target))
		} else {
			records = append(records, cpio.StaticFile(f.Path, string(f.Data), f.Mode))
		}
	}
	records = append(records, devices...)
	dirs := []string{"bin", "dev", "etc/slipway", "proc", "run", "sys", "tmp", "root"} // mount points
	for _, r := range records {
		dirs = append(dirs, path.Dir(r.Name))
	}
	for _, dir := range dirs {
		for ; dir != "." && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			records = append(records, cpio.Directory(dir, 0o755))
		}
	}
	slices.SortStableFunc(records, byDepth)

	var out bytes.Buffer
	w := cpio.Newc.Writer(&out)
	for i, r := range records {
		r = cpio.MakeReproducible(r)
		r.Ino = uint64(i + 1) // the DedupWriter drops nothing, and hard links cannot arise
		if err := w.WriteRecord(r); err != nil {
			return nil, fmt.Errorf("pack ramdisk: write %s: %w", r.Name, err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("pack ramdisk: %w", err)
	}
	return out.Bytes(), nil
}

// byDepth puts directories before what is in them, and the two Go programs,
// /init and /bin/slipway-agent, next to each other, the small one first: then the
// compressor's window reaches from one's Go runtime to the other's (0.2 MB).
func byDepth(a, b cpio.Record) int {
	return cmp.Or(cmp.Compare(strings.Count(a.Name, "/"), strings.Count(b.Name, "/")), strings.Compare(a.Name, b.Name))
}

// Devices are the nodes that must exist before PID 1 has mounted devtmpfs: the
// kernel opens /dev/console for it.
func Devices() []cpio.Record {
	return []cpio.Record{
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.CharDev("dev/kmsg", 0o600, 1, 11),
	}
}

// windowBytes bounds what the kernel's decompressor allocates: it takes the
// window from the frame's header, on top of the archive and its contents.
const windowBytes = 8 << 20

// Compress returns data as one zstd frame. The encoder is the one go.mod pins,
// so that the bytes don't depend on the build machine's zstd.
func Compress(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out,
		zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithWindowSize(windowBytes),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("compress ramdisk: %w", err)
	}
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("compress ramdisk: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress ramdisk: %w", err)
	}
	return out.Bytes(), nil
}
