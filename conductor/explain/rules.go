package explain

import (
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/proto/event"
)

// Owner is who must act for a node to leave its state.
type Owner string

// The owners.
const (
	Operator  Owner = "operator"
	Conductor Owner = "conductor"
	Agent     Owner = "agent"
)

// rule says of a state who owns it, what is expected next, and how long that
// may take when the work does not say (0: it rests, for as long as its owner likes).
type rule struct {
	owner     Owner
	expecting string
	deadline  time.Duration
}

// The deadlines. callback is Ironic's deploy_callback_timeout.
const (
	callback = 30 * time.Minute
	bmcCalls = 5 * time.Minute
)

// rules has a row for every state (a test holds that).
var rules = map[state.State]rule{
	state.Enroll:         {Operator, "the operator to verify it (manage)", 0},
	state.Manageable:     {Operator, "the operator to inspect it or make it available (inspect, provide)", 0},
	state.Available:      {Operator, "a deploy", 0},
	state.Active:         {Operator, "nothing: it is in use", 0},
	state.Error:          {Operator, "the operator to rebuild or undeploy it", 0},
	state.Rescue:         {Operator, "the operator to end the rescue (unrescue)", 0},
	state.Verifying:      {Conductor, "the BMC to answer", bmcCalls},
	state.Deploying:      {Conductor, "the conductor to carry the deploy on", callback},
	state.WaitCallback:   {Agent, "the agent to call or to finish its step", callback},
	state.DeployFailed:   {Operator, "the operator to mend the cause, then deploy or undeploy", 0},
	state.DeployHold:     {Operator, "the operator to go on (unhold) or to abort", 0},
	state.Cleaning:       {Conductor, "the conductor to carry the cleaning on", callback},
	state.CleanWait:      {Agent, "the agent to call or to finish its step", callback},
	state.CleanFailed:    {Operator, "the operator to mend the cause, then manage", 0},
	state.CleanHold:      {Operator, "the operator to go on (unhold) or to abort", 0},
	state.Deleting:       {Conductor, "the conductor to take the instance down", bmcCalls},
	state.Inspecting:     {Conductor, "the conductor to carry the inspection on", callback},
	state.InspectFailed:  {Operator, "the operator to mend the cause, then inspect or manage", 0},
	state.InspectWait:    {Agent, "the agent to send the inventory", callback},
	state.Adopting:       {Conductor, "the conductor to take over the running machine", bmcCalls},
	state.AdoptFailed:    {Operator, "the operator to mend the cause, then adopt or manage", 0},
	state.Rescuing:       {Conductor, "the conductor to carry the rescue on", callback},
	state.RescueWait:     {Agent, "the agent to call", callback},
	state.RescueFailed:   {Operator, "the operator to mend the cause, then rescue or unrescue", 0},
	state.Unrescuing:     {Conductor, "the conductor to end the rescue", bmcCalls},
	state.UnrescueFailed: {Operator, "the operator to mend the cause, then unrescue", 0},
	state.Servicing:      {Conductor, "the conductor to carry the service on", callback},
	state.ServiceWait:    {Agent, "the agent to call or to finish its step", callback},
	state.ServiceFailed:  {Operator, "the operator to mend the cause, then service or abort", 0},
	state.ServiceHold:    {Operator, "the operator to go on (unhold) or to abort", 0},
}

// hop is one station on a machine's way from power to a working agent.
type hop struct {
	name string
	// expecting words what is missing when this hop is the next.
	expecting string
	// optional hops are not missed when a later one was seen or may come without
	// them (virtual media and UEFI HTTP boot need no TFTP).
	optional bool
	// cause is the likeliest reason why it does not come, next what to do.
	cause, next string
}

// way are the hops in their order.
var way = []hop{
	{name: event.HopPower, expecting: "the BMC to confirm power on",
		cause: "the BMC does not answer or refuses: wrong address or credentials in driver_info, or the BMC hangs",
		next:  "check driver_info and reach the BMC from the conductor by hand"},
	{name: event.HopDHCP, expecting: "a DHCP request of the machine",
		cause: "power on is confirmed but no DHCP request was seen: network boot is not in the boot order, the NIC's link or VLAN is wrong, another DHCP server answers first, or the port's MAC is another NIC's",
		next:  "look at the console; compare the port's MAC with the boot NIC's and the switch port's VLAN with the conductor's"},
	{name: event.HopTFTP, expecting: "the firmware to fetch its boot loader by TFTP", optional: true,
		cause: "an address was offered but the firmware fetched no boot loader: UDP port 69 is blocked on the way, or the firmware took another server's offer",
		next:  "open UDP 69 between machine and conductor, or silence the other DHCP server"},
	{name: event.HopHTTP, expecting: "iPXE to fetch its script, kernel and ramdisk by HTTP",
		cause: "the boot loader was served but nothing was fetched by HTTP: the conductor's HTTP port is blocked on the way, or iPXE has no driver for this NIC",
		next:  "open the conductor's HTTP port to the provisioning network; look at the console"},
	{name: event.HopLookup, expecting: "the agent to look itself up",
		cause: "kernel and ramdisk were served but the agent did not call: the kernel panicked or ran out of memory, the ramdisk has no driver for the NIC, or it can't reach the conductor's URL",
		next:  "look at the machine's console; check that it has 256 MB of RAM and reaches the conductor's URL"},
	{name: event.HopHeartbeat, expecting: "the agent's first heartbeat",
		cause: "the agent knows which node it is but sends no heartbeat: it was refused, or it stopped",
		next:  "look at the agent's log on the console"},
}

// restOfFiles is the HTTP hop of a machine that has fetched some of its files.
var restOfFiles = hop{name: event.HopHTTP, expecting: "iPXE to fetch the rest: kernel, then ramdisk",
	cause: "some boot files were fetched but the ramdisk was not: the transfer hangs (loss, MTU), the kernel's image was refused (Secure Boot), or the machine has too little RAM",
	next:  "look at the machine's console; check loss and MTU between machine and conductor"}

// unhappy are causes of a hop whose last fact was a failure, by hop.
var unhappy = map[string]hop{
	event.HopPower:     way[0],
	event.HopDHCP:      {cause: "the DHCP server refused this machine: no free address, or its MAC belongs to no node", next: "create a port with its MAC; enlarge the address range"},
	event.HopTFTP:      {cause: "the boot loader's transfer broke off: packet loss, or a firewall that knows no TFTP", next: "check loss and MTU between machine and conductor"},
	event.HopHTTP:      {cause: "a boot file's transfer broke off or was refused: packet loss, an MTU mismatch, or a stale boot URL", next: "check loss and MTU between machine and conductor; the machine fetches it again when it reboots"},
	event.HopLookup:    {cause: "the machine that called could not show that it is this node", next: "find out which machine called (peer); if it is the right one, boot it afresh through the conductor"},
	event.HopInventory: {cause: "the inventory was refused", next: "see the fact's detail; correct the ports, then inspect again"},
	event.HopHeartbeat: {cause: "a heartbeat was refused: an agent of an earlier boot, or a second machine with this identity", next: "find out which machine called (peer)"},
	event.HopCommand:   {cause: "the agent refused or failed a command", next: "see last_error and `slipway node logs`, then retry the verb"},
	event.HopDisk:      {cause: "the machine was not told to boot its disk", next: "check the BMC's boot device"},
}
