package kernel_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-metal/slipway/initramfs/kernel"
)

// archive puts an apt-cache and an apt-get before the real ones: an archive
// with one kernel, whose package has the given contents, and an index that
// says sha256 of it. It returns the file that lists the downloads.
func archive(t *testing.T, contents, sha256 string) (downloads string) {
	t.Helper()
	bin := t.TempDir()
	downloads = filepath.Join(bin, "downloads")
	scripts := map[string]string{
		"apt-cache": fmt.Sprintf(`#!/bin/sh
case "$3" in
linux-image-amd64) printf 'Package: linux-image-amd64\nDepends: linux-image-6.1-amd64 (= 6.1-1)\nDescription: x\n y\n' ;;
linux-image-6.1-amd64) printf 'Package: linux-image-6.1-amd64\nVersion: 6.1-1\nSHA256: %s\n\nPackage: linux-image-6.1-amd64\nVersion: 6.0-1\n' ;;
*) echo "E: No packages found" >&2; exit 100 ;;
esac`, sha256),
		"apt-get": fmt.Sprintf("#!/bin/sh\necho \"$@\" >> %s\nprintf '%%s' '%s' > linux-image-6.1-amd64_6.1-1_amd64.deb\n", downloads, contents),
	}
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return downloads
}

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

func TestTheMetaPackagesKernelIsFetchedOnce(t *testing.T) {
	downloads := archive(t, "a kernel", sum("a kernel"))
	cache := t.TempDir()
	for range 2 {
		pkg, err := kernel.Fetch(t.Context(), "linux-image-amd64", cache)
		if err != nil {
			t.Fatal(err)
		}
		if pkg.Name != "linux-image-6.1-amd64" || pkg.Version != "6.1-1" {
			t.Errorf("package %+v", pkg)
		}
		if data, err := os.ReadFile(pkg.File); err != nil || string(data) != "a kernel" {
			t.Errorf("%s holds %q (%v)", pkg.File, data, err)
		}
	}
	list, err := os.ReadFile(downloads)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(list), "\n"); n != 1 {
		t.Errorf("%d downloads, want one and then the cache:\n%s", n, list)
	}
}

func TestAPackageThatIsNotWhatTheIndexSaysIsRefused(t *testing.T) {
	archive(t, "something else", sum("a kernel"))
	cache := t.TempDir()
	if _, err := kernel.Fetch(t.Context(), "linux-image-amd64", cache); err == nil || !strings.Contains(err.Error(), sum("a kernel")) {
		t.Errorf("error %v does not say the digest that was expected", err)
	}
	if left, err := filepath.Glob(filepath.Join(cache, "deb", "*")); err != nil || len(left) > 0 {
		t.Errorf("the cache keeps %v (%v)", left, err)
	}
}

func TestADamagedCacheIsFetchedAnew(t *testing.T) {
	archive(t, "a kernel", sum("a kernel"))
	cache := t.TempDir()
	pkg, err := kernel.Fetch(t.Context(), "linux-image-amd64", cache)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pkg.File, []byte("half a"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := kernel.Fetch(t.Context(), "linux-image-amd64", cache); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(pkg.File); err != nil || string(data) != "a kernel" {
		t.Errorf("the cache holds %q (%v)", data, err)
	}
}

func TestAnUnknownPackageSaysWhatToDo(t *testing.T) {
	archive(t, "", "")
	if _, err := kernel.Fetch(t.Context(), "linux-image-none", t.TempDir()); err == nil || !strings.Contains(err.Error(), "apt-get update") {
		t.Errorf("error %v does not say the next step", err)
	}
}
