package agent

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func ptr[T any](v T) *T { return &v }

const gib = int64(1) << 30

var hintDisks = []Disk{
	{Name: "/dev/sda", Model: ptr("ST1000NM0033 "), Vendor: ptr("SEAGATE"), Serial: ptr("S1"), WWN: ptr("0x5000c500a1"), Size: 931*gib + 5, Rotational: true, HCTL: ptr("0:0:0:0"), ByPath: ptr("/dev/disk/by-path/pci-0000:00:1f.2-ata-1")},
	{Name: "/dev/sdb", Model: ptr("Samsung SSD 860"), Vendor: ptr("ATA"), Serial: ptr("S2"), WWN: ptr("0x5000c500a2"), WWNWithExtension: ptr("0x5000c500a2ff"), WWNVendorExtension: ptr("0xff"), Size: 100 * gib, HCTL: ptr("1:0:0:0")},
	{Name: "/dev/nvme0n1", Model: ptr("INTEL P4510"), Serial: ptr("S3"), Size: 200 * gib},
	{Name: "/dev/sdc", Model: ptr("USB stick"), Size: 2 * gib},
}

// The operators are Ironic's, so its operators' hints mean the same disk here.
func TestHintsNameTheDiskThatIronicWouldTake(t *testing.T) {
	for _, c := range []struct{ hints, want string }{
		{`{}`, "/dev/sdb"},
		{`{"serial": "s3"}`, "/dev/nvme0n1"},
		{`{"serial": "s== S3"}`, "/dev/nvme0n1"},
		{`{"model": "st1000nm0033"}`, "/dev/sda"},
		{`{"model": "<in> samsung"}`, "/dev/sdb"},
		{`{"model": "<all-in> ssd 860"}`, "/dev/sdb"},
		{`{"vendor": "<or> foo <or> seagate"}`, "/dev/sda"},
		{`{"wwn": "0x5000C500A2"}`, "/dev/sdb"},
		{`{"wwn_with_extension": "0x5000c500a2ff"}`, "/dev/sdb"},
		{`{"wwn_vendor_extension": "0xff"}`, "/dev/sdb"},
		{`{"hctl": "1:0:0:0"}`, "/dev/sdb"},
		{`{"name": "/dev/sda"}`, "/dev/sda"},
		{`{"name": "/dev/disk/by-path/pci-0000:00:1f.2-ata-1"}`, "/dev/sda"},
		{`{"by_path": "/dev/disk/by-path/pci-0000:00:1f.2-ata-1"}`, "/dev/sda"},
		{`{"size": 931}`, "/dev/sda"},
		{`{"size": "931"}`, "/dev/sda"},
		{`{"size": ">= 500"}`, "/dev/sda"},
		{`{"size": "= 500"}`, "/dev/sda"},
		{`{"size": "<= 10"}`, "/dev/sdc"},
		{`{"size": "< 3"}`, "/dev/sdc"},
		{`{"size": "<or> 1 <or> 200"}`, "/dev/nvme0n1"},
		{`{"rotational": true}`, "/dev/sda"},
		{`{"rotational": "yes"}`, "/dev/sda"},
		{`{"rotational": false, "size": "> 150"}`, "/dev/nvme0n1"},
		{`{"model": "s!= x", "vendor": "ata"}`, "/dev/sdb"},
	} {
		var hints map[string]any
		if err := json.Unmarshal([]byte(c.hints), &hints); err != nil {
			t.Fatal(err)
		}
		if d, err := PickRootDisk(hintDisks, hints); err != nil || d.Name != c.want {
			t.Errorf("%s: got %q, %v; want %s", c.hints, d.Name, err, c.want)
		}
	}
}

// A wrong guess wipes somebody's data: none, several and nonsense are errors
// that say what to do.
func TestHintsRefuseToGuess(t *testing.T) {
	twins := []Disk{{Name: "/dev/sda", Size: 9 * gib}, {Name: "/dev/sdb", Size: 9 * gib}}
	for _, c := range []struct {
		name  string
		disks []Disk
		hints map[string]any
		want  error
		says  string
	}{
		{"no disk at all", nil, nil, ErrNoRootDisk, "no disk"},
		{"too small", hintDisks[3:], nil, ErrNoRootDisk, "4 GiB"},
		{"no match", hintDisks, map[string]any{"serial": "nope"}, ErrNoRootDisk, `serial s== "nope"`},
		{"several match", hintDisks, map[string]any{"rotational": false}, ErrAmbiguousRootDisk, "/dev/nvme0n1"},
		{"twins without hints", twins, nil, ErrAmbiguousRootDisk, "serial or wwn"},
		{"a fact the disk does not tell", hintDisks[3:], map[string]any{"serial": "s!= x"}, ErrNoRootDisk, "/dev/sdc"},
		{"unknown hint", hintDisks, map[string]any{"colour": "red"}, ErrBadHint, "colour"},
		{"size is not a number", hintDisks, map[string]any{"size": ">= big"}, ErrBadHint, "GiB"},
		{"negative size", hintDisks, map[string]any{"size": float64(-1)}, ErrBadHint, "GiB"},
		{"no operand", hintDisks, map[string]any{"model": "<in>"}, ErrBadHint, "no value"},
		{"not a boolean", hintDisks, map[string]any{"rotational": "maybe"}, ErrBadHint, "maybe"},
		{"not a scalar", hintDisks, map[string]any{"model": []any{"x"}}, ErrBadHint, "must be"},
	} {
		_, err := PickRootDisk(c.disks, c.hints)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v; want %v saying %q", c.name, err, c.want, c.says)
		}
	}
}

// Whatever the hints say, the pick is one of the disks and matches them, or an error.
func FuzzPickRootDisk(f *testing.F) {
	f.Add(`{"size": ">= 5"}`)
	f.Add(`{"model": "<or> a <or> b", "rotational": "no"}`)
	f.Add(`{"name": "s!= x", "size": "<or>"}`)
	f.Fuzz(func(t *testing.T, text string) {
		var hints map[string]any
		if json.Unmarshal([]byte(text), &hints) != nil {
			return
		}
		d, err := PickRootDisk(hintDisks, hints)
		if err != nil {
			if d.Name != "" {
				t.Fatalf("an error and a disk: %v %v", d.Name, err)
			}
			return
		}
		hs, err := ParseHints(hints)
		if err != nil || !hs.Match(d) {
			t.Fatalf("picked %s, which the hints do not match (%v)", d.Name, err)
		}
	})
}
