package state

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/states.md anew")

const picturePath = "../../docs/states.md"

// picture is docs/states.md as the table says it.
func picture() string {
	var b strings.Builder
	b.WriteString("# Provision states\n\nDrawn from `conductor/state` by its test (`go test ./conductor/state -update`); the table equals Ironic's. What users ask for is in\n" +
		"quotes; the rest are the conductor's own events. Failures are in the table below, to keep the picture readable.\n\n```mermaid\nstateDiagram-v2\n")
	id := func(s State) string { return strings.NewReplacer(" ", "_", "-", "_").Replace(string(s)) }
	for _, s := range slices.Sorted(maps.Keys(States)) {
		fmt.Fprintf(&b, "    state %q as %s\n", string(s), id(s))
	}
	for _, e := range Edges {
		if e.On == VerbFail || slices.Contains(Failed, e.From) {
			continue
		}
		label := string(e.On)
		if !slices.Contains(own, e.On) {
			label = "'" + label + "'"
		}
		fmt.Fprintf(&b, "    %s --> %s: %s\n", id(e.From), id(e.To), label)
	}
	b.WriteString("```\n\n| state | rests | on its way to | users' verbs | fails to | work |\n|---|---|---|---|---|---|\n")
	for _, s := range slices.Sorted(maps.Keys(States)) {
		rests, fails, work := "no", "-", "-"
		if States[s].Stable || slices.Contains(Failed, s) || strings.HasSuffix(string(s), "hold") {
			rests = "yes"
		}
		for _, e := range Edges {
			if e.From == s && e.On == VerbFail {
				fails = string(e.To)
			}
			if e.To == s && e.Work != "" {
				work = e.Work
			}
		}
		verbs := make([]string, 0, 4)
		for _, v := range Accepted(s) {
			verbs = append(verbs, string(v))
		}
		target := string(States[s].Target)
		if target == "" {
			target = "-"
		}
		accepted := strings.Join(verbs, ", ")
		if accepted == "" {
			accepted = "-"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", s, rests, target, accepted, fails, work)
	}
	return b.String()
}

func TestPictureIsDrawnFromTheTable(t *testing.T) {
	want := picture()
	if *update {
		if err := os.WriteFile(picturePath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(picturePath)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("%s is not what the table says: go test ./conductor/state -update", picturePath)
	}
}
