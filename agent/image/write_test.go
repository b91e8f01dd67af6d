package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/slipway-metal/slipway/agent/image/source"
)

const mib = 1 << 20

// tool runs a program that the test needs.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// images are made once for each size: sgdisk ends with a sync of the whole machine.
var images = map[int64][]byte{}

// gptImage is a disk image with an EFI system partition and a root partition.
func gptImage(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.raw")
	if images[size] == nil {
		makeGPTImage(t, path, size)
		images[size] = readFile(t, path)
		return path
	}
	writeFile(t, path, images[size])
	return path
}

// makeGPTImage makes one by sgdisk: data, zeros, single bytes in zeros, and
// noise that no compressor shrinks.
func makeGPTImage(t testing.TB, path string, size int64) {
	t.Helper()
	noise := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	for off := int64(mib); off < size-mib; off += mib {
		switch off / mib % 4 {
		case 0:
			_, _ = r.Read(noise[off : off+mib])
		case 1:
			noise[off+12345] = 1
		case 2:
			copy(noise[off:off+mib], bytes.Repeat([]byte("slipway "), mib/8))
		}
	}
	if err := os.WriteFile(path, noise, 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, "sgdisk", "-n", "1:2048:+4M", "-t", "1:ef00", "-c", "1:esp", "-n", "2:0:0", "-c", "2:root", path)
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func sha(b []byte) Digest {
	s := sha256.Sum256(b)
	return Digest{"sha256", hex.EncodeToString(s[:])}
}

// serve is a correct server: ranges, ETag, Last-Modified.
func serve(t testing.TB, body []byte) string {
	t.Helper()
	etag := `"` + sha(body).Hex + `"`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(body))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/image?signature=hunter2"
}

// impatient keeps the tests of lost connections short.
var impatient = source.Options{Stall: 200 * time.Millisecond, Backoff: time.Millisecond, Attempts: 4}

func request(url string, body []byte) Request {
	return Request{URLs: []string{url}, Digest: sha(body), Source: impatient}
}

// assertImage holds the disk against the image: equal but for what moving the
// GPT's backup changes, and sgdisk finds nothing wrong.
func assertImage(t testing.TB, d *fileDevice, raw []byte) {
	t.Helper()
	got := d.bytes()
	const entries = 34 * 512 // MBR, header and entries
	if !bytes.Equal(got[entries:int64(len(raw))-mib], raw[entries:len(raw)-mib]) {
		for i := range raw[:len(raw)-mib] {
			if i >= entries && got[i] != raw[i] {
				t.Fatalf("byte %d of the disk differs from the image's", i)
			}
		}
	}
	out := tool(t, "sgdisk", "-v", d.f.Name())
	if !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v: %s", out)
	}
}

func compress(t testing.TB, path string, argv ...string) []byte {
	t.Helper()
	c := exec.Command(argv[0], argv[1:]...)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	c.Stdin = f
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	return out
}

func qemuImg(t testing.TB, path string, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image.qcow2")
	tool(t, "qemu-img", append(append([]string{"convert", "-O", "qcow2"}, args...), path, out)...)
	return readFile(t, out)
}

// Every format that is written gives the same disk.
func TestFormats(t *testing.T) {
	path := gptImage(t, 12*mib)
	raw := readFile(t, path)
	for _, c := range []struct {
		name, format string
		make         func() []byte
	}{
		{"raw", Raw, func() []byte { return raw }},
		{"gzip -1", Gzip, func() []byte { return compress(t, path, "gzip", "-1") }},
		{"gzip members", Gzip, func() []byte {
			return compress(t, path, "sh", "-c", "head -c 5999999 | gzip -9 > $0; gzip -1 >> $0; cat $0; ", filepath.Join(t.TempDir(), "m"))
		}},
		{"xz", XZ, func() []byte { return compress(t, path, "xz", "-1") }},
		{"xz -T2 blocks", XZ, func() []byte { return compress(t, path, "xz", "-0", "-T2", "--block-size=4MiB") }},
		{"zstd -19", Zstd, func() []byte { return compress(t, path, "zstd", "-19") }},
		{"zstd -1 frames", Zstd, func() []byte {
			return compress(t, path, "sh", "-c", "head -c 5999999 | zstd -1 > $0; zstd -1 >> $0; cat $0; ", filepath.Join(t.TempDir(), "m"))
		}},
		{"zstd -19 --long", Zstd, func() []byte { return compress(t, path, "zstd", "-19", "--long=27") }},
		{"lz4", LZ4, func() []byte {
			var b bytes.Buffer
			w := lz4.NewWriter(&b)
			if _, err := w.Write(raw); err != nil || w.Close() != nil {
				t.Fatal(err)
			}
			return b.Bytes()
		}},
		{"bzip2", Bzip2, func() []byte { return compress(t, path, "bzip2", "-1") }},
		{"qcow2 v2", QCOW2, func() []byte { return qemuImg(t, path, "-o", "compat=0.10") }},
		{"qcow2 v3", QCOW2, func() []byte { return qemuImg(t, path) }},
		{"qcow2 lazy refcounts", QCOW2, func() []byte { return qemuImg(t, path, "-o", "lazy_refcounts=on") }},
		{"qcow2 zlib", QCOW2, func() []byte { return qemuImg(t, path, "-c") }},
		{"qcow2 zstd", QCOW2, func() []byte { return qemuImg(t, path, "-c", "-o", "compression_type=zstd") }},
		{"qcow2 small clusters", QCOW2, func() []byte { return qemuImg(t, path, "-c", "-o", "cluster_size=4096") }},
		{"qcow2 large clusters", QCOW2, func() []byte { return qemuImg(t, path, "-c", "-o", "cluster_size=2M") }},
		{"qcow2 extended L2", QCOW2, func() []byte { return qemuImg(t, path, "-o", "extended_l2=on,cluster_size=128k") }},
		{"qcow2 unordered", QCOW2, func() []byte { return qemuImg(t, path, "-W", "-m", "8") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := c.make()
			dev := newDevice(t, 20*mib)
			req := request(serve(t, body), body)
			req.Memory = 256 * mib // --long wants a window of 128 MiB
			report, err := Write(t.Context(), req, dev, nil)
			if err != nil {
				t.Fatal(err)
			}
			assertImage(t, dev, raw)
			if report.Format != c.format || report.ImageBytes != int64(len(raw)) || report.BytesIn != int64(len(body)) || report.Digest != sha(body) {
				t.Errorf("report %+v", report)
			}
			if report.ESP == nil || report.ESP.Number != 1 || report.ESP.Size != 4*mib {
				t.Errorf("ESP %+v", report.ESP)
			}
			if dev.unflushed != 0 {
				t.Errorf("%d writes were not flushed", dev.unflushed)
			}
			if strings.Contains(report.URL, "hunter2") {
				t.Errorf("the report's URL %s holds a secret", report.URL)
			}
		})
	}
}
