// Package machines holds recordings of machines for tests.
package machines

import (
	"embed"
	"fmt"
	"os"

	"github.com/slipway-metal/slipway/agent/host/recorded"
)

//go:embed *.txtar
var files embed.FS

// Names are the names of the recordings that come with Slipway.
func Names() ([]string, error) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name()[:len(e.Name())-len(".txtar")])
	}
	return out, nil
}

// Open lays the recording of that name out below dir, which must be empty.
func Open(name, dir string) (*recorded.Host, error) {
	raw, err := files.ReadFile(name + ".txtar")
	if err != nil {
		return nil, fmt.Errorf("recorded machine %s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("recorded machine %s: %w", name, err)
	}
	if err := recorded.Extract(raw, dir); err != nil {
		return nil, fmt.Errorf("recorded machine %s: %w", name, err)
	}
	return &recorded.Host{Dir: dir}, nil
}
