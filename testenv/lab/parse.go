package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// FileError is everything that is wrong with a lab file, each with its place
// and what to write instead.
type FileError struct {
	Problems []Problem
}

// Problem is one thing wrong with a lab file.
type Problem struct {
	File string
	Line int // from 1; 0: not at a line of its own
	What string
	Fix  string
}

func (p Problem) String() string {
	place := p.File
	if p.Line > 0 {
		place += ":" + strconv.Itoa(p.Line)
	}
	if p.Fix == "" {
		return place + ": " + p.What
	}
	return place + ": " + p.What + ": " + p.Fix
}

func (e *FileError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Load reads and checks a lab file. Paths in it are relative to its directory.
func Load(path string) (*Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the lab file: %w", err)
	}
	spec, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("find the lab file's directory: %w", err)
	}
	spec.resolve(dir)
	return spec, nil
}

// resolve makes the paths of files absolute.
func (s *Spec) resolve(dir string) {
	abs := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	for i := range s.Machines {
		m := &s.Machines[i]
		abs(&m.Direct.Kernel)
		abs(&m.Direct.Initrd)
		for j := range m.Disks {
			abs(&m.Disks[j].Image)
		}
	}
}

// Parse checks a lab file's text strictly: a field that does not exist, a
// value out of range and a name used twice are errors with their line. file is
// only used to name the place. The error is a *FileError.
func Parse(file string, data []byte) (*Spec, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return nil, yamlError(file, err)
	}
	if p := checkAddresses(file, &root); len(p) > 0 {
		return nil, &FileError{p}
	}
	var spec Spec
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&spec); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &FileError{[]Problem{{file, 0, "the lab file is empty", "start from testenv/labs/demo.yaml"}}}
		}
		return nil, yamlError(file, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, &FileError{[]Problem{{file, 0, "the lab file holds more than one YAML document", "keep one lab a file"}}}
	}
	c := &checker{file: file, root: &root}
	c.spec(&spec)
	if len(c.problems) > 0 {
		return nil, &FileError{c.problems}
	}
	return &spec, nil
}

// checkAddresses tells the place of an address that cannot be read; the
// decoder's own message has none.
func checkAddresses(file string, n *yaml.Node) (problems []Problem) {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i].Value, n.Content[i+1]
			if value.Kind == yaml.ScalarNode && value.Value != "" {
				if fix := badAddress(key, value.Value); fix != "" {
					problems = append(problems, Problem{file, value.Line, fmt.Sprintf("%q is wrong for `%s`", value.Value, key), fix})
				}
			}
		}
	}
	for _, child := range n.Content { // an alias has no content: no loops
		problems = append(problems, checkAddresses(file, child)...)
	}
	return problems
}

func badAddress(key, value string) (fix string) {
	switch key {
	case "cidr":
		if _, err := netip.ParsePrefix(value); err != nil {
			return "write an IPv4 range, as in 10.77.0.0/24"
		}
	case "host":
		if _, err := netip.ParseAddr(value); err != nil {
			return "write an address of the network, as in 10.77.0.1"
		}
	case "address": // a machine's, or with a port its BMC's
		_, alone := netip.ParseAddr(value)
		_, port := netip.ParseAddrPort(value)
		if alone != nil && port != nil {
			return "write an address, for a BMC with a port, as in 10.77.0.1:8001"
		}
	}
	return ""
}

var (
	yamlLine    = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\s*)?line (\d+): (.*)$`)
	yamlUnknown = regexp.MustCompile(`^field (\S+) not found in type lab\.(\S+)$`)
)

// yamlError gives the YAML library's messages their place.
func yamlError(file string, err error) error {
	var typed *yaml.TypeError
	texts := []string{err.Error()}
	if errors.As(err, &typed) {
		texts = typed.Errors
	}
	out := &FileError{}
	for _, text := range texts {
		p := Problem{File: file, What: strings.TrimPrefix(text, "yaml: ")}
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			// The expression matched digits only; one too large for an int leaves line 0.
			p.Line, _ = strconv.Atoi(m[1])
			p.What = m[2]
		}
		if m := yamlUnknown.FindStringSubmatch(p.What); m != nil {
			p.What = fmt.Sprintf("a %s has no field %q", strings.ToLower(strings.Replace(m[2], "Spec", "lab", 1)), m[1])
			p.Fix = "it has " + fieldsOf(m[2])
		}
		out.Problems = append(out.Problems, p)
	}
	return out
}

// fieldError is what an UnmarshalYAML returns so that the decoder goes on and
// collects the rest.
func fieldError(n *yaml.Node, hint string) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %q is wrong here: %s", n.Line, n.Value, hint)}}
}

// at returns the line of the value a path of keys and indexes leads to, or of
// the last part of the path that the file has.
func at(root *yaml.Node, path ...any) int {
	n := root
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	line := n.Line
	for _, step := range path {
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		next := child(n, step)
		if next == nil {
			return line
		}
		n, line = next, next.Line
	}
	return line
}

func child(n *yaml.Node, step any) *yaml.Node {
	switch step := step.(type) {
	case int:
		if n.Kind == yaml.SequenceNode && step < len(n.Content) {
			return n.Content[step]
		}
	case string:
		if n.Kind != yaml.MappingNode {
			return nil
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1]
			}
		}
	}
	return nil
}

var sizeUnits = map[string]float64{
	"": 1, "B": 1,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
	"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
}

var rateUnits = map[string]float64{"": 1, "bit": 1, "kbit": 1e3, "Kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}

var quantity = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)$`)

// parseSize reads a size into bytes.
func parseSize(text string) (int64, error) {
	v, err := parseQuantity(text, sizeUnits, 1<<56)
	return int64(v), err
}

// parseRate reads a rate into bits a second.
func parseRate(text string) (uint64, error) {
	v, err := parseQuantity(text, rateUnits, 1e12)
	return uint64(v), err
}

func parseQuantity(text string, units map[string]float64, limit float64) (float64, error) {
	m := quantity.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%q is no number with a unit", text)
	}
	unit, ok := units[m[2]]
	if !ok {
		return 0, fmt.Errorf("%q is no unit", m[2])
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0, err
	}
	if v *= unit; v > limit {
		return 0, fmt.Errorf("%q is out of range", text)
	}
	return v, nil
}
