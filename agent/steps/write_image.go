package steps

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/slipway-metal/slipway/agent/events"
	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/image"
	"github.com/slipway-metal/slipway/agent/image/source"
	"github.com/slipway-metal/slipway/agent/orders"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// WriteImage are write_image's arguments: Ironic's image_info and configdrive,
// or the fields of image_info themselves.
type WriteImage struct {
	Info        agent.ImageInfo
	ConfigDrive string
	node        Node
}

// UnmarshalJSON takes fields of image_info that we don't know: Ironic adds some
// with every release, and they are notes for others.
func (w *WriteImage) UnmarshalJSON(raw []byte) error {
	var nested struct {
		Info        json.RawMessage `json:"image_info"`
		ConfigDrive *string         `json:"configdrive"`
	}
	if err := json.Unmarshal(raw, &nested); err != nil {
		return err
	}
	info := []byte(nested.Info)
	if len(info) == 0 {
		info = raw
	}
	var partition struct {
		Type string `json:"image_type"`
	}
	if err := errors.Join(json.Unmarshal(info, &w.Info), json.Unmarshal(info, &partition)); err != nil {
		return fmt.Errorf("image_info: %w", err)
	}
	if partition.Type == "partition" {
		return errors.New("image_info: a partition image; this agent writes whole-disk images")
	}
	w.ConfigDrive = w.Info.ConfigDrive
	if nested.ConfigDrive != nil && *nested.ConfigDrive != "" {
		w.ConfigDrive = *nested.ConfigDrive
	}
	return nil
}

// SetNode keeps what the node says of its root disk.
func (w *WriteImage) SetNode(n Node) { w.node = n }

// Check finds what is wrong before any disk is touched. Its words on URLs are
// IPA's (recorded).
func (w *WriteImage) Check() error {
	if w.Info.URLs == nil {
		return errors.New("Image is missing 'urls' field.") //nolint:staticcheck // IPA's words
	}
	if len(w.Info.URLs) == 0 {
		return errors.New("Image 'urls' must be a list with at least one element.") //nolint:staticcheck // IPA's words
	}
	for _, s := range w.Info.URLs {
		u, err := url.Parse(s)
		if err != nil {
			return errors.New("image_info: a URL can't be parsed")
		}
		if u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("image_info: URL scheme %q: only http and https are fetched", u.Scheme)
		}
	}
	if w.Info.OSHashValue == "" && strings.Contains(w.Info.Checksum, "://") {
		return errors.New("image_info: checksum is a URL; give the digest itself as os_hash_algo and os_hash_value")
	}
	return nil
}

// digest prefers os_hash_*; a bare checksum says its kind by its length.
func (w *WriteImage) digest() image.Digest {
	if w.Info.OSHashValue != "" {
		return image.Digest{Algo: w.Info.OSHashAlgo, Hex: w.Info.OSHashValue}
	}
	byLength := map[int]string{32: "md5", 64: "sha256", 128: "sha512"}
	return image.Digest{Algo: byLength[len(w.Info.Checksum)], Hex: w.Info.Checksum}
}

// Written is write_image's result.
type Written struct {
	Disk agent.DiskIdentity `json:"disk"`
	Name string             `json:"device"`
	image.Report
}

func writeImage(d Deps) Step {
	return New(Meta{
		Name: "write_image", Interface: "deploy", Destructive: true,
		// Zero, as IPA's: the conductor has the step in its own list and sends it
		// with its arguments; a second one from here would have none.
		Priority: map[Kind]int{Deploy: 0, Service: 0},
		Args: map[string]Arg{
			"image_info":  {Description: "Ironic's image_info: urls, os_hash_algo, os_hash_value, disk_format", Required: true},
			"configdrive": {Description: "Config drive: base64 of a gzipped ISO, or an http(s) URL of one"},
		},
	}, func(ctx context.Context, h host.Host, w WriteImage) (Result, error) { return d.writeImage(ctx, h, w) })
}

