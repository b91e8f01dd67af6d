// Package devices loads the kernel modules that the hardware asks for: it reads
// the modaliases of all devices, now and as they come (uevents), matches them
// with the ramdisk's modules.alias, and loads what matches. It is the part of
// udev that a ramdisk needs.
package devices

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Index finds the modules for a modalias. Patterns are kept under their literal
// beginning, so that a lookup costs one map access for each length that a
// beginning has, and not one match for each of some ten thousand patterns.
type Index struct {
	byPrefix map[string][]entry
	lengths  []int // of the prefixes, bytes, ascending
}

type entry struct{ rest, module string }

// ReadIndex reads modules.alias: lines "alias PATTERN MODULE".
func ReadIndex(r io.Reader) (*Index, error) {
	x := &Index{byPrefix: make(map[string][]entry)}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "alias ")
		pattern, module, ok2 := strings.Cut(rest, " ")
		if !ok || !ok2 {
			continue // comments
		}
		pattern = normalize(pattern)
		n := strings.IndexAny(pattern, `*?[\`)
		if n < 0 {
			n = len(pattern)
		}
		x.byPrefix[pattern[:n]] = append(x.byPrefix[pattern[:n]], entry{rest: pattern[n:], module: module})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read modules.alias: %w", err)
	}
	lengths := make(map[int]bool)
	for prefix := range x.byPrefix {
		if !lengths[len(prefix)] {
			lengths[len(prefix)] = true
			x.lengths = append(x.lengths, len(prefix))
		}
	}
	slices.Sort(x.lengths)
	return x, nil
}

// Match returns the modules whose patterns match a modalias, sorted.
func (x *Index) Match(modalias string) []string {
	modalias = normalize(modalias)
	var found []string
	for _, n := range x.lengths {
		if n > len(modalias) {
			break
		}
		for _, e := range x.byPrefix[modalias[:n]] {
			if match(e.rest, modalias[n:]) && !slices.Contains(found, e.module) {
				found = append(found, e.module)
			}
		}
	}
	slices.Sort(found)
	return found
}

// normalize makes - and _ the same, outside brackets, as kmod does
// (libkmod, alias_normalize).
func normalize(s string) string {
	if !strings.Contains(s, "-") {
		return s
	}
	b, inside := []byte(s), false
	for i, c := range b {
		switch {
		case c == '[':
			inside = true
		case c == ']':
			inside = false
		case c == '-' && !inside:
			b[i] = '_'
		}
	}
	return string(b)
}

// match is fnmatch(3) without flags: * and ? match every character, slashes
// too (DMI modaliases have dates in them), and [a-z] a set. A pattern that is
// malformed matches nothing.
func match(pattern, s string) bool {
	star, from := -1, 0 // where to go on after the last *
	p, i := 0, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, from = p, i
			p++
			continue
		}
		if n := matchOne(pattern[p:], s[i]); n > 0 {
			p += n
			i++
			continue
		}
		if star < 0 {
			return false
		}
		from++
		p, i = star+1, from
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchOne returns how many bytes of pattern matched c; 0 is no match.
func matchOne(pattern string, c byte) int {
	if pattern == "" {
		return 0
	}
	switch pattern[0] {
	case '?':
		return 1
	case '\\':
		if len(pattern) > 1 && pattern[1] == c {
			return 2
		}
		return 0
	case '[':
		return matchSet(pattern, c)
	}
	if pattern[0] == c {
		return 1
	}
	return 0
}

func matchSet(pattern string, c byte) int {
	i := 1
	negated := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negated {
		i++
	}
	hit := false
	for first := i; i < len(pattern); i++ {
		if pattern[i] == ']' && i > first {
			if hit != negated {
				return i + 1
			}
			return 0
		}
		lo, hi := pattern[i], pattern[i]
		if i+2 < len(pattern) && pattern[i+1] == '-' && pattern[i+2] != ']' {
			hi = pattern[i+2]
			i += 2
		}
		hit = hit || lo <= c && c <= hi
	}
	return 0 // no closing bracket
}
