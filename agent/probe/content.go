package probe

import (
	"io"

	"github.com/slipway-metal/slipway/proto/agent"
)

// maxContent bounds what one disk adds to the inventory.
const maxContent = 64

// Content is what a deploy would destroy: the partition table, each partition
// and what is on it, and what lies on the bare disk.
func Content(r io.ReaderAt, size int64, sector int) ([]agent.DiskContent, error) {
	var out []agent.DiskContent
	add := func(c agent.DiskContent) {
		if len(out) < maxContent {
			out = append(out, c)
		}
	}
	table, err := ReadTable(r, size, sector)
	if err != nil {
		return nil, err
	}
	if table.Scheme != "" {
		add(agent.DiskContent{Kind: KindTable, Type: table.Scheme})
	}
	for _, p := range table.Partitions {
		add(agent.DiskContent{Kind: KindPartition, Type: p.Type, Label: p.Label, Size: p.Size})
		hits, err := Signatures(io.NewSectionReader(r, p.Start, p.Size), p.Size)
		if err != nil {
			return nil, err
		}
		addHits(add, hits, p.Size)
	}
	hits, err := Signatures(r, size)
	if err != nil {
		return nil, err
	}
	addHits(add, hits, size)
	return out, nil
}

// addHits names each kind of thing once, though it may have several signatures.
func addHits(add func(agent.DiskContent), hits []Hit, size int64) {
	seen := map[string]bool{}
	for _, h := range hits {
		if !seen[h.Type] {
			seen[h.Type] = true
			add(agent.DiskContent{Kind: h.Kind, Type: h.Type, Label: h.Label, Size: size})
		}
	}
}
