package lab

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const small = `
name: small
networks: [{name: net, cidr: 10.9.0.0/24}]
machines:
  - name: m
    firmware: bios
    memory: 256MiB
    disks: [{size: 1GiB}]
    nics: [{}]
`

func TestDefaultsSayAllThereIsToSay(t *testing.T) {
	got, err := Parse("small.yaml", []byte(small))
	if err != nil {
		t.Fatal(err)
	}
	want := &Spec{
		Name: "small", Accel: "auto",
		Networks: []Network{{Name: "net", Bridge: "net", CIDR: netip.MustParsePrefix("10.9.0.0/24"), Host: netip.MustParseAddr("10.9.0.1")}},
		Machines: []Machine{{
			Name: "m", UUID: derivedUUID("small", "m"), Serial: "m", Firmware: "bios", Memory: 256 << 20, CPUs: 1,
			Disks: []Disk{{Size: 1 << 30, Bus: "virtio", Serial: "m-disk0", Sector: 512}},
			NICs:  []NIC{{Network: "net", MAC: derivedMAC("small", "m", 0), Model: "virtio", ROM: "ipxe"}},
			BMC:   BMC{Type: "redfish", User: "admin", Password: "password", Address: netip.MustParseAddrPort("10.9.0.1:8001")},
			Boot:  []string{"disk", "pxe"}, SSH: SSH{User: "debian"},
		}},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestExampleLabFilesAreRight(t *testing.T) {
	examples, err := filepath.Glob("../labs/*.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range examples {
		if _, err := Load(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestProblemsAreToldWithPlaceAndFix(t *testing.T) {
	// Each case is the small file with one line changed; the problem is on that line.
	for name, tc := range map[string]struct{ old, new, place, what, fix string }{
		"unknown field":         {"memory: 256MiB", "memory: 256MiB\n    colour: red", "x.yaml:8", `no field "colour"`, "it has name, uuid"},
		"firmware":              {"firmware: bios", "firmware: coreboot", "x.yaml:6", `"coreboot"`, "use bios or uefi"},
		"no firmware":           {"    firmware: bios\n", "", "x.yaml:5", `""`, "use bios or uefi"},
		"memory unit":           {"256MiB", "256 apples", "x.yaml:7", `"256 apples"`, "512MiB, 3GiB"},
		"little memory":         {"256MiB", "32MiB", "x.yaml:7", "between 64MiB", "Slipway's ramdisk"},
		"disk size":             {"1GiB", "1GiB, bus: floppy", "x.yaml:8", `"floppy"`, "virtio or nvme or ahci"},
		"wwn on virtio":         {"1GiB", `1GiB, wwn: "0x5000c50015ea71ac"`, "x.yaml:8", "carries no WWN", "use ahci"},
		"4096 on ahci":          {"1GiB", "1GiB, bus: ahci, sector: 4096", "x.yaml:8", "cannot have sectors", "use virtio or nvme"},
		"sector":                {"1GiB", "1GiB, sector: 520", "x.yaml:8", "520", "512 or 4096"},
		"long serial":           {"1GiB", "1GiB, serial: abcdefghijklmnopqrstu", "x.yaml:8", "no serial number", "1 to 20"},
		"network":               {"nics: [{}]", "nics: [{network: lan}]", "x.yaml:9", `no network "lan"`, "under `networks:`"},
		"mac":                   {"nics: [{}]", `nics: [{mac: "53:54:00:00:00:01"}]`, "x.yaml:9", "no MAC address", "the first even"},
		"mac twice":             {"nics: [{}]", `nics: [{mac: "52:54:00:00:00:01"}, {mac: "52:54:00:00:00:01"}]`, "x.yaml:9", "used twice", "each its own"},
		"cidr":                  {"10.9.0.0/24", "10.9.0.0/33", "x.yaml:3", `"10.9.0.0/33"`, "an IPv4 range"},
		"bmc without a port":    {"nics: [{}]", "nics: [{}]\n    bmc: {address: localhost}", "x.yaml:10", `"localhost"`, "with a port"},
		"host outside":          {"10.9.0.0/24", "10.9.0.0/24, host: 10.8.0.1", "x.yaml:3", "not one of 10.9.0.0/24", "10.9.0.1"},
		"bridge name":           {"10.9.0.0/24", "10.9.0.0/24, bridge: a-much-too-long-bridge", "x.yaml:3", "no name for a bridge", "at most 15"},
		"bmc elsewhere":         {"nics: [{}]", "nics: [{}]\n    bmc: {address: 10.9.0.7:80}", "x.yaml:10", "none of the host's", "`host` address"},
		"bmc type":              {"nics: [{}]", "nics: [{}]\n    bmc: {type: ipmi}", "x.yaml:10", `"ipmi"`, "use redfish"},
		"machine name":          {"name: m\n", "name: M\n", "x.yaml:5", `"M" is no name`, "a-z"},
		"no machines":           {small[strings.Index(small, "machines:"):], "machines: []\n", "x.yaml:4", "no machine", "add one"},
		"boot order":            {"nics: [{}]", "nics: [{}]\n    boot: [floppy]", "x.yaml:10", `"floppy"`, "disk or pxe or cd"},
		"rate":                  {"10.9.0.0/24", "10.9.0.0/24, rate: 1kbit", "x.yaml:3", "below 100 kbit", "100Mbit"},
		"wrong kind of a thing": {"memory: 256MiB", "memory: [1, 2]", "x.yaml:7", "", "512MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("x.yaml", []byte(strings.Replace(small, tc.old, tc.new, 1)))
			var file *FileError
			if !errors.As(err, &file) {
				t.Fatalf("error = %v, want a FileError", err)
			}
			got := file.Problems[0].String()
			for _, want := range []string{tc.place + ": ", tc.what, tc.fix} {
				if !strings.Contains(got, want) {
					t.Errorf("%q does not say %q", got, want)
				}
			}
		})
	}
}

func TestAllProblemsAreToldAtOnce(t *testing.T) {
	text := strings.NewReplacer("bios", "coreboot", "256MiB", "1MiB", "1GiB", "1GiB, sector: 7").Replace(small)
	_, err := Parse("x.yaml", []byte(text))
	var file *FileError
	if !errors.As(err, &file) || len(file.Problems) != 3 {
		t.Errorf("error = %v, want three problems", err)
	}
}

func TestEmptyAndDoubleFilesAreRefused(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", small + "---\n" + small, "name: [", "- a\n- b\n"} {
		var file *FileError
		if _, err := Parse("x.yaml", []byte(text)); !errors.As(err, &file) {
			t.Errorf("Parse(%.20q) = %v, want a FileError", text, err)
		}
	}
}

func TestPathsAreRelativeToTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.yaml")
	text := strings.Replace(small, "size: 1GiB", "size: 1GiB, image: base.raw", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	spec, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := spec.Machines[0].Disks[0].Image, filepath.Join(dir, "base.raw"); got != want {
		t.Errorf("image = %s, want %s", got, want)
	}
}

func TestIdentitiesAreTheSameEveryTime(t *testing.T) {
	if a, b := derivedUUID("lab", "m"), derivedUUID("lab", "m"); a != b || !validUUID.MatchString(a) {
		t.Errorf("UUIDs %s and %s", a, b)
	}
	if derivedMAC("lab", "m", 0) == derivedMAC("lab", "m", 1) {
		t.Error("two network cards of a machine have one MAC address")
	}
}

func TestForward(t *testing.T) {
	got, err := ParseForward("127.0.0.1:6385=10.77.0.1:6385")
	if err != nil || got.Listen != netip.MustParseAddrPort("127.0.0.1:6385") || got.To != netip.MustParseAddrPort("10.77.0.1:6385") {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "6385", "127.0.0.1:6385", "localhost:1=10.0.0.1:1", "127.0.0.1=10.0.0.1:1"} {
		if _, err := ParseForward(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// FuzzParse holds Parse to its word: a text is either a lab that is whole, or
// an error with a place; never a panic.
func FuzzParse(f *testing.F) {
	f.Add([]byte(small))
	demo, err := os.ReadFile("../labs/demo.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(demo)
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("name: x\nmachines: [{disks: [{size: 1e309GiB}]}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := Parse("x.yaml", data)
		if err != nil {
			var file *FileError
			if !errors.As(err, &file) || len(file.Problems) == 0 || spec != nil {
				t.Fatalf("spec %v, error %v", spec, err)
			}
			return
		}
		for i, m := range spec.Machines {
			cfg := machineConfig("/dir", spec, i)
			if cfg.Memory <= 0 || cfg.CPUs <= 0 || !m.BMC.Address.IsValid() {
				t.Fatalf("machine %+v is not whole", m)
			}
		}
	})
}
