package agent

// Inventory is IPA's hardware inventory in its recorded shape
// (testdata/ipa-inventory.json). Pointers are null there when unknown.
type Inventory struct {
	Interfaces   []Interface  `json:"interfaces"`
	CPU          CPU          `json:"cpu"`
	Disks        []Disk       `json:"disks"`
	Memory       Memory       `json:"memory"`
	BMCAddress   *string      `json:"bmc_address"`
	BMCV6Address *string      `json:"bmc_v6address"`
	SystemVendor SystemVendor `json:"system_vendor"`
	Boot         BootInfo     `json:"boot"`
	Hostname     string       `json:"hostname"`
	// BootID is ours: the kernel's boot id, which orders are bound to.
	BootID string `json:"slipway_boot_id,omitempty"`
}

// Interface is one NIC.
type Interface struct {
	Name        string  `json:"name"`
	MACAddress  string  `json:"mac_address"`
	IPv4Address *string `json:"ipv4_address"`
	IPv6Address *string `json:"ipv6_address"`
	HasCarrier  bool    `json:"has_carrier"`
	// LLDP holds [type, hex value] pairs, as IPA sends them.
	LLDP        [][2]any `json:"lldp"`
	Vendor      *string  `json:"vendor"`
	Product     *string  `json:"product"`
	ClientID    *string  `json:"client_id"`
	BIOSDevName *string  `json:"biosdevname"`
	SpeedMbps   *int     `json:"speed_mbps"`
	PCIAddress  *string  `json:"pci_address"`
	Driver      *string  `json:"driver"`
}

// CPU describes the processors of the machine.
type CPU struct {
	ModelName    string   `json:"model_name"`
	Frequency    string   `json:"frequency"` // MHz
	Count        int      `json:"count"`
	Architecture string   `json:"architecture"`
	Flags        []string `json:"flags"`
	SocketCount  int      `json:"socket_count"`
}

// Disk is one whole block device.
type Disk struct {
	Name               string  `json:"name"` // /dev/…
	Model              *string `json:"model"`
	Size               int64   `json:"size"` // bytes
	Rotational         bool    `json:"rotational"`
	WWN                *string `json:"wwn"`
	Serial             *string `json:"serial"`
	Vendor             *string `json:"vendor"`
	WWNWithExtension   *string `json:"wwn_with_extension"`
	WWNVendorExtension *string `json:"wwn_vendor_extension"`
	HCTL               *string `json:"hctl"`
	ByPath             *string `json:"by_path"`
	LogicalSectors     int     `json:"logical_sectors"`  // bytes
	PhysicalSectors    int     `json:"physical_sectors"` // bytes
	Tran               *string `json:"tran"`
	// Content is ours: what a deploy would destroy.
	Content []DiskContent `json:"slipway_content,omitempty"`
}

// DiskContent is one thing found on a disk.
type DiskContent struct {
	Kind  string `json:"kind"` // partition, filesystem, raid, lvm, …
	Type  string `json:"type,omitempty"`
	Label string `json:"label,omitempty"`
	Size  int64  `json:"size,omitempty"` // bytes
}

// Identity is the disk's identity for orders and hints. Path is by_path, else
// the device name.
func (d Disk) Identity() DiskIdentity {
	id := DiskIdentity{Size: d.Size, Path: d.Name}
	if d.WWN != nil {
		id.WWN = *d.WWN
	}
	if d.Serial != nil {
		id.Serial = *d.Serial
	}
	if d.ByPath != nil && *d.ByPath != "" {
		id.Path = *d.ByPath
	}
	return id
}

// Memory is the machine's memory.
type Memory struct {
	Total      int64 `json:"total"` // bytes
	PhysicalMB int64 `json:"physical_mb"`
}

// SystemVendor is SMBIOS's word on the maker.
type SystemVendor struct {
	ProductName  string   `json:"product_name"`
	SerialNumber string   `json:"serial_number"`
	Manufacturer string   `json:"manufacturer"`
	Firmware     Firmware `json:"firmware"`
}

// Firmware is SMBIOS's word on the firmware.
type Firmware struct {
	Vendor    string `json:"vendor"`
	Version   string `json:"version"`
	BuildDate string `json:"build_date"`
}

// BootInfo says how the ramdisk was booted.
type BootInfo struct {
	CurrentBootMode string  `json:"current_boot_mode"` // bios or uefi
	PXEInterface    *string `json:"pxe_interface"`     // MAC
}

// Inspection is the body of POST /v1/continue_inspection.
type Inspection struct {
	Inventory  Inventory      `json:"inventory"`
	PluginData map[string]any `json:"plugin_data,omitempty"`
}
