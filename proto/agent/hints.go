package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// MinRootDisk is the smallest disk, in bytes, that is taken when a node has no
// root device hints: Ironic's rule (4 GiB).
const MinRootDisk int64 = 4 << 30

// Errors that PickRootDisk wraps; the message names disks and hints.
var (
	ErrNoRootDisk        = errors.New("no disk fits")
	ErrAmbiguousRootDisk = errors.New("more than one disk fits")
	ErrBadHint           = errors.New("bad root device hint")
)

// hintKind is how a hint's value is compared.
type hintKind int

const (
	hintString hintKind = iota
	hintGiB
	hintBool
)

// hintKinds are Ironic's root device hints (properties.root_device).
var hintKinds = map[string]hintKind{
	"size": hintGiB, "rotational": hintBool,
	"model": hintString, "vendor": hintString, "serial": hintString, "name": hintString,
	"wwn": hintString, "wwn_with_extension": hintString, "wwn_vendor_extension": hintString,
	"hctl": hintString, "by_path": hintString,
}

// The operators of Ironic's hints (oslo.utils specs_matcher), longest first so
// that a prefix never wins.
var (
	stringOps = []string{"<all-in>", "<in>", "<or>", "s==", "s!=", "s>=", "s<=", "s>", "s<"}
	numberOps = []string{"<or>", "==", "!=", ">=", "<=", ">", "<", "="}
)

// hint is one parsed hint.
type hint struct {
	name  string
	kind  hintKind
	op    string
	words []string  // string operands, lower case
	nums  []float64 // GiB
	want  bool
}

// Hints are a node's parsed root device hints; a disk must satisfy all of them.
type Hints []hint

