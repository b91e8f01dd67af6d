package deploy

import (
	"github.com/slipway-metal/slipway/conductor/configdrive"
	"github.com/slipway-metal/slipway/conductor/store"
)

// configDrive is the instance's config drive as agents take it, base64 of a
// gzipped ISO or a URL; nil when the instance has none.
func configDrive(n *store.Node) (any, error) {
	v, ok := n.InstanceInfo["configdrive"]
	if !ok || v == nil || v == "" {
		return nil, nil
	}
	id := n.InstanceUUID
	if id == "" {
		id = n.UUID
	}
	name := n.InstanceName
	if name == "" {
		name = n.Name
	}
	drive, err := configdrive.Normalize(v, configdrive.Options{UUID: id, Name: name, Hostname: name})
	if err != nil {
		return nil, err
	}
	return drive.Encode()
}
