package osimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// The disk's layout, in bytes from its start. The root filesystem is last, so
// that a bigger disk's room is behind it; the last MiB holds the second GPT.
const (
	sector    = 512
	biosStart = 1 * mib // BIOS boot partition, for GRUB's core image
	biosBytes = 1 * mib
	espStart  = 2 * mib
	espBytes  = 33 * mib
	rootStart = espStart + espBytes
)

// Where Debian's grub-pc-bin and grub-efi-amd64-bin put their parts.
const (
	grubBIOS = "/usr/lib/grub/i386-pc"
	grubEFI  = "/usr/lib/grub/x86_64-efi"
)

// disk puts the whole disk together at path.
func (b *builder) disk(ctx context.Context, tree, path, id string) error {
	ids := identifiers(id)
	overlay, err := b.overlay(ids)
	if err != nil {
		return fmt.Errorf("lay out the overlay: %w", err)
	}
	root := filepath.Join(b.work, "root.ext4")
	if err := b.root(ctx, tree, overlay, root, ids.rootFS); err != nil {
		return fmt.Errorf("make the root filesystem: %w", err)
	}
	esp, err := b.esp(ctx, ids)
	if err != nil {
		return fmt.Errorf("make the EFI system partition: %w", err)
	}
	core, err := b.core(ctx)
	if err != nil {
		return fmt.Errorf("make GRUB for BIOS: %w", err)
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	err = assemble(out, b.recipe.Bytes, ids, core, esp, root)
	return errors.Join(err, out.Close())
}

func (b *builder) rootBytes() int64 { return b.recipe.Bytes - rootStart - mib }

// ids are the disk's identifiers, made from the build's key so that the same
// inputs give the same disk.
type ids struct {
	disk, bios, esp, root string // GPT GUIDs
	rootFS                string // ext4 UUID
	espFS                 string // FAT volume serial, 8 hexadecimal digits
}

func identifiers(id string) ids {
	guid := func(what string) string {
		h := sha256.Sum256([]byte(id + " " + what))
		h[6] = h[6]&0x0f | 0x80 // version 8, RFC 9562
		h[8] = h[8]&0x3f | 0x80
		return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
	}
	return ids{disk: guid("disk"), bios: guid("bios"), esp: guid("esp"), root: guid("root"), rootFS: guid("ext4"), espFS: guid("fat")[:8]}
}

// overlay is a tar file of what goes over Debian's tree: the embedded files,
// the guest's program and GRUB's menu.
func (b *builder) overlay(ids ids) ([]byte, error) {
	guest, err := os.ReadFile(b.opts.Guest)
	if err != nil {
		return nil, err
	}
	menu := fmt.Sprintf("set timeout=0\nlinux /vmlinuz root=UUID=%s %s\ninitrd /initrd.img\nboot\n", ids.rootFS, b.recipe.Cmdline)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(path string, mode int64, data []byte) error {
		// No entries for directories, so that Debian's keep their modes.
		if err := w.WriteHeader(&tar.Header{Name: "./" + path, Mode: mode, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	for _, part := range []string{"overlay/common", "overlay/" + b.recipe.Name} {
		err := fs.WalkDir(files, part, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := files.ReadFile(path)
			if err != nil {
				return err
			}
			mode := int64(0o644)
			if strings.Contains(path, "/sudoers.d/") {
				mode = 0o440 // sudo refuses others
			}
			return add(strings.TrimPrefix(path, part+"/"), mode, data)
		})
		if err != nil {
			return nil, err
		}
	}
	err = errors.Join(add("usr/lib/slipway/guest", 0o755, guest), add("boot/grub/grub.cfg", 0o644, []byte(menu)), w.Close())
	return buf.Bytes(), err
}

// modules are what GRUB needs to find the menu and start Linux.
var modules = []string{"part_gpt", "ext2", "normal", "linux", "configfile", "search", "search_fs_uuid", "test", "echo", "boot"}

// core makes GRUB's core image for BIOS. Its prefix has no disk, which GRUB
// takes for the disk it was started from.
func (b *builder) core(ctx context.Context) ([]byte, error) {
	path := filepath.Join(b.work, "core.img")
	args := append([]string{"-O", "i386-pc", "-d", grubBIOS, "-p", "(,gpt3)/boot/grub", "-o", path, "biosdisk"}, modules...)
	if err := b.run(ctx, "grub-mkimage", args...); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// esp makes the EFI system partition's filesystem. GRUB looks for the menu on
// the disk it was started from, then anywhere.
func (b *builder) esp(ctx context.Context, ids ids) (string, error) {
	efi := filepath.Join(b.work, "grubx64.efi")
	args := append([]string{"-O", "x86_64-efi", "-d", grubEFI, "-p", "/EFI/debian", "-o", efi, "fat", "regexp"}, modules...)
	if err := b.run(ctx, "grub-mkimage", args...); err != nil {
		return "", err
	}
	cfg := filepath.Join(b.work, "grub.cfg")
	text := `regexp --set=1:disk '^\(([^,)]+)' "$cmdpath"
set root="$disk,gpt3"
if [ ! -e /boot/grub/grub.cfg ]; then search --no-floppy --fs-uuid --set=root ` + ids.rootFS + `; fi
configfile /boot/grub/grub.cfg
`
	if err := os.WriteFile(cfg, []byte(text), 0o644); err != nil {
		return "", err
	}
	path := filepath.Join(b.work, "esp.img")
	for _, step := range [][]string{
		{"mkfs.vfat", "-F", "16", "-n", "ESP", "-i", ids.espFS, "-C", path, kib(espBytes)},
		{"mmd", "-i", path, "::EFI", "::EFI/BOOT", "::EFI/debian"},
		{"mcopy", "-i", path, efi, "::EFI/BOOT/BOOTX64.EFI"},
		{"mcopy", "-i", path, efi, "::EFI/debian/grubx64.efi"},
		{"mcopy", "-i", path, cfg, "::EFI/debian/grub.cfg"},
	} {
		if err := b.run(ctx, step[0], step[1:]...); err != nil {
			return "", err
		}
	}
	return path, nil
}

// assemble writes the partition table, the partitions and GRUB's first stage.
func assemble(out *os.File, size int64, ids ids, core []byte, esp, root string) error {
	if err := out.Truncate(size); err != nil {
		return err
	}
	if err := writeTable(out, table(size, ids), size); err != nil {
		return err
	}
	if err := writeGRUB(out, core); err != nil {
		return fmt.Errorf("write GRUB for BIOS: %w", err)
	}
	if err := put(out, espStart, esp); err != nil {
		return err
	}
	return put(out, rootStart, root)
}

func writeTable(f *os.File, t *gpt.Table, bytes int64) error {
	disk, err := file.New(f, false).Writable()
	if err == nil {
		err = t.Write(disk, bytes)
	}
	if err != nil {
		return fmt.Errorf("write the partition table of %s: %w", f.Name(), err)
	}
	return nil
}

func table(bytes int64, ids ids) *gpt.Table {
	part := func(i int, start, size int64, kind gpt.Type, name, guid string) *gpt.Partition {
		return &gpt.Partition{Index: i, Start: uint64(start / sector), End: uint64((start+size)/sector) - 1, Size: uint64(size), Type: kind, Name: name, GUID: guid}
	}
	return &gpt.Table{
		LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, GUID: ids.disk,
		Partitions: []*gpt.Partition{
			part(1, biosStart, biosBytes, gpt.BIOSBoot, "bios", ids.bios),
			part(2, espStart, espBytes, gpt.EFISystemPartition, "esp", ids.esp),
			part(3, rootStart, bytes-rootStart-mib, gpt.LinuxFilesystem, "root", ids.root),
		},
	}
}

// Offsets in GRUB's boot sector (include/grub/i386/pc/boot.h) and in the first
// sector of its core image, which loads the rest (diskboot.h).
const (
	bootCode        = 440  // bytes before the MBR's disk signature and partitions
	bootKernelLBA   = 0x5c // where the core image starts, 64 bits
	bootDriveCheck  = 0x66 // a jump that trusts the BIOS's drive number; two no-ops for hard disks
	coreListStart   = 0x1f4
	coreListLength  = 0x1fc
	coreListSegment = 0x1fe
	coreSegment     = 0x820 // 0x8200 >> 4: where the second sector goes
)

// writeGRUB does what grub-bios-setup does, which needs a device to work on.
func writeGRUB(out io.WriterAt, core []byte) error {
	boot, err := os.ReadFile(filepath.Join(grubBIOS, "boot.img"))
	if err != nil {
		return err
	}
	if len(boot) != sector || len(core) < 2*sector || len(core) > biosBytes {
		return fmt.Errorf("GRUB's images have %d and %d bytes", len(boot), len(core))
	}
	start := uint64(biosStart / sector)
	binary.LittleEndian.PutUint64(boot[bootKernelLBA:], start)
	boot[bootDriveCheck], boot[bootDriveCheck+1] = 0x90, 0x90
	binary.LittleEndian.PutUint64(core[coreListStart:], start+1)
	binary.LittleEndian.PutUint16(core[coreListLength:], uint16((len(core)-1)/sector))
	binary.LittleEndian.PutUint16(core[coreListSegment:], coreSegment)
	if _, err := out.WriteAt(core, biosStart); err != nil {
		return err
	}
	_, err = out.WriteAt(boot[:bootCode], 0)
	return err
}

// put copies a file to an offset and leaves runs of zeros as holes.
func put(out *os.File, offset int64, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for at := int64(0); at < info.Size(); {
		part := buf[:min(int64(len(buf)), info.Size()-at)]
		if _, err := in.ReadAt(part, at); err != nil {
			return fmt.Errorf("read %s at %d: %w", path, at, err)
		}
		if !zero(part) {
			if _, err := out.WriteAt(part, offset+at); err != nil {
				return err
			}
		}
		at += int64(len(part))
	}
	return nil
}

func zero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// Pad makes a raw image larger, as publishers of fixed-size images do, and
// moves the second partition table to the new end.
func Pad(path string, bytes int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(pad(f, bytes), f.Close())
}

func pad(f *os.File, bytes int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if bytes < info.Size() || bytes%mib != 0 {
		return fmt.Errorf("pad %s from %d to %d bytes: it only grows, by whole MiB", f.Name(), info.Size(), bytes)
	}
	t, err := gpt.Read(file.New(f, true), sector, sector)
	if err != nil {
		return fmt.Errorf("pad %s: %w", f.Name(), err)
	}
	// What the old end holds would otherwise look like a second table inside.
	if _, err := f.WriteAt(make([]byte, 33*sector), info.Size()-33*sector); err != nil {
		return err
	}
	if err := f.Truncate(bytes); err != nil {
		return err
	}
	t.Resize(uint64(bytes))
	return writeTable(f, t, bytes)
}
