package machines

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/agent/host/recorded"
	"github.com/slipway-metal/slipway/agent/host/scan"
)

var update = flag.Bool("update", false, "write the golden inventories anew")

// Every recorded machine gives the inventory that was looked through by a person
// and kept beside it.
func TestInventoriesOfRecordedMachines(t *testing.T) {
	names, err := Names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			h, err := Open(name, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			h.BootMAC = "52:54:00:12:34:56"
			inv, err := h.Inventory(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(inv, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.TrimSpace(string(want)), string(got)); d != "" {
				t.Fatal(d)
			}
		})
	}
}

// A recording of a recorded machine is the same recording.
func TestRecordingIsComplete(t *testing.T) {
	h, err := Open("qemu-uefi", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.Record()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := recorded.Extract(again, dir); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(scan.Root(h.Dir).Inventory(""), scan.Root(dir).Inventory("")); d != "" {
		t.Fatal(d)
	}
}

// The inventory has the shape that a real ironic-python-agent's has: the same
// keys everywhere, and values of the same kind.
func TestShapeIsIPAs(t *testing.T) {
	raw, err := os.ReadFile("../../../../proto/testdata/ipa-inventory.json")
	if err != nil {
		t.Fatal(err)
	}
	var real struct {
		Result any `json:"command_result"`
	}
	if err := json.Unmarshal(raw, &real); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"microvm", "qemu-uefi"} {
		h, err := Open(name, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		inv, err := h.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		buf, err := json.Marshal(inv)
		if err != nil {
			t.Fatal(err)
		}
		var ours any
		if err := json.Unmarshal(buf, &ours); err != nil {
			t.Fatal(err)
		}
		for _, d := range differences("", real.Result, ours) {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// differences compares shapes: null stands for any kind, and what begins with
// slipway_ is ours.
func differences(at string, want, got any) []string {
	var out []string
	switch w := want.(type) {
	case nil:
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return []string{fmt.Sprintf("%s: want an object, got %T", at, got)}
		}
		for _, k := range slices.Sorted(maps.Keys(w)) {
			if _, ok := g[k]; !ok {
				out = append(out, at+"."+k+" is missing")
				continue
			}
			out = append(out, differences(at+"."+k, w[k], g[k])...)
		}
		for _, k := range slices.Sorted(maps.Keys(g)) {
			if _, ok := w[k]; !ok && !strings.HasPrefix(k, "slipway_") {
				out = append(out, at+"."+k+" is not IPA's")
			}
		}
	case []any:
		g, ok := got.([]any)
		if !ok {
			return []string{fmt.Sprintf("%s: want a list, got %T", at, got)}
		}
		if len(w) > 0 {
			for i := range g {
				out = append(out, differences(fmt.Sprintf("%s[%d]", at, i), w[0], g[i])...)
			}
		}
	default:
		if got != nil && fmt.Sprintf("%T", want) != fmt.Sprintf("%T", got) {
			out = append(out, fmt.Sprintf("%s: want %T, got %T", at, want, got))
		}
	}
	return out
}
