package lab

import (
	"context"
	"fmt"

	"github.com/slipway-metal/slipway/testenv/fakebmc"
	"github.com/slipway-metal/slipway/testenv/qemu"
)

// redfishMachine is a QEMU machine as a Redfish service manages it.
type redfishMachine struct{ vm *qemu.Machine }

var _ fakebmc.MediaMachine = redfishMachine{}

func bmcConfig(m Machine) fakebmc.Config {
	cfg := fakebmc.Config{
		UUID: m.UUID, Name: m.Name, Username: m.BMC.User, Password: m.BMC.Password,
		Serial: m.Serial, Manufacturer: "Slipway", Model: "Lab machine",
		BootMode: "UEFI", CPUs: m.CPUs, MemoryMiB: int(m.Memory >> 20),
	}
	if m.Firmware == qemu.BIOS {
		cfg.BootMode = "Legacy"
	}
	for _, n := range m.NICs {
		cfg.MACs = append(cfg.MACs, n.MAC)
	}
	return cfg
}

func (r redfishMachine) PowerState(context.Context) (fakebmc.PowerState, error) {
	if r.vm.Status().On {
		return fakebmc.On, nil
	}
	return fakebmc.Off, nil
}

func (r redfishMachine) PowerOn(ctx context.Context) error  { return r.vm.PowerOn(ctx) }
func (r redfishMachine) ForceOff(ctx context.Context) error { return r.vm.PowerOff(ctx) }
func (r redfishMachine) Reset(ctx context.Context) error    { return r.vm.Reset(ctx) }

func (r redfishMachine) GracefulShutdown(ctx context.Context) error {
	return r.vm.PressPowerButton(ctx)
}

func (r redfishMachine) InsertMedia(ctx context.Context, image string) error {
	return r.vm.InsertMedia(ctx, image)
}

func (r redfishMachine) EjectMedia(ctx context.Context) error { return r.vm.EjectMedia(ctx) }

var bootTargets = map[fakebmc.Device]string{
	fakebmc.None: "",
	fakebmc.PXE:  qemu.BootPXE,
	fakebmc.Disk: qemu.BootDisk,
	fakebmc.CD:   qemu.BootCD,
}

func (r redfishMachine) SetNextBoot(ctx context.Context, o fakebmc.Override) error {
	target, ok := bootTargets[o.Device]
	if !ok {
		return fmt.Errorf("the lab's machines cannot boot from %s by BMC", o.Device)
	}
	return r.vm.SetNextBoot(ctx, qemu.Override{Target: target, Once: o.Once})
}
