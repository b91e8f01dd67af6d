package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipway-metal/slipway/conductor/boot"
	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/agent"
)

// resolver answers the boot services out of the store: a machine boots the
// ramdisk when a flow prepared that for its node, and its disk otherwise.
type resolver struct {
	store      store.Store
	secrets    flow.Secrets
	conductor  string // base URL for agents
	ramdisk    string
	kernelArgs []string
}

// Resolve says what the machine with r's MAC boots.
func (v *resolver) Resolve(ctx context.Context, r boot.Request) (boot.Plan, error) {
	port, err := v.store.PortByAddress(ctx, r.MAC)
	if errors.Is(err, store.ErrNotFound) {
		return boot.Plan{}, nil
	}
	if err != nil {
		return boot.Plan{}, err
	}
	n, err := v.store.Node(ctx, port.NodeUUID)
	if err != nil {
		return boot.Plan{}, err
	}
	return v.plan(n, port.Address), nil
}

// ResolvePath says what the boot with this secret path element consists of.
func (v *resolver) ResolvePath(ctx context.Context, path string) (boot.Plan, error) {
	b, err := v.store.BootByPath(ctx, path)
	if errors.Is(err, store.ErrNotFound) {
		return boot.Plan{}, boot.ErrNoBoot
	}
	if err != nil {
		return boot.Plan{}, err
	}
	n, err := v.store.Node(ctx, b.NodeUUID)
	if err != nil {
		return boot.Plan{}, err
	}
	p := v.plan(n, b.MAC)
	if p.Path != path { // of an earlier boot
		return boot.Plan{}, boot.ErrNoBoot
	}
	return p, nil
}

func (v *resolver) plan(n *store.Node, mac string) boot.Plan {
	p := boot.Plan{Node: n.UUID}
	path := v.secrets.Path(n)
	if path == "" {
		return p
	}
	nonce := v.secrets.Nonce(path)
	if spent := sha256.Sum256([]byte(nonce)); n.DriverInternalInfo[store.KeyNonce] == hex.EncodeToString(spent[:]) {
		// Its agent has looked itself up. A machine that netboots once more has
		// restarted by itself, and a second ramdisk would be taken for an impostor.
		return p
	}
	p.Netboot, p.Path = true, path
	p.Kernel = filepath.Join(v.ramdisk, "vmlinuz")
	p.Initrd = filepath.Join(v.ramdisk, "initramfs.cpio.zst")
	p.Cmdline = slices.Clone(v.kernelArgs)
	// boot refuses words that could be read as script.
	for _, m := range []map[string]any{n.DriverInfo, n.InstanceInfo} {
		if args, ok := m["kernel_append_params"].(string); ok {
			p.Cmdline = append(p.Cmdline, strings.Fields(args)...)
			break
		}
	}
	p.Config = agent.BootConfig{
		Conductor: v.conductor, Nonce: nonce, NodeUUID: n.UUID, BootMAC: mac, Slipway: true,
	}
	return p
}
