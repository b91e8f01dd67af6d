package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	uroot "github.com/u-root/u-root/pkg/cpio"
)

// read takes an archive apart with u-root's reader.
func read(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := uroot.ForEachRecord(uroot.Newc.Reader(bytes.NewReader(archive)), func(r uroot.Record) error {
		if r.UID != 0 || r.GID != 0 || r.MTime != 0 {
			t.Errorf("%s: owner or time", r.Name)
		}
		content := make([]byte, r.FileSize)
		if r.FileSize > 0 {
			if _, err := r.ReadAt(content, 0); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
		found[r.Name] = fmt.Sprintf("%o %s", r.Mode, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestArchiveHoldsFilesAndTheirDirectories(t *testing.T) {
	archive, err := Archive([]File{{"etc/slipway/boot.json", 0o600, []byte("{}")}, {"etc/slipway/x", 0o755, nil}, {"init", 0o755, []byte("abcde")}})
	if err != nil {
		t.Fatal(err)
	}
	if len(archive)%Block != 0 {
		t.Errorf("%d bytes are no multiple of %d", len(archive), Block)
	}
	want := map[string]string{"etc": "40755 ", "etc/slipway": "40755 ", "etc/slipway/boot.json": "100600 {}", "etc/slipway/x": "100755 ", "init": "100755 abcde"}
	if got := read(t, archive); !maps.Equal(got, want) {
		t.Errorf("%q", got)
	}
	again, err := Archive([]File{{"etc/slipway/boot.json", 0o600, []byte("{}")}, {"etc/slipway/x", 0o755, nil}, {"init", 0o755, []byte("abcde")}})
	if err != nil || !bytes.Equal(archive, again) {
		t.Error("same files, other bytes", err)
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", "/etc/x", "../x", "a//b", "a/", "a/../b", "a\x00b", "."} {
		if _, err := Archive([]File{{Name: name}}); err == nil || !strings.Contains(err.Error(), "clean relative") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := Archive([]File{{Name: "a"}, {Name: "a"}}); err == nil {
		t.Error("twice the same file")
	}
	if _, err := Archive([]File{{Name: "a"}, {Name: "a/b"}}); err == nil {
		t.Error("a file as a directory")
	}
}

func TestPadLeadsToTheNextArchive(t *testing.T) {
	for size, want := range map[int64]int64{0: 0, 1: 3, 2: 2, 3: 1, 4: 0, 782373: 3} {
		if got := Pad(size); got != want {
			t.Errorf("Pad(%d) = %d, want %d", size, got, want)
		}
	}
}
