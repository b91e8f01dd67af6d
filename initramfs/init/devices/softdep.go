package devices

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Soft are the soft dependencies of a module.
type Soft struct{ Pre, Post []string }

// ReadSoftdeps reads modules.softdep: lines "softdep MODULE pre: A B post: C".
// Rules that would lead back to their own module are left out, for a loader
// follows rules without looking back.
func ReadSoftdeps(r io.Reader) (map[string]Soft, error) {
	soft := make(map[string]Soft)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 3 || words[0] != "softdep" {
			continue
		}
		module := words[1]
		rule := soft[module]
		var into *[]string
		for _, w := range words[2:] {
			switch {
			case w == "pre:":
				into = &rule.Pre
			case w == "post:":
				into = &rule.Post
			case into != nil && !leads(soft, w, module):
				*into = append(*into, w)
			}
		}
		soft[module] = rule
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read modules.softdep: %w", err)
	}
	return soft, nil
}

// leads tells whether the rules so far lead from one module to another. They
// have no circle yet, so this ends.
func leads(soft map[string]Soft, from, to string) bool {
	if from == to {
		return true
	}
	for _, next := range append(append([]string{}, soft[from].Pre...), soft[from].Post...) {
		if leads(soft, next, to) {
			return true
		}
	}
	return false
}
