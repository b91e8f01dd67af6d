package efi

import (
	"bytes"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var target = Target{Partition: 1, Start: 2048, Blocks: 40960, GUID: "3888061e-d941-44b5-9248-a0e2d5b5d70d", Path: `\EFI\BOOT\BOOTX64.EFI`}

// other is an entry as firmware makes for itself: attributes, no device path.
func other(description string) []byte {
	return append([]byte{1, 0, 0, 0, 0, 0}, ucs2(description)...)
}

// The layout is UEFI 2.10's: section 3.1.3 (load option), tables 10-37 (hard
// drive) and 10-40 (file path), 10-4 (end).
func TestEncode(t *testing.T) {
	got, err := Encode(target)
	if err != nil {
		t.Fatal(err)
	}
	path := "04012a00" + "01000000" + "0008000000000000" + "00a0000000000000" + "1e06883841d9b5449248a0e2d5b5d70d" + "0202" +
		"04043000" + hex.EncodeToString(ucs2(target.Path)) + "7fff0400"
	want := "01000000" + "5e00" + hex.EncodeToString(ucs2(Description)) + path
	if hex.EncodeToString(got) != want {
		t.Fatalf("got  %x\nwant %s", got, want)
	}
	if _, err := Encode(Target{GUID: "zz"}); err == nil {
		t.Fatal("took a GUID that is none")
	}
}

func TestEnsure(t *testing.T) {
	ours, err := Encode(target)
	if err != nil {
		t.Fatal(err)
	}
	stale := other(Description)
	for name, c := range map[string]struct {
		before Memory
		want   Change
		order  []byte
		gone   []string
	}{
		"empty firmware": {Memory{}, Change{Entry: "Boot0000", Written: true, Order: true}, []byte{0, 0}, nil},
		"beside others": {
			Memory{"Boot0000": other("UEFI Shell"), "Boot0001": other("PXE"), "BootOrder": {1, 0, 0, 0}},
			Change{Entry: "Boot0002", Written: true, Order: true}, []byte{2, 0, 1, 0, 0, 0}, nil,
		},
		"nothing to do": {
			Memory{"Boot0001": ours, "Boot0000": other("PXE"), "BootOrder": {1, 0, 0, 0}},
			Change{Entry: "Boot0001"}, []byte{1, 0, 0, 0}, nil,
		},
		"an older deploy's entry is reused, more of them go": {
			Memory{"Boot000A": stale, "Boot0003": stale, "Boot0000": other("PXE"), "BootOrder": {0, 0, 10, 0, 3, 0}},
			Change{Entry: "Boot0003", Written: true, Order: true, Removed: []string{"Boot000A"}}, []byte{3, 0, 0, 0}, []string{"Boot000A"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			vars := maps.Clone(c.before)
			got, err := Ensure(vars, target)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Fatal(d)
			}
			if !bytes.Equal(vars["BootOrder"], c.order) || !bytes.Equal(vars[got.Entry], ours) {
				t.Fatalf("order %x, entry %x", vars["BootOrder"], vars[got.Entry])
			}
			for n, v := range c.before {
				if _, ok := vars[n]; !ok && !slices.Contains(c.gone, n) {
					t.Errorf("%s (%x) is gone", n, v)
				}
			}
		})
	}
}

// liar takes writes and keeps nothing.
type liar struct{ Memory }

func (liar) Set(string, []byte) error { return nil }

func TestFirmwareThatForgetsIsFound(t *testing.T) {
	if _, err := Ensure(liar{Memory{}}, target); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
}

func FuzzDescribe(f *testing.F) {
	f.Add(other("x"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		describe(raw)
		if _, err := Ensure(Memory{"Boot0000": raw, "BootOrder": raw}, target); err != nil {
			t.Fatal(err)
		}
	})
}
