package agent

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// DiskIdentity names one physical disk so that no renumbering can confuse it.
type DiskIdentity struct {
	WWN    string `json:"wwn,omitempty"`
	Serial string `json:"serial,omitempty"`
	Size   int64  `json:"size"` // bytes
	// Path is the fallback (by-path or PCI address) of disks without WWN and serial.
	Path string `json:"path,omitempty"`
}

// String is the form that errors and plans print.
func (d DiskIdentity) String() string {
	name := d.Path
	if d.Serial != "" {
		name = "serial " + d.Serial
	}
	if d.WWN != "" {
		name = "wwn " + d.WWN
	}
	return fmt.Sprintf("%s (%d bytes)", name, d.Size)
}

// Matches says whether the disk found now is the disk meant: the size must be
// equal, and every identifier that d names.
func (d DiskIdentity) Matches(found DiskIdentity) bool {
	return d.Size == found.Size &&
		(d.WWN != "" || d.Serial != "" || d.Path != "") &&
		(d.WWN == "" || strings.EqualFold(d.WWN, found.WWN)) &&
		(d.Serial == "" || d.Serial == found.Serial) &&
		(d.WWN != "" || d.Serial != "" || d.Path == found.Path)
}

// Order is the single-use permission for one destructive step.
type Order struct {
	Node       string         `json:"node"`
	BootID     string         `json:"boot_id"` // of the ramdisk that may carry it out
	Disks      []DiskIdentity `json:"disks"`   // the only disks it may touch
	Action     string         `json:"action"`  // step name
	Generation int64          `json:"generation"`
	Expiry     time.Time      `json:"expiry"`
	MAC        string         `json:"mac"` // hex HMAC-SHA256 with the agent token
}

// Errors of Order.Check.
var (
	ErrOrderForged  = errors.New("order: not signed with this agent's token")
	ErrOrderExpired = errors.New("order: expired")
	ErrOrderOther   = errors.New("order: made for another node, boot or action")
)

// signed is length-prefixed, so no two orders share a byte string.
func (o Order) signed() []byte {
	var b strings.Builder
	put := func(s string) { fmt.Fprintf(&b, "%d:%s,", len(s), s) }
	put("slipway-order-1")
	put(o.Node)
	put(o.BootID)
	put(o.Action)
	put(fmt.Sprint(o.Generation))
	put(o.Expiry.UTC().Format(time.RFC3339Nano))
	for _, d := range o.Disks {
		put(d.WWN)
		put(d.Serial)
		put(fmt.Sprint(d.Size))
		put(d.Path)
	}
	return []byte(b.String())
}

// Sign returns o with its MAC by the agent's token.
func (o Order) Sign(token string) Order {
	m := hmac.New(sha256.New, []byte(token))
	m.Write(o.signed())
	o.MAC = hex.EncodeToString(m.Sum(nil))
	return o
}

// Check verifies that o was signed with token and is for this node, boot and
// action, now. Replay is the caller's to refuse, by Generation.
func (o Order) Check(token, node, bootID, action string, now time.Time) error {
	want := o.Sign(token).MAC
	switch {
	case !hmac.Equal([]byte(want), []byte(o.MAC)):
		return ErrOrderForged
	case o.Node != node || o.BootID != bootID || o.Action != action:
		return ErrOrderOther
	case now.After(o.Expiry):
		return ErrOrderExpired
	}
	return nil
}
