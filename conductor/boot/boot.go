// Package boot takes a machine from its firmware to the kernel: DHCP, TFTP, HTTP,
// iPXE scripts and the configuration that rides behind the ramdisk. What a
// machine should boot is asked of a Resolver; each hop is told to a Recorder.
package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/slipway-metal/slipway/conductor/boot/cpio"
	"github.com/slipway-metal/slipway/conductor/boot/dhcp"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// Stage says how far a machine has come when it asks.
type Stage = dhcp.Stage

// Stages. The first four are DHCP's.
const (
	StageFirmware       = dhcp.StageFirmware
	StageHTTPBoot       = dhcp.StageHTTPBoot
	StageIPXE           = dhcp.StageIPXE
	StageOS             = dhcp.StageOS
	StageScript   Stage = "script" // an iPXE that nobody gave a URL asks by its MAC, over HTTP
)

// Arch is the firmware's architecture by DHCP option 93; dhcp.ArchNone when unknown.
type Arch = dhcp.Arch

// Request is a machine that asks what to boot.
type Request struct {
	MAC   string     // lower case, colons
	IP    netip.Addr // invalid when it has none yet
	Arch  Arch
	Stage Stage
}

// Plan is the answer. The zero Plan is a machine that gets an address and boots
// its disk.
type Plan struct {
	Netboot bool   // without it no boot file is handed out
	Node    string // UUID; "" for an unknown machine
	// Kernel and Initrd are files of the conductor's host.
	Kernel, Initrd string
	// Config goes into the ramdisk as /etc/slipway/boot.json.
	Config agent.BootConfig
	// Path is this boot's secret path element: 16 to 128 of A-Z a-z 0-9 - _.
	Path string
	// Cmdline are the kernel's arguments, one word each: printable ASCII without
	// white space, $ and \. Anything else is refused when the script is made.
	Cmdline []string
	// FixedIP, when valid, is the address DHCP gives this machine.
	FixedIP netip.Addr
}

// ErrNoBoot is returned by a Resolver for a path that belongs to no boot (any more).
var ErrNoBoot = errors.New("no such boot")

// Resolver decides what machines boot. Its methods are called several times at once.
type Resolver interface {
	// Resolve answers for a machine by its MAC, known or not. A failure leaves
	// the machine with an address; it asks again.
	Resolve(ctx context.Context, r Request) (Plan, error)
	// ResolvePath finds the boot with this secret path, or ErrNoBoot.
	ResolvePath(ctx context.Context, path string) (Plan, error)
}

// Recorder takes evidence. node is "" when the hop knows nothing but the MAC, and
// mac is "" when not even that is known. It must not block for long.
type Recorder func(ctx context.Context, node, mac string, e event.Evidence)

// ConfigName is where the ramdisk finds agent.BootConfig.
const ConfigName = "etc/slipway/boot.json"

// ConfigArchive is the newc archive with c, to be read by the kernel behind a
// ramdisk that ends at a multiple of 4 bytes (see cpio.Pad).
func ConfigArchive(c agent.BootConfig) ([]byte, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("boot configuration of node %s: %w", c.NodeUUID, err)
	}
	// The nonce is in it: for root's eyes.
	return cpio.Archive([]cpio.File{{Name: ConfigName, Mode: 0o600, Data: append(raw, '\n')}})
}
