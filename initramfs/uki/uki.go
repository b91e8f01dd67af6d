// Package uki makes unified kernel images: systemd's EFI stub with a kernel, a
// ramdisk and a command line as further sections of one PE file
// (https://uapi-group.org/specifications/specs/unified_kernel_image/), which
// UEFI starts directly, by HTTP boot too, and which can be signed as a whole.
package uki

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
)

// Parts are what goes into an image.
type Parts struct {
	Stub    []byte // linuxx64.efi.stub of Debian's systemd-boot-efi
	Kernel  []byte
	Ramdisk []byte
	Cmdline string
	// OSRelease is os-release(5)'s text; boot menus show its PRETTY_NAME.
	OSRelease string
}

const (
	lfanewAt      = 0x3c // where the DOS header says where the PE header is
	signature     = 4    // "PE\0\0"
	fileHeader    = 20   // IMAGE_FILE_HEADER
	sectionHeader = 40   // IMAGE_SECTION_HEADER
	page          = 4096
	// In IMAGE_OPTIONAL_HEADER64: SizeOfInitializedData, SizeOfImage, CheckSum.
	initializedAt, imageAt, checksumAt = 8, 56, 64
	// IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ
	readOnlyData = 0x40000040
)

// Build returns the image. The same parts give the same bytes.
func Build(p Parts) ([]byte, error) {
	f, err := pe.NewFile(bytes.NewReader(p.Stub))
	if err != nil {
		return nil, fmt.Errorf("make a unified kernel image: read the EFI stub: %w", err)
	}
	opt, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return nil, errors.New("make a unified kernel image: the EFI stub is not for 64-bit machines")
	}
	if opt.FileAlignment == 0 || opt.FileAlignment > page {
		return nil, fmt.Errorf("make a unified kernel image: the EFI stub has a file alignment of %d", opt.FileAlignment)
	}
	sections := []struct {
		name string
		data []byte
	}{
		{".osrel", []byte(p.OSRelease)}, {".cmdline", []byte(p.Cmdline)}, {".linux", p.Kernel}, {".initrd", p.Ramdisk},
	}
	base := int(binary.LittleEndian.Uint32(p.Stub[lfanewAt:])) + signature
	table := base + fileHeader + int(f.FileHeader.SizeOfOptionalHeader) + len(f.Sections)*sectionHeader
	if need := table + len(sections)*sectionHeader; need > int(opt.SizeOfHeaders) {
		return nil, fmt.Errorf("make a unified kernel image: the EFI stub's header has no room: %d bytes needed, %d there", need, opt.SizeOfHeaders)
	}
	out := bytes.Clone(p.Stub)
	address := align(opt.SizeOfImage, page)
	added := uint32(0)
	for i, s := range sections {
		out = append(out, make([]byte, int(align(uint32(len(out)), opt.FileAlignment))-len(out))...)
		h := pe.SectionHeader32{
			VirtualSize: uint32(len(s.data)), VirtualAddress: address,
			SizeOfRawData: align(uint32(len(s.data)), opt.FileAlignment), PointerToRawData: uint32(len(out)),
			Characteristics: readOnlyData,
		}
		copy(h.Name[:], s.name)
		if _, err := binary.Encode(out[table+i*sectionHeader:], binary.LittleEndian, h); err != nil {
			return nil, fmt.Errorf("make a unified kernel image: %w", err)
		}
		out = append(out, s.data...)
		out = append(out, make([]byte, int(h.SizeOfRawData)-len(s.data))...)
		address = align(address+h.VirtualSize, page)
		added += h.SizeOfRawData
	}
	binary.LittleEndian.PutUint16(out[base+2:], f.FileHeader.NumberOfSections+uint16(len(sections)))
	optional := out[base+fileHeader:]
	binary.LittleEndian.PutUint32(optional[initializedAt:], opt.SizeOfInitializedData+added)
	binary.LittleEndian.PutUint32(optional[imageAt:], address)
	binary.LittleEndian.PutUint32(optional[checksumAt:], 0) // UEFI does not look at it
	return out, nil
}

func align(n, to uint32) uint32 { return (n + to - 1) / to * to }
