package commands

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/sequence"
)

func cut(name string) (ext, short string, ok bool) { return strings.Cut(name, ".") }

func (d Deps) standby() map[string]sequence.Command {
	return map[string]sequence.Command{
		// Every write of ours is flushed by its step; there is nothing left to sync.
		"sync":          sync(func(context.Context, none) (any, error) { return nil, nil }),
		"prepare_image": d.prepareImage(),
		"power_off":     halt[none](host.PowerOff),
		"run_image":     halt[none](host.Reboot),
		// IPA gives what prepare_image found; whole-disk images have none (recorded).
		"get_partition_uuids": sync(func(context.Context, none) (any, error) { return map[string]any{}, nil }),
	}
}

// collectLogs answers as IPA: a gzipped tar, base64, under system_logs.
func (d Deps) collectLogs() sequence.Command {
	cmd := sync(func(context.Context, none) (any, error) {
		kernel, err := d.Host.KernelLog()
		if err != nil {
			kernel = []byte(err.Error() + "\n") // the agent's own log still helps
		}
		machine, err := d.Host.Record()
		if err != nil {
			machine = []byte(err.Error() + "\n")
		}
		packed, err := pack([]file{{"kernel.log", kernel}, {"agent.log", d.AgentLog()}, {"machine.txtar", machine}})
		if err != nil {
			return nil, fmt.Errorf("collect logs: %w", err)
		}
		return map[string]string{"system_logs": base64.StdEncoding.EncodeToString(packed)}, nil
	})
	cmd.WhileBusy = true // logs are wanted most when a step hangs
	return cmd
}

type file struct {
	name string
	data []byte
}

func pack(files []file) ([]byte, error) {
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	for _, f := range files {
		head := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), ModTime: time.Now()}
		if err := tw.WriteHeader(head); err != nil {
			return nil, err
		}
		if _, err := tw.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
