package uki_test

import (
	"bytes"
	"debug/pe"
	"os"
	"testing"

	"github.com/slipway-metal/slipway/initramfs/uki"
)

func stub(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if err != nil {
		t.Skip("needs systemd's EFI stub (Debian: apt-get install systemd-boot-efi)")
	}
	return data
}

func TestTheImageHoldsItsPartsWhereTheStubLooks(t *testing.T) {
	parts := uki.Parts{
		Stub: stub(t), Kernel: bytes.Repeat([]byte("kernel"), 3000), Ramdisk: bytes.Repeat([]byte("ramdisk"), 5000),
		Cmdline: "console=ttyS0", OSRelease: "ID=slipway\n",
	}
	image, err := uki.Build(parts)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	end := uint32(0)
	for _, s := range f.Sections {
		if s.VirtualAddress < end {
			t.Errorf("section %s begins at %#x, before the end of the one before, %#x", s.Name, s.VirtualAddress, end)
		}
		end = s.VirtualAddress + s.VirtualSize
	}
	if size := f.OptionalHeader.(*pe.OptionalHeader64).SizeOfImage; size < end {
		t.Errorf("the image is %#x bytes in memory, its sections end at %#x", size, end)
	}
	for name, want := range map[string][]byte{
		".linux": parts.Kernel, ".initrd": parts.Ramdisk, ".cmdline": []byte(parts.Cmdline), ".osrel": []byte(parts.OSRelease),
	} {
		s := f.Section(name)
		if s == nil {
			t.Errorf("no section %s", name)
			continue
		}
		data, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		if int(s.VirtualSize) != len(want) || !bytes.Equal(data[:len(want)], want) {
			t.Errorf("section %s holds %d bytes, want %d", name, s.VirtualSize, len(want))
		}
	}
	again, err := uki.Build(parts)
	if err != nil || !bytes.Equal(image, again) {
		t.Errorf("the same parts gave other bytes (%v)", err)
	}
}

func TestWhatIsNoStubIsRefused(t *testing.T) {
	for name, data := range map[string][]byte{"empty": nil, "text": []byte("no program at all"), "cut": stub(t)[:200]} {
		if _, err := uki.Build(uki.Parts{Stub: data}); err == nil {
			t.Errorf("%s: taken for an EFI stub", name)
		}
	}
}
