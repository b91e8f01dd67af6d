package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/testenv/lab"
	"github.com/slipway-metal/slipway/testenv/osimage"
)

type imageCmd struct {
	Build imageBuildCmd `cmd:"" help:"Build an image, or find it in the cache."`
}

type imageBuildCmd struct {
	Name  string `arg:"" enum:"quick,cloud-init" help:"quick (config drive by a small program of its own) or cloud-init (ConfigDrive only)."`
	Out   string `help:"Also link the files into this directory." placeholder:"DIR" type:"path"`
	Guest string `help:"The program that runs at the quick image's first boot; built from this source tree by default." placeholder:"FILE" type:"existingfile"`
}

// Help says what the one-line summary cannot.
func (c *imageBuildCmd) Help() string {
	return "A small Debian bookworm that boots by BIOS and by UEFI from virtio, NVMe and SATA disks, as raw, raw.zst and\n" +
		"qcow2, with .sha256 files and a .json beside them. Kept in $SLIPWAY_CACHE or ~/.cache/slipway; a build takes\n" +
		"some minutes, and is only done again when its recipe has changed. Needs no root, if /etc/subuid names you."
}

func (c *imageBuildCmd) Run(a *app) error {
	recipe, err := osimage.Find(c.Name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.cache, 0o755); err != nil {
		return err
	}
	guest := c.Guest
	if guest == "" {
		dir, err := os.MkdirTemp("", "slipway-guest-*")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if guest, err = buildGuest(a.ctx, dir); err != nil {
			return err
		}
	}
	began := time.Now()
	img, err := osimage.Build(a.ctx, recipe, osimage.Options{
		Cache: a.cache, Guest: guest,
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%4.0f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
		},
	})
	var missing *osimage.MissingTools
	if errors.As(err, &missing) {
		return &lab.Error{What: "build the image " + c.Name, Why: missing.Error(), Next: "apt-get install " + strings.Join(missing.Packages, " "), Err: err}
	}
	if err != nil {
		return err
	}
	for _, form := range []string{"raw", "zst", "qcow2"} {
		path := img.Path(form)
		if c.Out != "" {
			if path, err = link(img, form, c.Out); err != nil {
				return err
			}
		}
		fmt.Printf("%s  %s\n", img.SHA256[form], path)
	}
	return nil
}

// buildGuest compiles the guest's program from the module this is run in.
func buildGuest(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "guest")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -buildid=", "-o", path,
		"github.com/slipway-metal/slipway/testenv/osimage/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", &lab.Error{What: "build the image's first-boot program", Why: fmt.Sprintf("go build: %v %s", err, out),
			Next: "run this in Slipway's source tree, or give --guest FILE", Err: err}
	}
	return path, nil
}

func link(img osimage.Image, form, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{img.Files[form], img.Files[form] + ".sha256", img.Name + ".json"} {
		to := filepath.Join(dir, name)
		if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if err := os.Symlink(filepath.Join(img.Dir, name), to); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, img.Files[form]), nil
}
