package deploy

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/proto/agent"
)

func node(t *testing.T, instance map[string]any, disks ...agent.Disk) *store.Node {
	t.Helper()
	n := &store.Node{UUID: "n", InstanceInfo: instance, Properties: map[string]any{}}
	if disks != nil {
		raw, err := json.Marshal(agent.Inventory{Disks: disks})
		if err != nil {
			t.Fatal(err)
		}
		n.Inventory = raw
	}
	return n
}

func disk(name, serial string, size int64) agent.Disk {
	return agent.Disk{Name: name, Serial: &serial, Size: size}
}

func TestTheRootDiskIsOneOrTheDeployFails(t *testing.T) {
	a, b := disk("/dev/sda", "serial-a", 100<<30), disk("/dev/sdb", "serial-b", 100<<30)
	for _, tc := range []struct {
		name     string
		node     *store.Node
		property any // properties/root_device
		serial   string
		says     []string
	}{
		{name: "never inspected", node: node(t, nil), says: []string{"never inspected"}},
		{name: "two equal disks", node: node(t, nil, a, b), says: []string{"serial-a", "serial-b", "root_device"}},
		{name: "no disk fits", node: node(t, map[string]any{"root_device": map[string]any{"serial": "serial-c"}}, a, b), says: []string{"serial-c", "serial-a"}},
		{name: "a hint decides", node: node(t, nil, a, b), property: map[string]any{"serial": "serial-b"}, serial: "serial-b"},
		{name: "the instance's hint goes before", node: node(t, map[string]any{"root_device": map[string]any{"serial": "serial-a"}}, a, b), property: map[string]any{"serial": "serial-b"}, serial: "serial-a"},
		{name: "an empty hint of the instance's is none", node: node(t, map[string]any{"root_device": map[string]any{}}, a, b), property: map[string]any{"serial": "serial-b"}, serial: "serial-b"},
		{name: "hints of the wrong type", node: node(t, map[string]any{"root_device": "/dev/sda"}, a, b), says: []string{"root_device is string"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.property != nil {
				tc.node.Properties["root_device"] = tc.property
			}
			var p payload
			err := plan(tc.node, &p)
			if tc.serial != "" {
				if err != nil || p.Disk.Serial != tc.serial {
					t.Fatalf("disk %v, %v", p.Disk, err)
				}
				// Only the root disk may be touched, and only by the image.
				for _, s := range p.Plan {
					if want := s.Step.Step == "write_image"; want != (len(s.Disks) == 1 && s.Disks[0] == p.Disk) {
						t.Errorf("step %s may touch %v", s.Step.Step, s.Disks)
					}
				}
				return
			}
			if err == nil || p.Plan != nil {
				t.Fatalf("it was planned: %+v", p)
			}
			for _, want := range tc.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("does not say %q: %v", want, err)
				}
			}
		})
	}
}

func TestWhatIsWrongWithTheImageIsSaidBeforeTheMachineIsTouched(t *testing.T) {
	const url = "http://images/x"
	sha256, sha512 := strings.Repeat("aB", 32), strings.Repeat("cd", 64)
	for _, tc := range []struct {
		name string
		info map[string]any
		says string
	}{
		{"no image", map[string]any{"image_checksum": sha256}, "image_source is missing"},
		{"a file of the conductor", map[string]any{"image_source": "file:///etc/shadow", "image_checksum": sha256}, "http and https only"},
		{"no host", map[string]any{"image_source": "http:///x", "image_checksum": sha256}, "http and https only"},
		{"no digest", map[string]any{"image_source": url}, "digest is missing"},
		{"MD5", map[string]any{"image_source": url, "image_checksum": strings.Repeat("a", 32)}, "MD5"},
		{"a URL for a digest", map[string]any{"image_source": url, "image_checksum": "http://images/x.sha256"}, "is a URL"},
		{"not hex", map[string]any{"image_source": url, "image_checksum": strings.Repeat("zz", 32)}, "hex digits"},
		{"unknown algorithm", map[string]any{"image_source": url, "image_os_hash_algo": "crc32", "image_os_hash_value": "00"}, "crc32"},
		{"wrong length", map[string]any{"image_source": url, "image_os_hash_algo": "sha512", "image_os_hash_value": sha256}, "128"},
		{"sha256", map[string]any{"image_source": url, "image_checksum": sha256}, ""},
		{"sha512", map[string]any{"image_source": url, "image_os_hash_algo": "SHA512", "image_os_hash_value": sha512}, ""},
	} {
		info, err := ImageInfo(&store.Node{UUID: "n", InstanceInfo: tc.info})
		if tc.says == "" {
			if err != nil || info.OSHashValue == "" || info.OSHashValue != strings.ToLower(info.OSHashValue) {
				t.Errorf("%s: %+v, %v", tc.name, info, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error %v does not say %q", tc.name, err, tc.says)
		}
	}
}

// A stock ironic-python-agent fails a command that has a parameter it does not know.
func TestAStockAgentGetsNoParametersOfOurs(t *testing.T) {
	s := flow.NewStep(bootloader, agent.Step{Step: "install_bootloader"})
	want := []string{"efi_system_part_uuid", "prep_boot_part_uuid", "root_uuid", "target_boot_mode"} // as recorded from Ironic
	for name, info := range map[string]map[string]any{"stock": {}, "ours": {store.KeyBootID: "b"}} {
		n := node(t, nil)
		n.BootMode, n.DriverInternalInfo = "uefi", info
		params, err := stepParams(t.Context(), nil, n, &s)
		if err != nil {
			t.Fatal(err)
		}
		m, ok := params.(map[string]any)
		if !ok {
			t.Fatalf("%s: %T", name, params)
		}
		if id, has := m["slipway_command_id"]; has != (name == "ours") || has && id != s.ID {
			t.Errorf("%s: slipway_command_id %v", name, id)
		}
		delete(m, "slipway_command_id")
		if got := slices.Sorted(maps.Keys(m)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
