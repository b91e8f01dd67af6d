package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/slipway-metal/slipway/proto/event"
)

// figuresOf reads the times of the way out of its events, seconds.
func figuresOf(t *testing.T, events []event.Event, login time.Time) map[string]float64 {
	t.Helper()
	var on, active time.Time
	f := map[string]float64{}
	for _, e := range events {
		switch e.Kind {
		case event.KindEvidence:
			var v event.Evidence
			if err := json.Unmarshal(e.Data, &v); err != nil {
				t.Fatal(err)
			}
			if v.Fact == "power on confirmed" && on.IsZero() {
				on = e.Time
			}
			if v.Hop == event.HopInventory && v.OK {
				f["power-on to inventory, s"] = e.Time.Sub(on).Seconds()
			}
			if s, ok := v.Detail["seconds"].(float64); ok && v.Hop == event.HopCommand {
				f[v.Fact+", s"] = s
			}
		case event.KindState:
			var s event.State
			if err := json.Unmarshal(e.Data, &s); err != nil {
				t.Fatal(err)
			}
			if s.To == "active" {
				active = e.Time
			}
		}
	}
	if on.IsZero() || active.IsZero() {
		t.Errorf("the events tell of no power-on (%v) or no active state (%v)", on, active)
		return f
	}
	f["power-on to active, s"] = active.Sub(on).Seconds()
	f["power-on to SSH login, s"] = login.Sub(on).Seconds()
	return f
}

// inventoryFigures is the time from power-on to inventory, seconds.
func inventoryFigures(t *testing.T, events []event.Event) float64 {
	t.Helper()
	var on time.Time
	for _, e := range events {
		var v event.Evidence
		if e.Kind != event.KindEvidence || json.Unmarshal(e.Data, &v) != nil {
			continue
		}
		if v.Fact == "power on confirmed" {
			on = e.Time
		}
		if v.Hop == event.HopInventory && v.OK && !on.IsZero() {
			return e.Time.Sub(on).Seconds()
		}
	}
	t.Fatal("the events tell of no inventory")
	return 0
}

// record prints figures and keeps them in build/bench.
func record(t *testing.T, name string, figures map[string]float64) {
	t.Helper()
	raw, err := json.MarshalIndent(map[string]any{
		"name": name, "time": time.Now().UTC(), "cpus": runtime.NumCPU(), "figures": figures,
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("figures: %s", raw)
	dir := filepath.Join(root, "build", "bench")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(raw, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
}
