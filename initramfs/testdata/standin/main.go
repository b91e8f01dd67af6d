// Command standin is the agent of the boot tests: it says what it finds, and
// its first run panics.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	for _, file := range []string{"/run/slipway/last-crash", "/etc/slipway/boot.json", "/run/slipway/settled"} {
		text, err := os.ReadFile(file)
		if err != nil {
			text = []byte("(absent)")
		}
		fmt.Printf("standin: %s: %s\n", file, strings.TrimSpace(string(text)))
	}
	for _, dir := range []string{"/dev", "/sys/class/net", "/sys/firmware/efi/efivars", "/proc/self/fd"} {
		entries, err := os.ReadDir(dir)
		names := make([]string, 0, len(entries))
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), "tty") {
				names = append(names, e.Name())
			}
		}
		if dir == "/sys/firmware/efi/efivars" {
			names = []string{fmt.Sprint(len(names), " variables")}
		}
		fmt.Printf("standin: %s: %s (%v)\n", dir, strings.Join(names, " "), err)
	}
	text, err := os.ReadFile("/proc/meminfo")
	fmt.Printf("standin: memory: %s (%v)\n", strings.Join(strings.Fields(string(text))[:9], " "), err)
	fmt.Println("standin: ready")
	if _, err := os.Stat("/run/slipway/last-crash"); err != nil {
		panic("the first run ends like this")
	}
	time.Sleep(time.Hour)
}
