// Package kotest makes kernel modules that hold nothing but what they say of
// themselves, for tests.
package kotest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
)

// Module returns a relocatable ELF file for x86-64 whose .modinfo section has
// the given key=value pairs.
func Module(pairs ...string) []byte {
	const headerBytes, sectionBytes = 64, 64
	names := "\x00.modinfo\x00.shstrtab\x00"
	info := strings.Join(pairs, "\x00") + "\x00"
	infoAt := uint64(headerBytes)
	namesAt := infoAt + uint64(len(info))
	sectionsAt := namesAt + uint64(len(names))

	header := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: sectionsAt, Ehsize: headerBytes, Shentsize: sectionBytes, Shnum: 3, Shstrndx: 2,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: infoAt, Size: uint64(len(info))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names))},
	}
	var out bytes.Buffer
	for _, part := range []any{header, []byte(info), []byte(names), sections} {
		if err := binary.Write(&out, binary.LittleEndian, part); err != nil {
			panic(err) // fixed-size values into memory
		}
	}
	return out.Bytes()
}
