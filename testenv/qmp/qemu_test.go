package qmp_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/slipway-metal/slipway/testenv/qmp"
)

// A QEMU without a machine starts in milliseconds and speaks the same protocol.
func TestARealQEMU(t *testing.T) {
	bin, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	path := filepath.Join(t.TempDir(), "qmp")
	cmd := exec.CommandContext(t.Context(), bin, "-machine", "none", "-nodefaults", "-nographic", "-S", "-qmp", "unix:"+path+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	c, err := qmp.Dial(ctx(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var version struct {
		Package string
		QEMU    struct{ Major, Minor, Micro int }
	}
	if err := c.Execute(ctx(t), "query-version", nil, &version); err != nil || version.QEMU.Major == 0 {
		t.Fatalf("version %+v, error %v", version, err)
	}
	if err := c.Execute(ctx(t), "quit", nil, nil); err != nil {
		t.Log("quit cut the connection before its answer:", err)
	}
	if err := <-exited; err != nil {
		t.Fatal(err)
	}
	var shutdown bool
	for e := range c.Events() {
		shutdown = shutdown || e.Name == "SHUTDOWN"
	}
	if !shutdown {
		t.Fatal("no SHUTDOWN event")
	}
}
