package lab

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/slipway-metal/slipway/testenv/qemu"
)

// checker fills in defaults and collects what is wrong.
type checker struct {
	file     string
	root     *yaml.Node
	problems []Problem
}

func (c *checker) fail(what, fix string, path ...any) {
	c.problems = append(c.problems, Problem{File: c.file, Line: at(c.root, path...), What: what, Fix: fix})
}

var (
	validName   = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$`)
	validBridge = regexp.MustCompile(`^[a-z][a-z0-9-]{0,14}$`)
	validUUID   = regexp.MustCompile(`^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	validWWN    = regexp.MustCompile(`^0x[0-9a-f]{16}$`)
	validSerial = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,19}$`)
)

const nameRule = "use 1 to 32 of a-z, 0-9 and -, not - at an end"

func (c *checker) spec(s *Spec) {
	if !validName.MatchString(s.Name) {
		c.fail(fmt.Sprintf("%q is no name for a lab", s.Name), nameRule, "name")
	}
	s.Accel = orDefault(s.Accel, qemu.AccelAuto)
	c.oneOf(s.Accel, []string{qemu.AccelAuto, qemu.AccelKVM, qemu.AccelTCG}, "accel")
	if len(s.Networks) == 0 {
		c.fail("the lab has no network", "add one under `networks:`", "networks")
	}
	if len(s.Machines) == 0 {
		c.fail("the lab has no machine", "add one under `machines:`", "machines")
	}
	used := make(map[string]bool)
	for i := range s.Networks {
		c.network(&s.Networks[i], used, "networks", i)
	}
	for i := range s.Machines {
		c.machine(s, i, used)
	}
}

// taken reports, and remembers, a value that must be used once in the lab.
func (c *checker) taken(used map[string]bool, kind, value string, path ...any) {
	key := kind + " " + value
	if used[key] {
		c.fail(fmt.Sprintf("the %s %s is used twice", kind, value), "give each its own", path...)
	}
	used[key] = true
}

func (c *checker) oneOf(value string, allowed []string, path ...any) {
	if !slices.Contains(allowed, value) {
		c.fail(fmt.Sprintf("%q is none of the choices", value), "use "+strings.Join(allowed, " or "), path...)
	}
}

func (c *checker) network(n *Network, used map[string]bool, path ...any) {
	in := func(field string) []any { return append(slices.Clone(path), field) }
	if !validName.MatchString(n.Name) {
		c.fail(fmt.Sprintf("%q is no name for a network", n.Name), nameRule, in("name")...)
	}
	c.taken(used, "network name", n.Name, in("name")...)
	n.Bridge = orDefault(n.Bridge, n.Name)
	if !validBridge.MatchString(n.Bridge) || n.Bridge == "lo" {
		c.fail(fmt.Sprintf("%q is no name for a bridge", n.Bridge), "use at most 15 of a-z, 0-9 and -, a letter first", in("bridge")...)
	}
	c.taken(used, "bridge", n.Bridge, in("bridge")...)
	if !n.CIDR.IsValid() || !n.CIDR.Addr().Is4() || n.CIDR.Bits() > 29 {
		c.fail("the network needs an IPv4 range of 8 addresses or more", "write for example `cidr: 10.77.0.0/24`", in("cidr")...)
		return
	}
	n.CIDR = n.CIDR.Masked()
	if !n.Host.IsValid() {
		n.Host = n.CIDR.Addr().Next()
	}
	if !n.CIDR.Contains(n.Host) || n.Host == n.CIDR.Addr() || n.Host == lastAddr(n.CIDR) {
		c.fail(fmt.Sprintf("the host's address %s is not one of %s", n.Host, n.CIDR), "take for example "+n.CIDR.Addr().Next().String(), in("host")...)
	}
	if n.Rate > 0 && n.Rate < 1e5 {
		c.fail("the rate is below 100 kbit/s", "a machine could not boot over it; write for example 100Mbit", in("rate")...)
	}
}

func (c *checker) machine(s *Spec, i int, used map[string]bool) {
	m := &s.Machines[i]
	in := func(path ...any) []any { return append([]any{"machines", i}, path...) }
	if !validName.MatchString(m.Name) {
		c.fail(fmt.Sprintf("%q is no name for a machine", m.Name), nameRule, in("name")...)
	}
	c.taken(used, "machine name", m.Name, in("name")...)
	m.UUID = orDefault(strings.ToLower(m.UUID), derivedUUID(s.Name, m.Name))
	if !validUUID.MatchString(m.UUID) {
		c.fail(fmt.Sprintf("%q is no UUID", m.UUID), "leave `uuid` out and one is made from the names", in("uuid")...)
	}
	c.taken(used, "UUID", m.UUID, in("uuid")...)
	m.Serial = orDefault(m.Serial, m.Name)
	if len(m.Serial) > 64 || strings.ContainsAny(m.Serial, "\n\x00") {
		c.fail("the serial number is too long or has a line break", "use at most 64 characters", in("serial")...)
	}
	c.oneOf(m.Firmware, []string{qemu.BIOS, qemu.UEFI}, in("firmware")...)
	if m.Memory < 64<<20 || m.Memory > 1<<40 || m.Memory%(1<<20) != 0 {
		c.fail("the memory is not whole MiB between 64MiB and 1TiB", "write for example `memory: 1GiB`; Slipway's ramdisk deploys in 256MiB", in("memory")...)
	}
	if m.CPUs == 0 {
		m.CPUs = 1
	}
	if m.CPUs < 1 || m.CPUs > 64 {
		c.fail(fmt.Sprintf("%d is no number of CPUs", m.CPUs), "use 1 to 64", in("cpus")...)
	}
	if len(m.Boot) == 0 {
		m.Boot = []string{qemu.BootDisk, qemu.BootPXE}
	}
	for j, target := range m.Boot {
		c.oneOf(target, []string{qemu.BootDisk, qemu.BootPXE, qemu.BootCD}, in("boot", j)...)
	}
	m.SSH.User = orDefault(m.SSH.User, "debian")
	if m.Direct.Kernel == "" && m.Direct != (Direct{}) {
		c.fail("`direct` has no kernel", "name one, or leave `direct` out", in("direct")...)
	}
	c.disks(m, used, in)
	c.nics(s, m, used, in)
	c.bmc(s, i, used, in)
}

func (c *checker) disks(m *Machine, used map[string]bool, in func(...any) []any) {
	sata := 0
	for j := range m.Disks {
		d := &m.Disks[j]
		d.Bus = orDefault(d.Bus, qemu.Virtio)
		c.oneOf(d.Bus, []string{qemu.Virtio, qemu.NVMe, qemu.AHCI}, in("disks", j, "bus")...)
		if d.Size < 1<<20 || d.Size%4096 != 0 {
			c.fail("the disk is smaller than 1MiB or not whole sectors", "write for example `size: 4GiB`", in("disks", j, "size")...)
		}
		d.Serial = orDefault(d.Serial, defaultSerial(m.Name, j))
		if !validSerial.MatchString(d.Serial) {
			c.fail(fmt.Sprintf("%q is no serial number for a disk", d.Serial), "use 1 to 20 of A-Z, a-z, 0-9, . _ and -", in("disks", j, "serial")...)
		}
		c.taken(used, "disk serial", d.Serial, in("disks", j, "serial")...)
		if d.Sector == 0 {
			d.Sector = 512
		}
		if d.Sector != 512 && d.Sector != 4096 {
			c.fail(fmt.Sprintf("disks have no sectors of %d bytes", d.Sector), "use 512 or 4096", in("disks", j, "sector")...)
		}
		if d.Bus == qemu.AHCI {
			if sata++; sata > 5 {
				c.fail("the machine has more than 5 ahci disks", "the controller has six ports and the CD drive needs one; use virtio or nvme", in("disks", j)...)
			}
			if d.Sector == 4096 {
				c.fail("an ahci disk cannot have sectors of 4096 bytes here", "use virtio or nvme for those", in("disks", j, "sector")...)
			}
		}
		switch d.WWN = strings.ToLower(d.WWN); {
		case d.WWN == "":
		case d.Bus != qemu.AHCI:
			c.fail("a "+d.Bus+" disk carries no WWN here", "take `wwn` out and tell it by `serial`, or use ahci", in("disks", j, "wwn")...)
		case !validWWN.MatchString(d.WWN):
			c.fail(fmt.Sprintf("%q is no WWN", d.WWN), "write for example 0x5000c50015ea71ac", in("disks", j, "wwn")...)
		default:
			c.taken(used, "WWN", d.WWN, in("disks", j, "wwn")...)
		}
	}
}

func (c *checker) nics(s *Spec, m *Machine, used map[string]bool, in func(...any) []any) {
	for j := range m.NICs {
		n := &m.NICs[j]
		if n.Network == "" && len(s.Networks) > 0 {
			n.Network = s.Networks[0].Name
		}
		if _, ok := s.Network(n.Network); !ok {
			c.fail(fmt.Sprintf("there is no network %q", n.Network), "name one of those under `networks:`", in("nics", j, "network")...)
		}
		n.MAC = orDefault(strings.ToLower(n.MAC), derivedMAC(s.Name, m.Name, j))
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() != n.MAC {
			c.fail(fmt.Sprintf("%q is no MAC address of a network card", n.MAC), "write six bytes, the first even, as in 52:54:00:77:00:01", in("nics", j, "mac")...)
		}
		c.taken(used, "MAC address", n.MAC, in("nics", j, "mac")...)
		n.Model = orDefault(n.Model, "virtio")
		c.oneOf(n.Model, []string{"virtio", "e1000e"}, in("nics", j, "model")...)
		n.ROM = orDefault(n.ROM, "ipxe")
		c.oneOf(n.ROM, []string{"ipxe", "none"}, in("nics", j, "rom")...)
	}
}

func (c *checker) bmc(s *Spec, i int, used map[string]bool, in func(...any) []any) {
	b := &s.Machines[i].BMC
	b.Type = orDefault(b.Type, "redfish")
	c.oneOf(b.Type, []string{"redfish"}, in("bmc", "type")...)
	b.User = orDefault(b.User, "admin")
	b.Password = orDefault(b.Password, "password")
	if len(s.Networks) == 0 {
		return
	}
	if !b.Address.IsValid() && s.Networks[0].Host.IsValid() {
		b.Address = netip.AddrPortFrom(s.Networks[0].Host, uint16(8001+i))
	}
	ours := slices.ContainsFunc(s.Networks, func(n Network) bool { return n.Host == b.Address.Addr() })
	if !ours || b.Address.Port() == 0 {
		c.fail(fmt.Sprintf("the BMC's address %s is none of the host's", b.Address), "use the `host` address of a network and a port of its own", in("bmc", "address")...)
	}
	c.taken(used, "BMC address", b.Address.String(), in("bmc", "address")...)
}

func orDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// defaultSerial keeps within the 20 characters that a virtio disk can tell.
func defaultSerial(machine string, disk int) string {
	suffix := fmt.Sprintf("-disk%d", disk)
	return machine[:min(len(machine), 20-len(suffix))] + suffix
}

// derivedUUID is stable over runs, so that a lab's machines keep their
// identity. It is a name-based UUID in form (version 8, RFC 9562).
func derivedUUID(lab, machine string) string {
	h := sha256.Sum256([]byte("slipway-lab uuid\x00" + lab + "\x00" + machine))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// derivedMAC is one of QEMU's own range, 52:54:00.
func derivedMAC(lab, machine string, nic int) string {
	h := sha256.Sum256(fmt.Appendf(nil, "slipway-lab mac\x00%s\x00%s\x00%d", lab, machine, nic))
	return net.HardwareAddr{0x52, 0x54, 0x00, h[0], h[1], h[2]}.String()
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// fieldsOf lists what a part of a lab file can hold, for an error's last line.
func fieldsOf(name string) string {
	for _, v := range []any{Spec{}, Network{}, Machine{}, Disk{}, NIC{}, BMC{}, SSH{}, Direct{}} {
		t := reflect.TypeOf(v)
		if t.Name() != name {
			continue
		}
		fields := make([]string, t.NumField())
		for i := range fields {
			fields[i] = t.Field(i).Tag.Get("yaml")
		}
		return strings.Join(fields, ", ")
	}
	return "other fields"
}
