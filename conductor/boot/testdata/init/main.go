// Command init is PID 1 of the firmware test's ramdisk: it prints the boot
// configuration that came behind the ramdisk and turns the machine off.
package main

import (
	"fmt"
	"os"
	"syscall"
)

func main() {
	raw, err := os.ReadFile("/etc/slipway/boot.json")
	fmt.Printf("SLIPWAY-CONFIG %v %s\n", err, raw)
	syscall.Sync()
	if err := syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("power off:", err)
	}
}
