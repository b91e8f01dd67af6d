package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/testenv/osimage"
)

// needLab skips what takes longer than a commit should wait.
func needLab(t *testing.T) {
	t.Helper()
	if os.Getenv("SLIPWAY_LAB") == "" {
		t.Skip("takes minutes: make lab sets SLIPWAY_LAB")
	}
}

func with(change func(*machine)) machine {
	m := quick
	change(&m)
	return m
}

// TestMatrix deploys by every firmware, boot path, disk bus and image form.
func TestMatrix(t *testing.T) {
	needLab(t)
	for _, row := range []struct {
		name    string
		machine machine
		form    string // of the quick image
	}{
		{"BIOS, virtio, qcow2", with(func(m *machine) { m.firmware = "bios" }), "qcow2"},
		{"BIOS, NVMe, gzip", with(func(m *machine) { m.firmware, m.bus = "bios", "nvme" }), "raw.gz"},
		{"UEFI, NVMe, raw", with(func(m *machine) { m.bus = "nvme" }), "raw"},
		{"UEFI without a card's ROM, virtio, xz", with(func(m *machine) { m.rom = "none" }), "raw.xz"},
		{"metal ramdisk, UEFI, AHCI, e1000e, zstd", with(func(m *machine) { m.flavor, m.bus, m.nic = "metal", "ahci", "e1000e" }), "raw.zst"},
		{"metal ramdisk, BIOS, AHCI, e1000e, qcow2", with(func(m *machine) { m.flavor, m.firmware, m.bus, m.nic = "metal", "bios", "ahci", "e1000e" }), "qcow2"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, row.machine)
			r.ready()
			url, digest := r.form("quick", row.form)
			r.deployTo(url, digest)
			r.checkLogin()
			r.checkDisk()
		})
	}
}

// form offers the image in a form; those that make image does not build are
// packed here, once.
func (r *rig) form(name, form string) (url, digest string) {
	r.t.Helper()
	pack := map[string][]string{"raw.gz": {"gzip", "-1", "-c"}, "raw.xz": {"xz", "-1", "-T0", "-c"}}[form]
	if pack == nil {
		return r.image(name, form)
	}
	_, sum := r.image(name, "raw")
	raw := filepath.Join(r.images(), name+".raw")
	dir := filepath.Join(root, "build", "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	packed := filepath.Join(dir, fmt.Sprintf("%s-%s.%s", name, sum[:12], form))
	if _, err := os.Stat(packed); err != nil {
		out, err := os.Create(packed + ".new")
		if err != nil {
			r.t.Fatal(err)
		}
		cmd := exec.CommandContext(r.t.Context(), pack[0], append(pack[1:], raw)...)
		cmd.Stdout = out
		if err := cmd.Run(); err != nil {
			r.t.Fatalf("%s: %v", strings.Join(pack, " "), err)
		}
		if err := out.Close(); err != nil {
			r.t.Fatal(err)
		}
		if err := os.Rename(packed+".new", packed); err != nil {
			r.t.Fatal(err)
		}
	}
	return r.offer(packed), fileDigest(r.t, packed)
}

// TestSmallMachine deploys an image of 3 GB onto a machine with 256 MB of memory.
func TestSmallMachine(t *testing.T) {
	needLab(t)
	r := newRig(t, with(func(m *machine) { m.memory = "256MiB" }))
	r.ready()
	_, _ = r.image("quick", "raw")
	padded := filepath.Join(r.dir, "padded.raw")
	if err := copyFile(filepath.Join(r.images(), "quick.raw"), padded); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(padded)
	if err != nil {
		t.Fatal(err)
	}
	if err := osimage.Pad(padded, 3<<30); err != nil {
		t.Fatal(err)
	}
	if err := fillWith(padded, st.Size(), 256<<20); err != nil {
		t.Fatal(err)
	}
	packed := padded + ".zst"
	if out, err := exec.CommandContext(t.Context(), "zstd", "-q", "-3", "-T0", padded, "-o", packed).CombinedOutput(); err != nil {
		t.Fatalf("zstd: %v %s", err, out)
	}
	r.deployTo(r.offer(packed), fileDigest(t, packed))
	// What was deployed is Debian, which asks for more memory to start than the
	// ramdisk does to deploy it: the disk itself is compared.
	r.checkDisk()
	if err := sameContent(padded, r.lab.Machine("node-1").DiskPath(0)); err != nil {
		t.Error(err)
	}
}

// sameContent compares what a deploy leaves as it is in the image: all but the
// first and last mebibyte, which hold the partition table.
func sameContent(image, disk string) error {
	a, err := os.Open(image)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer b.Close()
	st, err := a.Stat()
	if err != nil {
		return err
	}
	const piece = 1 << 20
	x, y := make([]byte, piece), make([]byte, piece)
	for off := int64(piece); off+2*piece <= st.Size(); off += piece {
		if _, err := a.ReadAt(x, off); err != nil {
			return err
		}
		if _, err := b.ReadAt(y, off); err != nil {
			return err
		}
		if !bytes.Equal(x, y) {
			return fmt.Errorf("the disk differs from the image between bytes %d and %d", off, off+piece)
		}
	}
	return nil
}

// fillWith writes n bytes that no packer makes smaller into the unpartitioned
// space at off.
func fillWith(path string, off, n int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(f, off), io.LimitReader(rand.NewChaCha8([32]byte{1}), n))
	return errors.Join(err, f.Close())
}

