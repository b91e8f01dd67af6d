// Command bench measures what needs no virtual machine (sizes, the conductor's
// start and memory), and prints the table of all figures in build/bench.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

const dir = "build/bench"

// figures is one file of build/bench.
type figures struct {
	Name    string             `json:"name"`
	Time    time.Time          `json:"time"`
	CPUs    int                `json:"cpus"`
	Figures map[string]float64 `json:"figures"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if len(os.Args) < 2 || os.Args[1] != "table" {
		for name, measure := range map[string]func() (map[string]float64, error){"sizes": sizes, "conductor": conductor} {
			f, err := measure()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			raw, err := json.MarshalIndent(figures{name, time.Now().UTC(), runtime.NumCPU(), f}, "", "  ")
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, name+".json"), append(raw, '\n'), 0o600); err != nil {
				return err
			}
		}
	}
	return table()
}

// sizes of what is shipped, MB.
func sizes() (map[string]float64, error) {
	out := map[string]float64{}
	for what, path := range map[string]string{
		"bin/slipway, MB": "bin/slipway", "bin/slipway-agent, MB": "bin/slipway-agent", "bin/slipway-lab, MB": "bin/slipway-lab",
		"cloud ramdisk, MB": "build/cloud/initramfs.cpio.zst", "metal ramdisk, MB": "build/metal/initramfs.cpio.zst",
		"cloud kernel, MB": "build/cloud/vmlinuz", "metal kernel, MB": "build/metal/vmlinuz",
	} {
		st, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		out[what] = float64(st.Size()) / 1e6
	}
	return out, nil
}

// rounds of starting the conductor; the median counts.
const rounds = 5

// conductor measures start to answering, and memory at rest.
func conductor() (map[string]float64, error) {
	var starts, rss []float64
	for range rounds {
		s, m, err := startOnce()
		if err != nil {
			return nil, err
		}
		starts, rss = append(starts, s), append(rss, m)
	}
	slices.Sort(starts)
	slices.Sort(rss)
	return map[string]float64{"start to answering, s": starts[rounds/2], "idle RSS, MB": rss[rounds/2]}, nil
}

func startOnce() (seconds, rssMB float64, err error) {
	data, err := os.MkdirTemp("", "slipway-bench-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(data) //nolint:errcheck // a temporary directory
	const address = "127.0.0.1:16385"
	begun := time.Now()
	cmd := exec.Command("bin/slipway", "serve", "--data", data, "--listen", address)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}()
	for {
		resp, err := http.Get("http://" + address + "/slipway/v1/health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Since(begun) > 30*time.Second {
			return 0, 0, fmt.Errorf("the conductor does not answer: %s", log.String())
		}
		time.Sleep(2 * time.Millisecond)
	}
	seconds = time.Since(begun).Seconds()
	time.Sleep(3 * time.Second) // at rest
	rssMB, err = rssOf(cmd.Process.Pid)
	return seconds, rssMB, err
}

func rssOf(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kb * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

// budgets of docs/performance.md.
var budgets = map[string]float64{
	"sizes/cloud ramdisk, MB": 10, "sizes/metal ramdisk, MB": 16,
	"conductor/start to answering, s": 1, "conductor/idle RSS, MB": 60,
	"inventory-bios/power-on to inventory, s": 15, "inventory-uefi/power-on to inventory, s": 18,
	"deploy-uefi/power-on to SSH login, s": 85, "deploy-bios/power-on to SSH login, s": 85, "deploy-cloud-init/power-on to SSH login, s": 125,
	"deploy-uefi/enrol to SSH login, s": 150,
}

func table() error {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return err
	}
	fmt.Printf("Machine: %s, %d CPUs, load %s, KVM %s; %s\n\n", cpuModel(), runtime.NumCPU(), load(), kvm(), time.Now().UTC().Format("2006-01-02"))
	fmt.Println("| what | figure | budget |")
	fmt.Println("|---|---|---|")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var f figures
		if err := json.Unmarshal(raw, &f); err != nil || f.Figures == nil {
			continue // another bench's shape
		}
		for _, k := range slices.Sorted(maps.Keys(f.Figures)) {
			what, unit, _ := strings.Cut(k, ", ")
			budget := "-"
			if b, ok := budgets[f.Name+"/"+k]; ok {
				budget = fmt.Sprintf("%g %s", b, unit)
			}
			fmt.Printf("| %s: %s | %.3g %s | %s |\n", f.Name, what, f.Figures[k], unit, budget)
		}
	}
	return nil
}

func cpuModel() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.Trim(v, "\t :\n")
		}
	}
	return "unknown CPU"
}

func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(raw))[0]
}

func kvm() string {
	if _, err := os.Stat("/dev/kvm"); err == nil {
		return "present"
	}
	return "absent (TCG)"
}