func (d Deps) writeImage(ctx context.Context, h host.Host, w WriteImage) (res Result, err error) {
	drive, err := configDrive(ctx, d.HTTP, w.ConfigDrive)
	if err != nil {
		return res, err
	}
	disk, err := rootDisk(ctx, h, w)
	if err != nil {
		return res, err
	}
	dev, err := h.OpenWrite(ctx, disk)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	if err := d.SetRoot(disk.Identity()); err != nil {
		return res, err
	}
	report, err := image.Write(ctx, image.Request{
		URLs: w.Info.URLs, Digest: w.digest(), DiskFormat: diskFormat(w.Info.DiskFormat),
		Source: source.Options{Client: d.HTTP, Log: d.Log}, ConfigDrive: drive,
		AllowMD5: d.AllowMD5(), Memory: d.Memory, Log: d.Log,
	}, dev, func(p event.Progress) {
		p.Step = "write_image"
		events.Report(ctx, p)
	})
	if err != nil {
		return res, fmt.Errorf("disk %s: %w", disk.Identity(), err)
	}
	if err := dev.Reread(); err != nil {
		// The image is whole; the kernel here just doesn't see its partitions.
		d.Log.Warn("partitions not re-read", "disk", disk.Name, "error", err)
	}
	return Result{Value: Written{Disk: disk.Identity(), Name: disk.Name, Report: report}}, nil
}

// diskFormat: Glance and Ironic know more names for what is a raw disk to us.
func diskFormat(s string) string {
	if strings.EqualFold(s, "gpt") || strings.EqualFold(s, "mbr") {
		return "raw"
	}
	return s
}

// rootDisk is the disk to write: the one an order names (hints were resolved when
// it was planned), else the one that the hints name now.
func rootDisk(ctx context.Context, h host.Host, w WriteImage) (agent.Disk, error) {
	found, err := h.Disks(ctx)
	if err != nil {
		return agent.Disk{}, err
	}
	disks, ordered, err := orders.Select(h, found)
	if err != nil {
		return agent.Disk{}, err
	}
	if ordered {
		if len(disks) != 1 {
			return agent.Disk{}, fmt.Errorf("the order names %d disks, and an image goes to one", len(disks))
		}
		return disks[0], nil
	}
	hints := w.Info.RootDevice
	if len(hints) == 0 {
		hints = w.node.RootDevice()
	}
	return agent.PickRootDisk(found, hints)
}

// configDrive gives the ISO's bytes; nil for no config drive.
func configDrive(ctx context.Context, client *http.Client, s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	packed := []byte(nil)
	if strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://") {
		raw, err := fetch(ctx, client, s)
		if err != nil {
			return nil, fmt.Errorf("config drive: %w", err)
		}
		packed = raw
	} else {
		packed = []byte(s)
	}
	// What lies at a URL may be base64 too, as Ironic's own temporary URLs are.
	if decoded, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(packed)), "")); err == nil {
		packed = decoded
	} else if !bytes.HasPrefix(packed, []byte{0x1f, 0x8b}) {
		return nil, errors.New("config drive: neither base64 of a gzipped ISO nor a URL")
	}
	if !bytes.HasPrefix(packed, []byte{0x1f, 0x8b}) {
		return packed, nil
	}
	return image.UnzipConfigDrive(packed)
}

// fetch gets a small file. Its URL may hold a secret, so errors don't show it.
func fetch(ctx context.Context, client *http.Client, from string) ([]byte, error) {
	if client == nil {
		client = http.DefaultClient
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, errors.New("its URL can't be parsed")
	}
	resp, err := client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("from %s: %w", req.URL.Host, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("from %s: HTTP status %d", req.URL.Host, resp.StatusCode)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, image.MaxConfigDrive+1))
	if err != nil {
		return nil, fmt.Errorf("from %s: %w", req.URL.Host, err)
	}
	if len(raw) > image.MaxConfigDrive {
		return nil, fmt.Errorf("from %s: more than %d bytes", req.URL.Host, image.MaxConfigDrive)
	}
	return raw, nil
}
