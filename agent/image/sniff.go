package image

import (
	"bytes"
	"fmt"
)

// Formats that are written.
const (
	Raw   = "raw"
	Gzip  = "gzip"
	XZ    = "xz"
	Zstd  = "zstd"
	Bzip2 = "bzip2"
	LZ4   = "lz4"
	QCOW2 = "qcow2"
)

// sniffLen is how many first bytes sniff wants to see.
const sniffLen = 64 << 10

// magics are the contents that are told apart; the first match wins. advice is
// why a format is refused and what to do instead.
var magics = []struct {
	name   string
	off    int
	magic  string
	advice string
}{
	{name: QCOW2, magic: "QFI\xfb"},
	{name: Gzip, magic: "\x1f\x8b\x08"},
	{name: XZ, magic: "\xfd7zXZ\x00"},
	{name: Zstd, magic: "\x28\xb5\x2f\xfd"},
	{name: LZ4, magic: "\x04\x22\x4d\x18"},
	{name: Bzip2, magic: "BZh"},
	{name: "vmdk", magic: "KDMV", advice: "convert it: qemu-img convert -O raw"},
	{name: "vmdk", magic: "# Disk DescriptorFile", advice: "it names other files; convert it: qemu-img convert -O raw"},
	{name: "vhdx", magic: "vhdxfile", advice: "convert it: qemu-img convert -O raw"},
	{name: "vhd", magic: "conectix", advice: "convert it: qemu-img convert -f vpc -O raw"},
	{name: "qed", magic: "QED\x00", advice: "convert it: qemu-img convert -O raw"},
	{name: "vdi", off: 64, magic: "\x7f\x10\xda\xbe", advice: "convert it: qemu-img convert -O raw"},
	{name: "luks", magic: "LUKS\xba\xbe", advice: "a bare encrypted volume is no whole-disk image"},
	{name: "zip", magic: "PK\x03\x04", advice: "unpack it and publish the disk image inside"},
	{name: "7z", magic: "7z\xbc\xaf\x27\x1c", advice: "unpack it and publish the disk image inside"},
	{name: "tar", off: 257, magic: "ustar", advice: "unpack it and publish the disk image inside"},
	{name: "html", magic: "<!DOCTYPE", advice: "the server answered with a page, not an image"},
	{name: "html", magic: "<html", advice: "the server answered with a page, not an image"},
}

// zstd's skippable frames (RFC 8878, 3.1.2) may come first.
func isSkippable(b []byte) bool {
	return len(b) >= 4 && b[0]&0xf0 == 0x50 && b[1] == 0x2a && b[2] == 0x4d && b[3] == 0x18
}

// sniff names the format of content by its first bytes.
func sniff(b []byte) (format, advice string) {
	for _, m := range magics {
		if len(b) >= m.off && bytes.HasPrefix(b[m.off:], []byte(m.magic)) {
			if m.name == Bzip2 && (len(b) < 10 || b[3] < '1' || b[3] > '9' || string(b[4:10]) != "1AY&SY") {
				continue
			}
			return m.name, m.advice
		}
	}
	if isSkippable(b) {
		return Zstd, ""
	}
	return Raw, ""
}

// checkFormat refuses what is not written and what the operator did not mean.
func checkFormat(format, advice, declared string) error {
	if advice != "" {
		return fmt.Errorf("%w: its content is %s: %s", ErrFormat, format, advice)
	}
	if declared == QCOW2 && format != QCOW2 {
		return fmt.Errorf("%w: disk_format says qcow2 and the content is %s: correct disk_format, or publish the image that was meant", ErrFormat, format)
	}
	if declared == Raw && format == QCOW2 {
		return fmt.Errorf("%w: disk_format says raw and the content is qcow2: correct disk_format, or publish the image that was meant", ErrFormat)
	}
	return nil
}

// checkInner refuses decompressed content that is not a disk's bytes.
func checkInner(b []byte, outer string) error {
	inner, advice := sniff(b)
	switch {
	case outer == QCOW2 || outer == Raw || inner == Raw:
		return nil
	case inner == QCOW2:
		return fmt.Errorf("%w: qcow2 inside %s: its clusters can only be placed with the tables at hand, which a stream does not give: publish the qcow2 itself (compress its clusters with qemu-img convert -c), or raw inside %s", ErrFormat, outer, outer)
	case advice != "":
		return fmt.Errorf("%w: %s inside %s: %s", ErrFormat, inner, outer, advice)
	}
	return fmt.Errorf("%w: %s inside %s: compress the raw disk image once", ErrFormat, inner, outer)
}