// ParseHints reads properties.root_device. A value is a string with or without
// an operator ("s== ST1000", ">= 100", "<in> samsung"), a number or a boolean.
func ParseHints(raw map[string]any) (Hints, error) {
	out := make(Hints, 0, len(raw))
	for name, v := range raw {
		kind, ok := hintKinds[name]
		if !ok {
			return nil, fmt.Errorf("%w: %q is not a hint; known are %s", ErrBadHint, name, strings.Join(hintNames(), ", "))
		}
		h, err := parseHint(name, kind, v)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out, nil
}

func hintNames() []string {
	names := make([]string, 0, len(hintKinds))
	for n := range hintKinds {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

func parseHint(name string, kind hintKind, v any) (hint, error) {
	h := hint{name: name, kind: kind}
	text, err := hintText(v)
	if err != nil {
		return h, fmt.Errorf("%w: %s: %w", ErrBadHint, name, err)
	}
	if kind == hintBool {
		if h.want, err = parseBool(text); err != nil {
			return h, fmt.Errorf("%w: %s: %w", ErrBadHint, name, err)
		}
		return h, nil
	}
	ops, def := stringOps, "s=="
	if kind == hintGiB {
		ops, def = numberOps, "=="
	}
	h.op = def
	rest := text
	for _, op := range ops {
		if after, ok := strings.CutPrefix(text, op); ok {
			h.op, rest = op, after
			break
		}
	}
	if kind == hintString {
		h.words = splitOperands(h.op, strings.ToLower(rest))
		if len(h.words) == 0 {
			return h, fmt.Errorf("%w: %s: %q has no value", ErrBadHint, name, text)
		}
		return h, nil
	}
	for _, w := range splitOperands(h.op, rest) {
		n, err := strconv.ParseFloat(w, 64)
		if err != nil || n < 0 || math.IsNaN(n) || math.IsInf(n, 0) {
			return h, fmt.Errorf("%w: %s: %q is not a size in GiB", ErrBadHint, name, w)
		}
		h.nums = append(h.nums, n)
	}
	if len(h.nums) == 0 {
		return h, fmt.Errorf("%w: %s: %q has no value", ErrBadHint, name, text)
	}
	return h, nil
}

// hintText takes the JSON scalars that a hint may be.
func hintText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return strings.TrimSpace(v), nil
	case bool:
		return strconv.FormatBool(v), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case int:
		return strconv.Itoa(v), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case json.Number:
		return v.String(), nil
	}
	return "", fmt.Errorf("must be a string, a number or a boolean, not %T", v)
}

// parseBool takes what oslo's strict bool_from_string takes.
func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "t", "true", "on", "y", "yes":
		return true, nil
	case "0", "f", "false", "off", "n", "no":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

// splitOperands cuts the list operators' values; others have one operand.
func splitOperands(op, rest string) []string {
	var parts []string
	switch op {
	case "<or>":
		parts = strings.Split(rest, "<or>")
	case "<all-in>":
		parts = strings.Fields(rest)
	default:
		parts = []string{rest}
	}
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return slices.DeleteFunc(parts, func(s string) bool { return s == "" })
}

// Match says whether the disk satisfies every hint. A hint on a fact that the
// disk does not tell never matches.
func (hs Hints) Match(d Disk) bool {
	for _, h := range hs {
		if !h.match(d) {
			return false
		}
	}
	return true
}

func (h hint) match(d Disk) bool {
	switch h.kind {
	case hintBool:
		return d.Rotational == h.want
	case hintGiB:
		return h.number(float64(d.Size >> 30)) // whole GiB, rounded down, as Ironic
	}
	for _, have := range h.values(d) {
		if h.text(strings.ToLower(strings.TrimSpace(have))) {
			return true
		}
	}
	return false
}

// values are the disk's facts that a hint may speak of. "name" also takes a
// by-path link, because kernel names are not stable.
func (h hint) values(d Disk) []string {
	var ps []*string
	switch h.name {
	case "model":
		ps = []*string{d.Model}
	case "vendor":
		ps = []*string{d.Vendor}
	case "serial":
		ps = []*string{d.Serial}
	case "wwn":
		ps = []*string{d.WWN}
	case "wwn_with_extension":
		ps = []*string{d.WWNWithExtension}
	case "wwn_vendor_extension":
		ps = []*string{d.WWNVendorExtension}
	case "hctl":
		ps = []*string{d.HCTL}
	case "by_path":
		ps = []*string{d.ByPath}
	case "name":
		ps = []*string{&d.Name, d.ByPath}
	}
	var out []string
	for _, p := range ps {
		if p != nil && *p != "" {
			out = append(out, *p)
		}
	}
	return out
}

func (h hint) text(have string) bool {
	want := h.words[0]
	switch h.op {
	case "s==":
		return have == want
	case "s!=":
		return have != want
	case "s>=":
		return have >= want
	case "s<=":
		return have <= want
	case "s>":
		return have > want
	case "s<":
		return have < want
	case "<in>":
		return strings.Contains(have, want)
	case "<or>":
		return slices.Contains(h.words, have)
	case "<all-in>":
		return !slices.ContainsFunc(h.words, func(w string) bool { return !strings.Contains(have, w) })
	}
	return false
}

func (h hint) number(have float64) bool {
	want := h.nums[0]
	switch h.op {
	case "==":
		return have == want
	case "!=":
		return have != want
	case ">=", "=": // "=" is "at least" in oslo's specs_matcher
		return have >= want
	case "<=":
		return have <= want
	case ">":
		return have > want
	case "<":
		return have < want
	case "<or>":
		return slices.Contains(h.nums, have)
	}
	return false
}

// String prints the hints as the operator wrote them, in order of name.
func (hs Hints) String() string {
	parts := make([]string, len(hs))
	for i, h := range hs {
		switch h.kind {
		case hintBool:
			parts[i] = fmt.Sprintf("%s=%t", h.name, h.want)
		case hintGiB:
			nums := make([]string, len(h.nums))
			for j, n := range h.nums {
				nums[j] = strconv.FormatFloat(n, 'f', -1, 64)
			}
			parts[i] = fmt.Sprintf("%s %s %s GiB", h.name, h.op, strings.Join(nums, ","))
		default:
			parts[i] = fmt.Sprintf("%s %s %q", h.name, h.op, strings.Join(h.words, " "))
		}
	}
	return strings.Join(parts, ", ")
}

// PickRootDisk returns the one disk that a deploy may write: the disk that the
// hints (properties.root_device) name, or without hints the smallest disk of at
// least MinRootDisk. Where Ironic takes the first of several, this refuses:
// kernel names change between boots, and the wrong one would be wiped.
func PickRootDisk(disks []Disk, hints map[string]any) (Disk, error) {
	hs, err := ParseHints(hints)
	if err != nil {
		return Disk{}, err
	}
	var fit []Disk
	for _, d := range disks {
		if len(hs) == 0 && d.Size < MinRootDisk || d.Size <= 0 || !hs.Match(d) {
			continue
		}
		fit = append(fit, d)
	}
	rule := "the smallest disk of at least 4 GiB (the node has no root device hints)"
	if len(hs) > 0 {
		rule = "root device hints " + hs.String()
	} else {
		fit = smallest(fit)
	}
	switch len(fit) {
	case 1:
		return fit[0], nil
	case 0:
		return Disk{}, fmt.Errorf("%w: wanted %s; the machine has %s: correct properties.root_device or the machine", ErrNoRootDisk, rule, listDisks(disks))
	}
	return Disk{}, fmt.Errorf("%w: wanted %s; these fit: %s: add a hint that tells them apart, such as serial or wwn, to properties.root_device", ErrAmbiguousRootDisk, rule, listDisks(fit))
}

// smallest keeps the disks of the least size.
func smallest(disks []Disk) []Disk {
	var out []Disk
	for _, d := range disks {
		switch {
		case len(out) == 0 || d.Size < out[0].Size:
			out = append(out[:0], d)
		case d.Size == out[0].Size:
			out = append(out, d)
		}
	}
	return out
}

// maxListed bounds an error's length on a machine with hundreds of disks.
const maxListed = 8

func listDisks(disks []Disk) string {
	if len(disks) == 0 {
		return "no disk"
	}
	parts := make([]string, 0, maxListed+1)
	for i, d := range disks {
		if i == maxListed {
			parts = append(parts, fmt.Sprintf("and %d more", len(disks)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s %s", d.Name, d.Identity()))
	}
	return strings.Join(parts, ", ")
}
