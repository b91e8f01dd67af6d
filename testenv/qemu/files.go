package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
)

const (
	qmpSocket = "qmp.sock"
	cdFile    = "cd.iso"
)

// prepare makes what the machine needs and does not have yet.
func (m *Machine) prepare() error {
	if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return err
	}
	for _, d := range m.cfg.Disks {
		if _, err := os.Stat(d.Path); err != nil {
			return fmt.Errorf("disk %s: %w", d.Serial, err)
		}
	}
	if m.cfg.Firmware != UEFI {
		return nil
	}
	vars := m.cfg.Path(varsFile)
	if _, err := os.Stat(vars); err == nil {
		return nil
	}
	if err := copyFile(ovmfVars, vars); err != nil {
		return fmt.Errorf("make the UEFI variable store (from Debian's ovmf): %w", err)
	}
	return nil
}

// InsertMedia fetches the image at an http URL into the CD drive. It is
// fetched whole: a guest would wait on every read of a remote file.
func (m *Machine) InsertMedia(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("insert %s: %w", url, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("insert %s: %w", url, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("insert %s: the server answers %s", url, resp.Status)
	}
	path := m.cfg.Path(cdFile)
	if err := writeFile(path, resp.Body); err != nil {
		return fmt.Errorf("insert %s: %w", url, err)
	}
	return m.setMedia(ctx, path)
}

// EjectMedia empties the CD drive.
func (m *Machine) EjectMedia(ctx context.Context) error { return m.setMedia(ctx, "") }

func (m *Machine) setMedia(ctx context.Context, path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.live(); p != nil {
		var err error
		if path == "" {
			err = p.monitor.Execute(ctx, "eject", map[string]any{"id": cdID, "force": true}, nil)
		} else {
			err = p.monitor.Execute(ctx, "blockdev-change-medium", map[string]any{"id": cdID, "filename": path, "format": "raw", "force": true}, nil)
		}
		if err != nil {
			return fmt.Errorf("machine %s: change the medium: %w", m.cfg.Name, err)
		}
	}
	m.cd = path
	return nil
}

// listen makes the sockets for QEMU to inherit: they can be dialled from the
// moment the process exists, and their names need no place in its arguments.
func (m *Machine) listen(names ...string) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	for _, name := range names {
		if err := os.Remove(m.cfg.Path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return files, err
		}
		path, done, err := shortPath(m.cfg.Dir, name)
		if err != nil {
			return files, err
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		done()
		if err != nil {
			return files, fmt.Errorf("listen on %s: %w", m.cfg.Path(name), err)
		}
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if cerr := l.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// shortPath returns a path of at most 107 bytes, which is all a unix socket's
// address holds, for a file in a directory of any depth. done ends its use.
func shortPath(dir, name string) (path string, done func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(d.Fd())), name), func() { _ = d.Close() }, nil
}

// DialConsole connects to the serial port of a machine whose files are in dir.
// QEMU serves one connection at a time.
func DialConsole(dir string) (net.Conn, error) {
	path, done, err := shortPath(dir, ConsoleSocket)
	if err != nil {
		return nil, err
	}
	defer done()
	return net.Dial("unix", path)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // closing twice, or a descriptor the child has by now, is no loss
	}
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	return writeFile(to, in)
}

// writeFile puts what r holds at path, whole or not at all.
func writeFile(path string, r io.Reader) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
