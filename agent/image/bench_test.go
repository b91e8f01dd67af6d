package image

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkWrite writes a 256 MiB disk image, half of it data, from a server
// in the same process onto a file, whole path: network, digest, decode, write,
// flush, verify, boot structures. B/s are those of the disk image.
//
// SLIPWAY_BENCH_IMAGE names another raw image.
func BenchmarkWrite(b *testing.B) {
	path := os.Getenv("SLIPWAY_BENCH_IMAGE")
	if path == "" {
		path = gptImage(b, 256*mib)
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		make func() []byte
	}{
		{"raw", func() []byte { return readFile(b, path) }},
		{"zstd", func() []byte { return compress(b, path, "zstd", "-3", "-T0") }},
		{"gzip", func() []byte { return compress(b, path, "gzip", "-1") }},
		{"qcow2", func() []byte { return qemuImg(b, path) }},
		{"qcow2 zlib", func() []byte { return qemuImg(b, path, "-c") }},
		{"qcow2 zstd", func() []byte { return qemuImg(b, path, "-c", "-o", "compression_type=zstd") }},
	} {
		b.Run(c.name, func(b *testing.B) {
			body := c.make()
			req := Request{URLs: []string{serve(b, body)}, Digest: sha(body)}
			dev := openDevice(b, filepath.Join(b.TempDir(), "disk"), info.Size()+4*mib)
			b.SetBytes(info.Size())
			slowest := map[string]int{}
			for b.Loop() {
				r, err := Write(b.Context(), req, dev, nil)
				if err != nil {
					b.Fatal(err)
				}
				slowest[r.Bottleneck]++
			}
			b.Logf("bottleneck %s", fmt.Sprint(slowest))
		})
	}
}
