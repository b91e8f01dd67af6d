// Package logs keeps what nodes' agents said, in a file a node, so that it
// outlives the ramdisk and the conductor. Progress is not kept.
package logs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/slipway-metal/slipway/proto/event"
)

// fileLimit is the size, in bytes, at which a node's file becomes the old one;
// one old file is kept beside it.
const fileLimit = 2 << 20

// Keeper appends events to the files of a directory.
type Keeper struct {
	dir string
	log *slog.Logger
	mu  sync.Mutex
}

// New makes the directory.
func New(dir string, log *slog.Logger) (*Keeper, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("node logs: %w", err)
	}
	return &Keeper{dir: dir, log: log}, nil
}

// Run keeps events until the channel is closed or ctx ends. A full disk loses
// lines and nothing else; it is said once.
func (k *Keeper) Run(ctx context.Context, events <-chan event.Event) error {
	said := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-events:
			if !ok {
				return nil
			}
			if e.Kind == event.KindProgress || e.Kind == event.KindGap {
				continue
			}
			if err := k.keep(e); err != nil && !said {
				said = true
				k.log.Error("node logs can not be written", "node", e.Node, "error", err)
			}
		}
	}
}

// uuid keeps file names to what the store calls nodes.
var uuid = regexp.MustCompile(`^[0-9a-f-]{36}$`)

func (k *Keeper) path(node string) (string, error) {
	if !uuid.MatchString(node) {
		return "", fmt.Errorf("node logs: %q is no UUID", node)
	}
	return filepath.Join(k.dir, node+".jsonl"), nil
}

func (k *Keeper) keep(e event.Event) error {
	path, err := k.path(e.Node)
	if err != nil {
		return err
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if st, err := os.Stat(path); err == nil && st.Size() > fileLimit {
		if err := os.Rename(path, path+".old"); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// Tail returns the node's last events, oldest first; none when nothing was kept.
// A line cut short by a crash is left out.
func (k *Keeper) Tail(node string, limit int) ([]event.Event, error) {
	path, err := k.path(node)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []event.Event
	for _, name := range []string{path + ".old", path} {
		raw, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("logs of node %s: %w", node, err)
		}
		sc := bufio.NewScanner(bytes.NewReader(raw))
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			var e event.Event
			if json.Unmarshal(sc.Bytes(), &e) == nil {
				out = append(out, e)
			}
		}
	}
	return out[max(0, len(out)-limit):], nil
}

// Forget removes what was kept of a node.
func (k *Keeper) Forget(node string) {
	path, err := k.path(node)
	if err != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range []string{path, path + ".old"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			k.log.Warn("log of a deleted node stays", "node", node, "error", err)
		}
	}
}
