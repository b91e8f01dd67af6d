package faults

import (
	"os"
	"testing"

	"github.com/slipway-metal/slipway/testenv/sim"
)

func TestMain(m *testing.M) { os.Exit(sim.Main(m)) }
