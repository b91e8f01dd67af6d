package e2e

import (
	"os"
	"slices"
	"testing"
	"time"
)

// needBench skips what is run for its figures.
func needBench(t *testing.T) {
	t.Helper()
	if os.Getenv("SLIPWAY_BENCH") == "" {
		t.Skip("is run for its figures: make bench sets SLIPWAY_BENCH")
	}
}

// TestFiguresInventory measures power-on to inventory by both firmwares, three
// rounds each; the median is kept.
func TestFiguresInventory(t *testing.T) {
	needBench(t)
	for _, firmware := range []string{"bios", "uefi"} {
		t.Run(firmware, func(t *testing.T) {
			var all []float64
			for range 3 {
				r := newRig(t, with(func(m *machine) { m.firmware = firmware }))
				r.enrol()
				r.slipway("node", "inspect", "e2e-1", "--wait", "--timeout", "5m")
				f := inventoryFigures(t, r.events())
				all = append(all, f)
				if err := r.lab.Machine("node-1").PowerOff(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			slices.Sort(all)
			record(t, "inventory-"+firmware, map[string]float64{"power-on to inventory, s": all[1], "best, s": all[0], "worst, s": all[2]})
		})
	}
}

// TestFiguresDeploy is TestDeploy by SeaBIOS, for its figures.
func TestFiguresDeploy(t *testing.T) {
	needBench(t)
	r := newRig(t, with(func(m *machine) { m.firmware = "bios" }))
	r.ready()
	url, digest := r.image("quick", "raw.zst")
	r.deployTo(url, digest)
	r.checkLogin()
	login := time.Now()
	record(t, "deploy-bios", figuresOf(t, r.events(), login))
}
