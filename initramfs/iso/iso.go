// Package iso makes ISO images that boot the ramdisk by BIOS and by UEFI, from
// virtual media, a USB stick or a disc. An image has room for configuration
// that a server fills in as it serves the image, without rebuilding it.
package iso

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/slipway-metal/slipway/initramfs/pack"
)

// ConfigBytes is the room for configuration, an uncompressed cpio archive
// padded with zeros.
const ConfigBytes = 64 << 10

// marker stands in the room of an image that nobody has filled in.
const marker = "slipway-configuration-goes-here\n"

// menu is GRUB's configuration. GRUB passes several files as one initrd, each
// at a multiple of 4 bytes.
const menu = `set timeout=0
serial --unit=0 --speed=115200
terminal_output console serial
menuentry "Slipway" {
  linux /vmlinuz %s
  initrd /initramfs.cpio.zst /config.cpio
}
`

// Build makes the image file from a build's directory by GRUB's grub-mkrescue
// (Debian: grub-pc-bin, grub-efi-amd64-bin, grub-common, mtools, xorriso), and
// returns where in it the room for configuration begins, in bytes.
func Build(ctx context.Context, dir, cmdline, file string) (int64, error) {
	if _, err := exec.LookPath("grub-mkrescue"); err != nil {
		return 0, errors.New("make an ISO: grub-mkrescue is missing: apt-get install grub-common grub-pc-bin grub-efi-amd64-bin mtools xorriso")
	}
	tree, err := os.MkdirTemp(filepath.Dir(file), ".iso-")
	if err != nil {
		return 0, fmt.Errorf("make an ISO: %w", err)
	}
	defer os.RemoveAll(tree)
	for _, name := range []string{pack.KernelFile, pack.RamdiskFile} {
		if err := os.Link(filepath.Join(dir, name), filepath.Join(tree, name)); err != nil {
			return 0, fmt.Errorf("make an ISO: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(tree, "boot/grub"), 0o755); err != nil {
		return 0, fmt.Errorf("make an ISO: %w", err)
	}
	if err := os.WriteFile(filepath.Join(tree, "boot/grub/grub.cfg"), fmt.Appendf(nil, menu, cmdline), 0o644); err != nil {
		return 0, fmt.Errorf("make an ISO: %w", err)
	}
	room, err := emptyRoom()
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(tree, "config.cpio"), room, 0o644); err != nil {
		return 0, fmt.Errorf("make an ISO: %w", err)
	}
	cmd := exec.CommandContext(ctx, "grub-mkrescue", "-o", file, tree, "--", "-volid", "SLIPWAY")
	if text, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("make an ISO: grub-mkrescue: %w: %s", err, lastLine(text))
	}
	image, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("make an ISO: %w", err)
	}
	at := bytes.Index(image, room)
	if at < 0 || bytes.Contains(image[at+1:], room) {
		return 0, errors.New("make an ISO: the room for configuration is not in it once, as it must be")
	}
	return int64(at), nil
}

// emptyRoom is a valid archive of exactly ConfigBytes that brings nothing the
// agent reads.
func emptyRoom() ([]byte, error) {
	room, err := pack.Archive([]pack.File{{Path: "etc/slipway/unfilled", Mode: 0o444, Data: []byte(marker)}})
	if err != nil {
		return nil, fmt.Errorf("make room for configuration: %w", err)
	}
	return Room(room)
}

// Room pads an archive to the size of the room, to be written over it.
func Room(archive []byte) ([]byte, error) {
	if len(archive) > ConfigBytes {
		return nil, fmt.Errorf("the configuration takes %d bytes, an ISO has room for %d", len(archive), ConfigBytes)
	}
	return append(bytes.Clone(archive), make([]byte, ConfigBytes-len(archive))...), nil
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}
