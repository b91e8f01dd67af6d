package recorded

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/slipway-metal/slipway/agent/host"
	"github.com/slipway-metal/slipway/agent/host/hosttest"
	"github.com/slipway-metal/slipway/proto/agent"
)

const sda = "sys/block/sda/"

// machine is a recording of one disk of hosttest.Size bytes.
func machine(t *testing.T) *Host {
	t.Helper()
	dir := t.TempDir()
	if err := Extract([]byte("-- "+sda+"size --\n16384\n-- "+sda+"serial --\nS1\n-- "+sda+"queue/logical_block_size --\n512\n"), dir); err != nil {
		t.Fatal(err)
	}
	return &Host{Dir: dir}
}

func one(t *testing.T, h *Host) agent.Disk {
	t.Helper()
	disks, err := h.Disks(t.Context())
	if err != nil || len(disks) != 1 {
		t.Fatalf("%v %v", disks, err)
	}
	return disks[0]
}

func TestDevice(t *testing.T) {
	h := machine(t)
	hosttest.Device(t, func(t *testing.T) host.Device {
		d, err := h.OpenWrite(context.Background(), one(t, h))
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

// Between plan and write disks may be swapped, or taken by somebody else.
func TestOpenWriteLooksAgain(t *testing.T) {
	h := machine(t)
	d := one(t, h)
	first, err := h.OpenWrite(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.OpenWrite(t.Context(), d); err == nil {
		t.Fatal("opened for writing twice")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	set := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(h.Dir, sda, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	set("ro", "1\n")
	if _, err := h.OpenWrite(t.Context(), d); !errors.Is(err, host.ErrReadOnly) {
		t.Fatalf("read-only: %v", err)
	}
	set("ro", "0\n")
	set("serial", "S2\n")
	if _, err := h.OpenWrite(t.Context(), d); !errors.Is(err, host.ErrOtherDisk) {
		t.Fatalf("another disk: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(h.Dir, sda)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.OpenWrite(t.Context(), d); !errors.Is(err, host.ErrOtherDisk) {
		t.Fatalf("gone: %v", err)
	}
}

// A recording comes from a stranger: it writes nothing outside its directory.
func TestExtractStaysInside(t *testing.T) {
	for _, name := range []string{"../x", "/x", "a/../../x"} {
		if err := Extract([]byte("-- "+name+" --\nx\n"), t.TempDir()); err == nil {
			t.Errorf("%s was written", name)
		}
	}
}
