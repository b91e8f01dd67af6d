package state

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type recorded struct {
	States map[State]struct {
		Stable     bool   `json:"stable"`
		AutoTarget *State `json:"auto_target"`
	} `json:"states"`
	Transitions []struct {
		State State `json:"state"`
		Event Verb  `json:"event"`
		Next  State `json:"next"`
	} `json:"transitions"`
	VerbToEvent     map[string]Verb    `json:"verb_to_event"`
	VerbAllowedFrom map[string][]State `json:"verb_allowed_from"`
	StateSets       map[string][]State `json:"state_sets"`
}

func load(t *testing.T) recorded {
	t.Helper()
	raw, err := os.ReadFile("../../proto/testdata/states.json")
	if err != nil {
		t.Fatal(err)
	}
	var r recorded
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTableEqualsIronics(t *testing.T) {
	r := load(t)
	type tr struct{ From, On, To string }
	var want, got []tr
	for _, x := range r.Transitions {
		want = append(want, tr{string(x.State), string(x.Event), string(x.Next)})
	}
	for _, e := range Edges {
		got = append(got, tr{string(e.From), string(e.On), string(e.To)})
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("edges differ from Ironic's (-ironic +ours):\n%s", d)
	}
	for s, x := range r.States {
		info, ok := States[s]
		var target State
		if x.AutoTarget != nil {
			target = *x.AutoTarget
		}
		if !ok || info.Stable != x.Stable || info.Target != target {
			t.Errorf("state %q: have %+v, Ironic has %+v", s, info, x)
		}
	}
	if len(States) != len(r.States) {
		t.Errorf("%d states, Ironic has %d", len(States), len(r.States))
	}
}

func TestVerbsAreAcceptedWhereIronicAcceptsThem(t *testing.T) {
	for target, from := range load(t).VerbAllowedFrom {
		verb, ok := Parse(target)
		if !ok {
			t.Errorf("target %q is unknown", target)
			continue
		}
		for s := range States {
			_, err := Next(s, verb)
			if allowed := slices.Contains(from, s); allowed != (err == nil) {
				t.Errorf("%q from %q: Ironic accepts=%v, Next says %v", target, s, allowed, err)
			}
		}
	}
}

func TestEveryFailedStateHasAVerbOut(t *testing.T) {
	for _, s := range Failed {
		if len(Accepted(s)) == 0 {
			t.Errorf("no user's verb leads out of %q", s)
		}
	}
}

func TestEveryBusyStateEndsByDoneAndFail(t *testing.T) {
	for s, info := range States {
		if info.Stable || slices.Contains(Failed, s) || strings.HasSuffix(string(s), "hold") {
			continue
		}
		if _, err := Next(s, VerbFail); err != nil {
			t.Errorf("%q can not fail: %v", s, err)
		}
	}
}

func TestRefusalNamesWhatWouldBeAccepted(t *testing.T) {
	_, err := Next(Manageable, VerbDeploy)
	for _, want := range []string{`"deploy"`, `"manageable"`, "provide", "inspect"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}
