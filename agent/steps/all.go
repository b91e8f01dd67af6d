package steps

import (
	"log/slog"
	"net/http"

	"github.com/slipway-metal/slipway/proto/agent"
)

// Deps are what some steps need beside the machine.
type Deps struct {
	Log *slog.Logger
	// HTTP fetches images; nil for the image pipeline's own.
	HTTP *http.Client
	// AllowMD5 says whether the conductor takes MD5 for a digest.
	AllowMD5 func() bool
	// SetRoot and Root keep which disk the image went to, for the boot entry.
	SetRoot func(agent.DiskIdentity) error
	Root    func() (agent.DiskIdentity, bool)
	// Memory is what a write may hold, bytes.
	Memory int64
}

// All are the agent's steps.
func All(d Deps) Registry {
	return Registry{
		eraseMetadata(),
		eraseDevices(),
		writeImage(d),
		InstallBootloader(d),
	}
}
