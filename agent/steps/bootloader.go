package steps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/slipway-metal/slipway/agent/efi"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/agent/probe"
	"github.com/slipway-metal/slipway/proto/agent"
)

// Bootloader are install_bootloader's arguments, as Ironic sends them; for
// whole-disk images the UUIDs are null (recorded).
type Bootloader struct {
	RootUUID      *string `json:"root_uuid"`
	EFIUUID       *string `json:"efi_system_part_uuid"`
	PRePUUID      *string `json:"prep_boot_part_uuid"`
	TargetMode    string  `json:"target_boot_mode"`
	IgnoreFailure bool    `json:"ignore_bootloader_failure"`
	node          Node
}

// SetNode keeps what the node says of its root disk.
func (b *Bootloader) SetNode(n Node) { b.node = n }

// InstallBootloader makes the firmware start the written image: by UEFI one
// managed boot entry, by BIOS nothing, as the image's own MBR does it. Nothing
// from the image is run (CVE-2026-43003).
func InstallBootloader(d Deps) Step {
	return New(Meta{
		Name: "install_bootloader", Interface: "deploy",
		Priority: map[Kind]int{Deploy: 0, Service: 0},
	}, func(ctx context.Context, h host.Host, b Bootloader) (Result, error) {
		text, err := d.bootEntry(ctx, h, b)
		if err != nil {
			return Result{}, err
		}
		return Result{Value: map[string]string{"result": "install_bootloader: " + text}}, nil
	})
}

func (d Deps) bootEntry(ctx context.Context, h host.Host, b Bootloader) (text string, err error) {
	vars, err := h.EFI()
	if errors.Is(err, host.ErrNoEFI) {
		if strings.EqualFold(b.TargetMode, "uefi") {
			return "", errors.New("the node is to boot by UEFI, and this ramdisk was booted by BIOS: correct the firmware's boot mode or the node's")
		}
		return "nothing to do, booted by BIOS", nil
	}
	if err != nil {
		return "", err
	}
	disk, err := d.writtenDisk(ctx, h, b.node)
	if err != nil {
		return "", err
	}
	dev, err := h.OpenRead(ctx, disk)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	table, err := probe.ReadTable(dev, dev.Size(), dev.SectorSize())
	if err != nil {
		return "", err
	}
	esp, loader, err := findLoader(dev, table)
	if err != nil {
		return "", fmt.Errorf("disk %s: %w", disk.Identity(), err)
	}
	if table.Scheme != "gpt" {
		// The fallback path works without an entry; an MBR has no GUID to name it by.
		return "nothing to do, the ESP is on an MBR and firmware finds " + loader + " itself", nil
	}
	block := uint64(dev.SectorSize())
	change, err := efi.Ensure(vars, efi.Target{
		Partition: uint32(esp.Number), Start: uint64(esp.Start) / block, Blocks: uint64(esp.Size) / block,
		GUID: esp.GUID, Path: loader,
	})
	if err != nil {
		return "", fmt.Errorf("boot entry: %w", err)
	}
	d.Log.Info("boot entry set", "entry", change.Entry, "loader", loader, "disk", disk.Name, "written", change.Written)
	return fmt.Sprintf("%s starts %s of partition %d", change.Entry, loader, esp.Number), nil
}

// writtenDisk is the disk that write_image wrote in this boot, else the one that
// the hints name.
func (d Deps) writtenDisk(ctx context.Context, h host.Host, n Node) (agent.Disk, error) {
	found, err := h.Disks(ctx)
	if err != nil {
		return agent.Disk{}, err
	}
	id, ok := d.Root()
	if !ok {
		return agent.PickRootDisk(found, n.RootDevice())
	}
	i := slices.IndexFunc(found, func(d agent.Disk) bool { return id.Matches(d.Identity()) })
	if i < 0 {
		return agent.Disk{}, fmt.Errorf("disk %s, to which the image was written: %w", id, orders.ErrGone)
	}
	return found[i], nil
}

// fallbacks are the loaders that firmware starts without an entry (UEFI 2.10,
// table 3-4), by Go's architecture; vendors are what distributions install.
var (
	fallbacks = map[string]string{"amd64": "BOOTX64.EFI", "arm64": "BOOTAA64.EFI"}
	vendors   = map[string][]string{
		"amd64": {"shimx64.efi", "grubx64.efi", "systemd-bootx64.efi"},
		"arm64": {"shimaa64.efi", "grubaa64.efi", "systemd-bootaa64.efi"},
	}
)

// findLoader looks for a boot loader on the disk's EFI system partitions: the
// fallback first, as it is what the image's maker meant to work anywhere.
func findLoader(r io.ReaderAt, table probe.Table) (probe.Partition, string, error) {
	var seen bool
	for _, p := range table.Partitions {
		if !p.IsESP() {
			continue
		}
		seen = true
		fat, err := probe.OpenFAT(io.NewSectionReader(r, p.Start, p.Size), p.Size)
		if err != nil {
			return p, "", fmt.Errorf("EFI system partition %d: %w", p.Number, err)
		}
		loader, err := loaderOn(fat)
		if err != nil {
			return p, "", fmt.Errorf("EFI system partition %d: %w", p.Number, err)
		}
		if loader != "" {
			return p, loader, nil
		}
	}
	if !seen {
		return probe.Partition{}, "", errors.New("the image has no EFI system partition: it can't boot by UEFI; deploy a UEFI image, or set the node's boot mode to bios")
	}
	return probe.Partition{}, "", fmt.Errorf("the image's EFI system partition has no boot loader for %s", runtime.GOARCH)
}

func loaderOn(fat *probe.FAT) (string, error) {
	has := func(dir, name string) (string, error) {
		entries, err := fat.List(dir)
		for _, e := range entries {
			if !e.Dir && strings.EqualFold(e.Name, name) {
				return `\` + strings.ReplaceAll(dir, "/", `\`) + `\` + e.Name, err
			}
		}
		return "", err
	}
	if path, err := has("EFI/BOOT", fallbacks[runtime.GOARCH]); path != "" || err != nil {
		return path, err
	}
	dirs, err := fat.List("EFI")
	if err != nil {
		return "", err
	}
	for _, name := range vendors[runtime.GOARCH] {
		for _, d := range dirs {
			if !d.Dir {
				continue
			}
			if path, err := has("EFI/"+d.Name, name); path != "" || err != nil {
				return path, err
			}
		}
	}
	return "", nil
}
