package linux

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/hosttest"
	"github.com/slipway-metal/slipway/proto/agent"
)

// loop gives a loop device of size bytes, or skips: it takes root and a kernel with them.
func loop(t *testing.T, size int64) agent.Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	back, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close() //nolint:errcheck // the loop device has its own
	if err := back.Truncate(size); err != nil {
		t.Fatal(err)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no loop devices here: ", err)
	}
	defer control.Close() //nolint:errcheck // nothing to lose
	for range 10 {        // another test may take the free one first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skip("no loop device: ", err)
		}
		name := "loop" + strconv.Itoa(n)
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		if err != nil {
			t.Skip("no loop device: ", err)
		}
		err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(back.Fd()))
		if errors.Is(err, unix.EBUSY) {
			dev.Close() //nolint:errcheck // not ours
			continue
		}
		if err != nil {
			dev.Close() //nolint:errcheck // not ours
			t.Skip("no loop device: ", err)
		}
		t.Cleanup(func() {
			if err := errors.Join(unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0), dev.Close()); err != nil {
				t.Error(err)
			}
		})
		d, ok := root.Disk(name)
		if !ok {
			t.Fatalf("%s is no disk", name)
		}
		return d
	}
	t.Skip("all loop devices are taken")
	return agent.Disk{}
}

func quiet() *Host { return New(slog.New(slog.DiscardHandler), "") }

// A real block device, opened with O_DIRECT, behaves as a recorded disk does.
func TestDeviceOnLoop(t *testing.T) {
	d := loop(t, hosttest.Size)
	h := quiet()
	hosttest.Device(t, func(t *testing.T) host.Device {
		dev, err := h.OpenWrite(context.Background(), d)
		if err != nil {
			t.Fatal(err)
		}
		return dev
	})
}

func TestOpenWriteRefusesAnotherDisk(t *testing.T) {
	d := loop(t, hosttest.Size)
	h := quiet()
	other := "another serial"
	swapped := d
	swapped.Serial = &other
	if _, err := h.OpenWrite(t.Context(), swapped); !errors.Is(err, host.ErrOtherDisk) {
		t.Fatalf("got %v", err)
	}
	shrunk := d
	shrunk.Size--
	if _, err := h.OpenWrite(t.Context(), shrunk); !errors.Is(err, host.ErrOtherDisk) {
		t.Fatalf("got %v", err)
	}
	gone := d
	gone.Name = "/dev/nonesuch"
	if _, err := h.OpenWrite(t.Context(), gone); !errors.Is(err, host.ErrOtherDisk) {
		t.Fatalf("got %v", err)
	}
}

// A disk that something else has open exclusively (a mount, md, LVM) is not written.
func TestOpenWriteIsExclusive(t *testing.T) {
	d := loop(t, hosttest.Size)
	h := quiet()
	first, err := h.OpenWrite(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.OpenWrite(t.Context(), d); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("got %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
}
