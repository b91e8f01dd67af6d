package kernel_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-metal/slipway/initramfs/kernel"
)

// deb builds a package from files.
func deb(t *testing.T, files map[string]string) string {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg-deb, which Debian and its kin have")
	}
	dir := t.TempDir()
	files["DEBIAN/control"] = "Package: linux-image-test\nVersion: 6.1-1\nArchitecture: amd64\nMaintainer: nobody <nobody@example.org>\nDescription: a test\n"
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "kernel.deb")
	if text, err := exec.Command("dpkg-deb", "--build", "--root-owner-group", dir, out).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, text)
	}
	return out
}

func TestAKernelPackageIsUnpacked(t *testing.T) {
	for _, lib := range []string{"lib", "usr/lib"} { // Debian 12, and 13
		file := deb(t, map[string]string{
			"boot/vmlinuz-6.1-test": "kernel", "boot/config-6.1-test": "CONFIG_RD_ZSTD=y\nCONFIG_VT=m\n",
			lib + "/modules/6.1-test/modules.builtin": "",
		})
		pkg, err := kernel.Local(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		if pkg.Name != "linux-image-test" || pkg.Version != "6.1-1" || len(pkg.SHA256) != 64 {
			t.Errorf("package %+v", pkg)
		}
		tree, err := pkg.Unpack(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if tree.Release != "6.1-test" || !strings.HasSuffix(tree.Modules, lib+"/modules/6.1-test") {
			t.Errorf("tree %+v", tree)
		}
		if err := tree.Require("CONFIG_RD_ZSTD"); err != nil {
			t.Errorf("a kernel that can: %v", err)
		}
		if err := tree.Require("CONFIG_RD_ZSTD", "CONFIG_VT"); err == nil || !strings.Contains(err.Error(), "CONFIG_VT") {
			t.Errorf("a kernel that lacks CONFIG_VT=y: %v", err)
		}
	}
}

func TestAPackageWithoutKernelIsRefused(t *testing.T) {
	pkg, err := kernel.Local(t.Context(), deb(t, map[string]string{"usr/share/doc/x": ""}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pkg.Unpack(t.Context(), t.TempDir()); err == nil {
		t.Error("a package without boot/vmlinuz-* was taken for a kernel")
	}
}

func TestADamagedPackageIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.deb")
	if err := os.WriteFile(file, []byte("not a package"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := kernel.Local(t.Context(), file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v does not name %s", err, file)
	}
}