// copyFile copies, so that the copy may be changed.
func copyFile(from, to string) error {
	return exec.Command("cp", "--sparse=always", from, to).Run()
}

// TestCloudInit deploys the image whose first boot is cloud-init's.
func TestCloudInit(t *testing.T) {
	needLab(t)
	r := newRig(t, with(func(m *machine) { m.memory = "1GiB" }))
	begun := time.Now()
	r.ready()
	url, digest := r.image("cloud-init", "raw.zst")
	r.deployTo(url, digest)
	r.checkLogin()
	login := time.Now()
	f := figuresOf(t, r.events(), login)
	f["enrol to SSH login, s"] = login.Sub(begun).Seconds()
	record(t, "deploy-cloud-init", f)
}

// TestConductorKilledDuringTheWrite: kill -9 in the middle of write_image; the
// conductor that starts again finds the agent still writing and goes on.
func TestConductorKilledDuringTheWrite(t *testing.T) {
	needLab(t)
	r := newRig(t, quick)
	r.ready()
	url, digest := r.image("quick", "raw.zst")
	key := filepath.Join(r.lab.Dir(), "ssh", "id_ed25519.pub")
	r.slipway("node", "deploy", "e2e-1", "--yes", "--image", url, "--digest", digest, "--ssh-key", key)
	r.await("step write_image", func(out string) bool { return strings.Contains(out, "write_image") && strings.Contains(out, "%") })
	if err := r.conductor.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.conductor.Wait(); err == nil {
		t.Fatal("the conductor was to be killed")
	}
	r.serve()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	for state := ""; state != "active"; {
		state = r.state()
		if strings.HasSuffix(state, "failed") {
			t.Fatalf("the deploy failed:\n%s", r.slipway("explain", "e2e-1"))
		}
		if ctx.Err() != nil {
			t.Fatalf("still %s", state)
		}
		r.pause(time.Second)
	}
	r.checkLogin()
	if n := r.count("step write_image started"); n != 1 {
		t.Errorf("the image was written %d times", n)
	}
}

// state is the node's provision state.
func (r *rig) state() string {
	r.t.Helper()
	for line := range strings.Lines(r.slipway("node", "show", "e2e-1")) {
		if v, ok := strings.CutPrefix(line, "provision_state "); ok {
			return strings.TrimSpace(v)
		}
	}
	r.t.Fatal("node show has no provision_state")
	return ""
}

// await explains until ok likes it.
func (r *rig) await(what string, ok func(string) bool) {
	r.t.Helper()
	for range 600 {
		if ok(r.slipway("explain", "e2e-1")) {
			return
		}
		r.pause(100 * time.Millisecond)
	}
	r.t.Fatalf("no %s", what)
}

// count is how often the conductor recorded a fact.
func (r *rig) count(fact string) int {
	r.t.Helper()
	raw, err := os.ReadFile(filepath.Join(r.dir, "conductor.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Count(string(raw), fact)
}

// TestUndeployAndAgain: tear down, clean, and deploy once more.
func TestUndeployAndAgain(t *testing.T) {
	needLab(t)
	r := newRig(t, quick)
	r.ready()
	url, digest := r.image("quick", "raw.zst")
	for range 2 {
		r.deployTo(url, digest)
		r.checkLogin()
		r.slipway("node", "undeploy", "e2e-1", "--yes", "--wait", "--timeout", "6m")
		if out, err := exec.CommandContext(t.Context(), "sgdisk", "-p", r.lab.Machine("node-1").DiskPath(0)).CombinedOutput(); err == nil && strings.Contains(string(out), "config-2") {
			t.Errorf("partitions survived cleaning:\n%s", out)
		}
	}
}
