package efi

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// Description names the one boot entry that Slipway manages. It is the mark as
// well: optional data would be the loader's command line, and shim would take a
// mark there for the file to load.
const Description = "Slipway (managed)"

// active is LOAD_OPTION_ACTIVE (UEFI 2.10, section 3.1.3).
const active = 1

// Target is a boot loader on a GPT partition.
type Target struct {
	Partition     uint32 // number, from 1
	Start, Blocks uint64 // logical blocks
	GUID          string // the partition's unique GUID
	Path          string // e.g. \EFI\BOOT\BOOTX64.EFI
}

// Encode gives the EFI_LOAD_OPTION of t.
func Encode(t Target) ([]byte, error) {
	sig, err := parseGUID(t.GUID)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	// Hard drive media device path (UEFI 2.10, table 10-37).
	path := []byte{4, 1, 42, 0}
	path = le.AppendUint32(path, t.Partition)
	path = le.AppendUint64(path, t.Start)
	path = le.AppendUint64(path, t.Blocks)
	path = append(path, sig...)
	path = append(path, 2, 2) // a GPT; the signature is a GUID
	// File path media device path.
	name := ucs2(t.Path)
	path = append(path, 4, 4)
	path = le.AppendUint16(path, uint16(4+len(name)))
	path = append(path, name...)
	path = append(path, 0x7f, 0xff, 4, 0) // the end

	out := le.AppendUint32(nil, active)
	out = le.AppendUint16(out, uint16(len(path)))
	out = append(out, ucs2(Description)...)
	return append(out, path...), nil
}

// ucs2 is a string as firmware keeps it, NUL at the end.
func ucs2(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return append(out, 0, 0)
}

// parseGUID gives a GUID's bytes as UEFI keeps them.
func parseGUID(s string) ([]byte, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		return nil, fmt.Errorf("partition GUID %q is none", s)
	}
	slices.Reverse(b[0:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return b, nil
}

// describe reads the description out of a load option; "" when it has none.
func describe(option []byte) string {
	if len(option) < 6 {
		return ""
	}
	var units []uint16
	for rest := option[6:]; len(rest) >= 2; rest = rest[2:] {
		u := binary.LittleEndian.Uint16(rest)
		if u == 0 {
			return string(utf16.Decode(units))
		}
		units = append(units, u)
	}
	return ""
}

// bootNumber reads a variable's name Boot####; firmware writes the digits in upper case.
func bootNumber(name string) (uint16, bool) {
	digits, ok := strings.CutPrefix(name, "Boot")
	if !ok || len(digits) != 4 || strings.ToUpper(digits) != digits {
		return 0, false
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return 0, false
	}
	return binary.BigEndian.Uint16(b), true
}

// entries are the numbers of all boot entries, and those of ours, ascending.
func entries(v Vars) (all, ours []uint16, err error) {
	names, err := v.List()
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		n, ok := bootNumber(name)
		if !ok {
			continue
		}
		option, err := v.Get(name)
		if errors.Is(err, ErrNotFound) {
			continue // some firmware lists what it deleted
		}
		if err != nil {
			return nil, nil, err
		}
		all = append(all, n)
		if describe(option) == Description {
			ours = append(ours, n)
		}
	}
	slices.Sort(all)
	slices.Sort(ours)
	return all, ours, nil
}

// Change is what Ensure did.
type Change struct {
	Entry   string   `json:"entry"`             // Boot####
	Written bool     `json:"written"`           // the entry was new or different
	Order   bool     `json:"order_written"`     // the entry was not first
	Removed []string `json:"removed,omitempty"` // surplus entries of ours
}

// Ensure makes t the machine's one managed boot entry and puts it first. It
// writes only what differs: the flash behind the variables wears out, and some
// firmware fills up. Everything written is read back.
func Ensure(v Vars, t Target) (Change, error) {
	want, err := Encode(t)
	if err != nil {
		return Change{}, err
	}
	all, ours, err := entries(v)
	if err != nil {
		return Change{}, err
	}
	n, surplus := lowestFree(all), ours
	if len(ours) > 0 {
		n, surplus = ours[0], ours[1:]
	}
	c := Change{Entry: name(n)}
	if c.Written, err = write(v, c.Entry, want); err != nil {
		return c, err
	}
	for _, s := range surplus {
		if err := v.Delete(name(s)); err != nil {
			return c, err
		}
		c.Removed = append(c.Removed, name(s))
	}
	order, err := v.Get("BootOrder")
	if err != nil && !errors.Is(err, ErrNotFound) {
		return c, err
	}
	c.Order, err = write(v, "BootOrder", reorder(order, n, surplus))
	return c, err
}

func name(n uint16) string { return fmt.Sprintf("Boot%04X", n) }

func lowestFree(taken []uint16) uint16 {
	var n uint16
	for slices.Contains(taken, n) {
		n++
	}
	return n
}

// reorder puts first in front and drops gone; the rest keeps its order.
func reorder(order []byte, first uint16, gone []uint16) []byte {
	out := binary.LittleEndian.AppendUint16(nil, first)
	for ; len(order) >= 2; order = order[2:] {
		n := binary.LittleEndian.Uint16(order)
		if n != first && !slices.Contains(gone, n) {
			out = binary.LittleEndian.AppendUint16(out, n)
		}
	}
	return out
}

// write sets a variable when it differs, and reads it back.
func write(v Vars, name string, want []byte) (bool, error) {
	have, err := v.Get(name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	if err == nil && bytes.Equal(have, want) {
		return false, nil
	}
	if err := v.Set(name, want); err != nil {
		return false, err
	}
	have, err = v.Get(name)
	if err != nil {
		return false, fmt.Errorf("read back: %w", err)
	}
	if !bytes.Equal(have, want) {
		return false, fmt.Errorf("EFI variable %s: the firmware took the write and kept something else", name)
	}
	return true, nil
}
