package flavor

// cloud runs in virtual machines, the lab's among them.
var cloud = Flavor{
	Name:   "cloud",
	Meta:   "linux-image-cloud-amd64",
	Budget: 10_000_000,
	Patterns: append([]string{
		// Other hypervisors and clouds: VMware, Hyper-V, Xen, EC2, Compute Engine, SR-IOV functions.
		"vmxnet3", "vmw_pvscsi", "hv_vmbus", "hv_netvsc", "hv_storvsc", "xen_netfront", "xen_blkfront",
		"ena", "gve", "ixgbevf",
	}, common...),
}
