package life

import (
	"testing"

	"github.com/slipway-metal/slipway/proto/event"
)

// What a person at the machine reads.
func TestProgressLine(t *testing.T) {
	for want, p := range map[string]event.Progress{
		"write_image: write 41 % 68 MB/s ETA 12 s": {Step: "write_image", Stage: "write", Done: 41, Total: 100, Percent: 41, Rate: 68e6, ETA: 12},
		"write_image: download 5 MB":               {Step: "write_image", Stage: "download", Done: 5e6},
		"write_image: flush":                       {Step: "write_image", Stage: "flush"},
	} {
		if got := progressLine(p); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
