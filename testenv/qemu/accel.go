package qemu

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ioctls of /dev/kvm (linux/kvm.h); neither takes an argument.
const (
	kvmGetAPIVersion = 0xAE00
	kvmCreateVM      = 0xAE01
)

// accelerator turns Config.Accel into QEMU's argument and says why.
func accelerator(want string) (arg, why string, err error) {
	kvm := probeKVM()
	switch {
	case want == AccelTCG:
		return "tcg,thread=multi", "asked for", nil
	case kvm == nil:
		return "kvm", "/dev/kvm works", nil
	case want == AccelKVM:
		return "", "", fmt.Errorf("the machine asks for KVM: %w", kvm)
	default:
		return "tcg,thread=multi", kvm.Error(), nil
	}
}

// probeKVM asks for the processor's own virtualisation and makes an empty
// virtual machine. A /dev/kvm that can do the latter is not enough: without vmx
// or svm (nested guests with a software KVM) OVMF was seen to die in its first
// instructions with "KVM internal error".
func probeKVM() error {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return fmt.Errorf("no KVM here: %w", err)
	}
	if !hasVirtualisation(string(info)) {
		return errors.New("no KVM here: the processor shows neither vmx nor svm")
	}
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("no KVM here: %w", err)
	}
	defer func() { _ = dev.Close() }()
	version, err := unix.IoctlRetInt(int(dev.Fd()), kvmGetAPIVersion)
	if err != nil || version != 12 {
		return fmt.Errorf("KVM here speaks API version %d, QEMU needs 12 (%v)", version, err) //nolint:errorlint // err may be nil
	}
	vm, err := unix.IoctlRetInt(int(dev.Fd()), kvmCreateVM)
	if err != nil {
		return fmt.Errorf("KVM here makes no virtual machine: %w", err)
	}
	if err := unix.Close(vm); err != nil {
		return fmt.Errorf("close KVM's virtual machine: %w", err)
	}
	return nil
}

// hasVirtualisation looks for Intel's vmx or AMD's svm in the first processor's
// flags.
func hasVirtualisation(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			fields := strings.Fields(flags)
			return slices.Contains(fields, "vmx") || slices.Contains(fields, "svm")
		}
	}
	return false
}
