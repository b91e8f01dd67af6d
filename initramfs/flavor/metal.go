package flavor

// metal reaches NICs and disks of servers. Left out on purpose: cards that are
// twenty years old or were never in a server, Fibre Channel and iSCSI HBAs'
// own stacks (a root disk behind them is a later issue), and virtual functions,
// which exist only inside guests.
var metal = Flavor{
	Name:   "metal",
	Meta:   "linux-image-amd64",
	Budget: 16_000_000,
	Patterns: append([]string{
		// Ethernet, by directory where most of it is of use.
		"drivers/net/ethernet/intel/", "!e100", "!ixgb", "!igbvf", "!ixgbevf", "!iavf", "!fm10k",
		"drivers/net/ethernet/broadcom/", "!b44", "!cnic",
		"drivers/net/ethernet/mellanox/", "!drivers/net/ethernet/mellanox/mlxsw/",
		"drivers/net/ethernet/realtek/", "!8139cp", "!8139too", "!atp",
		"drivers/net/ethernet/aquantia/",
		"drivers/net/ethernet/emulex/", // be2net: HPE and IBM blades
		"drivers/net/ethernet/cisco/",  // enic: UCS
		"qede", "cxgb4", "sfc", "nfp", "hinic", "amd_xgbe", "?ionic", "alx", "atl1c", "sky2", "forcedeth",
		"vmxnet3",
		// USB NICs and the host interface of BMCs.
		"r8152", "ax88179_178a", "cdc_ether", "cdc_ncm", "rndis_host",
		// Disks.
		"ahci", "mpt3sas", "?mpi3mr", "megaraid_sas", "hpsa", "smartpqi", "aacraid", "arcmsr",
		"isci", "pm80xx", "mvsas", "mptsas", "mptspi", "vmw_pvscsi", "usb_storage", "uas", "mmc_block", "sdhci_pci", "ses", "vmd",
		// USB hosts; keyboards for the console.
		"xhci_pci", "ehci_pci", "uhci_hcd", "ohci_pci", "usbhid", "hid_generic", "atkbd", "i8042",
		// The BMC, as the machine itself sees it.
		"ipmi_si", "ipmi_devintf", "ipmi_ssif",
	}, common...),
	Softdeps: []string{
		"ipmi_si post: ipmi_devintf",
		"ipmi_ssif post: ipmi_devintf",
	},
}
