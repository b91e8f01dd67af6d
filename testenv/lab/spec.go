package lab

import (
	"net/netip"
	"time"

	"gopkg.in/yaml.v3"
)

// Spec is a lab file: the networks and machines of one lab. Parse fills the
// defaults in, so that a parsed Spec says all there is to say.
type Spec struct {
	Name     string    `yaml:"name"`
	Accel    string    `yaml:"accel"` // auto (default), kvm or tcg
	Networks []Network `yaml:"networks"`
	Machines []Machine `yaml:"machines"`
}

// Network is one bridge, with the host (where the conductor runs) on it.
type Network struct {
	Name   string       `yaml:"name"`
	Bridge string       `yaml:"bridge"` // name of the bridge device; default: the network's name
	CIDR   netip.Prefix `yaml:"cidr"`
	Host   netip.Addr   `yaml:"host"` // the host's address; default: the first of the CIDR
	Rate   Rate         `yaml:"rate"` // of each link towards its machine; 0: as fast as the host is
}

// Machine is one virtual machine and its BMC.
type Machine struct {
	Name     string     `yaml:"name"`
	UUID     string     `yaml:"uuid"`     // SMBIOS; default: made from the lab's and the machine's name
	Serial   string     `yaml:"serial"`   // SMBIOS; default: the machine's name
	Firmware string     `yaml:"firmware"` // bios or uefi
	Memory   Size       `yaml:"memory"`
	CPUs     int        `yaml:"cpus"` // default: 1
	Disks    []Disk     `yaml:"disks"`
	NICs     []NIC      `yaml:"nics"`
	BMC      BMC        `yaml:"bmc"`
	Boot     []string   `yaml:"boot"` // lasting boot order, of pxe, disk and cd; default: [disk, pxe]
	SSH      SSH        `yaml:"ssh"`
	Direct   Direct     `yaml:"direct"`
	Address  netip.Addr `yaml:"address"` // where `slipway-lab ssh` finds it; default: what its console or its ARP traffic says
}

// Disk is one disk, empty at first and kept between power cycles.
type Disk struct {
	Size   Size   `yaml:"size"`
	Bus    string `yaml:"bus"`    // virtio (default), nvme or ahci
	Serial string `yaml:"serial"` // at most 20 characters; default: MACHINE-diskN
	WWN    string `yaml:"wwn"`    // 0x and 16 hexadecimal digits; only on ahci
	Sector int    `yaml:"sector"` // bytes, 512 (default) or 4096 (not on ahci)
	Image  string `yaml:"image"`  // a raw image to copy in when the disk is first made
}

// NIC is one network card.
type NIC struct {
	Network string `yaml:"network"` // default: the first network
	MAC     string `yaml:"mac"`     // default: made from the lab's and the machine's name
	Model   string `yaml:"model"`   // virtio (default) or e1000e
	ROM     string `yaml:"rom"`     // ipxe (default), or none: only OVMF can then boot from it
}

// BMC is the machine's management controller.
type BMC struct {
	Type     string         `yaml:"type"` // redfish (default)
	User     string         `yaml:"user"` // default: admin
	Password string         `yaml:"password"`
	Address  netip.AddrPort `yaml:"address"` // default: the first network's host address, port 8001 and up
}

// SSH is how to log in to the machine's deployed system.
type SSH struct {
	User string `yaml:"user"` // default: debian
}

// Direct starts a kernel without firmware, for work on a ramdisk.
type Direct struct {
	Kernel  string `yaml:"kernel"`
	Initrd  string `yaml:"initrd"`
	Cmdline string `yaml:"cmdline"`
}

// Size is a number of bytes; in a file it is written 512MiB, 3GiB or 1.5TB.
type Size int64

// Rate is a number of bits a second; in a file it is written 1Gbit or 100Mbit.
type Rate uint64

// Network returns the network of that name.
func (s *Spec) Network(name string) (Network, bool) {
	for _, n := range s.Networks {
		if n.Name == name {
			return n, true
		}
	}
	return Network{}, false
}

// Machine returns the machine of that name.
func (s *Spec) Machine(name string) (Machine, bool) {
	for _, m := range s.Machines {
		if m.Name == name {
			return m, true
		}
	}
	return Machine{}, false
}

// RedfishURL returns the root of the BMC's Redfish service, as seen inside the
// lab's network.
func (m Machine) RedfishURL() string {
	return "http://" + m.BMC.Address.String() + "/redfish/v1"
}

// UnmarshalYAML reads a size.
func (s *Size) UnmarshalYAML(n *yaml.Node) error {
	v, err := parseSize(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		return fieldError(n, "a size is a number and a unit, as in 512MiB, 3GiB or 10GB")
	}
	*s = Size(v)
	return nil
}

// UnmarshalYAML reads a rate.
func (r *Rate) UnmarshalYAML(n *yaml.Node) error {
	v, err := parseRate(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		return fieldError(n, "a rate is a number and a unit, as in 1Gbit or 100Mbit")
	}
	*r = Rate(v)
	return nil
}

// startTimeout bounds how long a supervisor may take to build its network; it
// takes well under a second on an idle machine.
const startTimeout = 30 * time.Second
