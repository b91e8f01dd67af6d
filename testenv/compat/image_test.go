package compat

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const mib = 1 << 20

// A small but real image: 48 MiB, GPT, an ESP with a loader, and data that is random.
const (
	imageSize = 48 * mib
	espStart  = 1 * mib
	rootStart = 34 * mib
	rootEnd   = 46 * mib
)

type image struct {
	bytes  []byte
	URL    string
	SHA256 string
}

func makeImage(t *testing.T) image {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	data := make([]byte, imageSize)
	if _, err := rand.Read(data[rootStart:rootEnd]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	loader := filepath.Join(dir, "BOOTX64.EFI")
	if err := os.WriteFile(loader, []byte("MZ stands for a loader"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := path + "@@1M"
	for _, args := range [][]string{
		{"sgdisk", "-n", "1:2048:+32M", "-t", "1:ef00", "-n", "2:69632:+12M", "-t", "2:8300", path},
		{"mformat", "-i", at, "-T", "65536", "-h", "16", "-s", "63", "::"},
		{"mmd", "-i", at, "::/EFI", "::/EFI/BOOT"},
		{"mcopy", "-i", at, loader, "::/EFI/BOOT/BOOTX64.EFI"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "disk.raw", time.Unix(1e9, 0), bytes.NewReader(raw))
	}))
	t.Cleanup(srv.Close)
	return image{bytes: raw, URL: srv.URL + "/disk.raw", SHA256: hex.EncodeToString(sum[:])}
}
