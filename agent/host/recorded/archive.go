// Package recorded is a machine from a recording: what /sys and /proc said on
// the real one, and files in the place of its disks. Tests of everything above
// host.Host run on it.
package recorded

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/tools/txtar"
)

// A recording is a txtar archive. A file's content is the file's; a name that
// ends in linkMark is a symbolic link to its content, one in base64Mark holds
// bytes that are no text.
const (
	linkMark   = " ->"
	base64Mark = " base64"
)

// wanted are the files that scan reads, as patterns below the root. The kernel's
// command line is not among them: it may hold secrets.
var wanted = []string{
	"proc/cpuinfo", "proc/meminfo",
	"proc/sys/kernel/arch", "proc/sys/kernel/hostname", "proc/sys/kernel/random/boot_id",
	"sys/class/dmi/id/{product_name,product_serial,sys_vendor,bios_vendor,bios_version,bios_date}",
	"sys/firmware/dmi/tables/{smbios_entry_point,DMI}",
	"sys/firmware/memmap/*/{start,end,type}",
	"sys/firmware/efi/fw_platform_size",
	"sys/devices/system/cpu/cpu*/topology/{physical_package_id,core_id}",
	"sys/devices/system/cpu/cpu*/online",
	"sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
	"sys/class/net/*/{address,addr_assign_type,carrier,speed}",
	"sys/class/net/*/device/{vendor,device,driver}",
	"sys/block/*/{size,removable,ro,hidden,dev,serial,wwid,nsid}",
	"sys/block/*/queue/{rotational,logical_block_size,physical_block_size}",
	"sys/block/*/device/{vendor,model,serial,wwid,vpd_pg80,vpd_pg83,type}",
	"sys/block/*/*/{partition,start,size}",
	"sys/bus/usb/devices/*/serial",
	"sys/class/ata_port/*/port_no",
	"sys/class/sas_device/*/phy_identifier",
}

// biggest is the largest file that is kept, bytes.
const biggest = 64 << 10

// Capture records the machine whose root is given.
func Capture(root string) ([]byte, error) {
	c := capture{root: filepath.Clean(root), seen: map[string]bool{}}
	for _, pattern := range wanted {
		for _, p := range expand(pattern) {
			matches, err := filepath.Glob(filepath.Join(c.root, p))
			if err != nil {
				return nil, fmt.Errorf("record %s: %w", p, err)
			}
			for _, m := range matches {
				c.add(m)
			}
		}
	}
	slices.SortFunc(c.files, func(a, b txtar.File) int { return strings.Compare(a.Name, b.Name) })
	return txtar.Format(&txtar.Archive{Files: c.files}), nil
}

// expand writes a pattern's {a,b} out.
func expand(pattern string) []string {
	before, rest, ok := strings.Cut(pattern, "{")
	if !ok {
		return []string{pattern}
	}
	list, after, _ := strings.Cut(rest, "}")
	var out []string
	for _, one := range strings.Split(list, ",") {
		out = append(out, before+one+after)
	}
	return out
}

type capture struct {
	root  string
	files []txtar.File
	seen  map[string]bool
}

// add keeps one file at its real place, and the links on the way to it.
func (c *capture) add(path string) {
	rel, err := filepath.Rel(c.root, path)
	if err != nil {
		return
	}
	real := c.root
	for part := range strings.SplitSeq(rel, "/") {
		here := filepath.Join(real, part)
		if target, err := os.Readlink(here); err == nil {
			c.link(here, target)
			if here, err = filepath.EvalSymlinks(here); err != nil {
				return
			}
		}
		real = here
	}
	c.file(real)
}

func (c *capture) name(path string) string {
	rel, err := filepath.Rel(c.root, path)
	if err != nil {
		return strings.TrimPrefix(path, "/")
	}
	return rel
}

func (c *capture) link(path, target string) {
	name := c.name(path) + linkMark
	if !c.seen[name] {
		c.seen[name] = true
		c.files = append(c.files, txtar.File{Name: name, Data: []byte(target + "\n")})
	}
}

func (c *capture) file(path string) {
	name := c.name(path)
	info, err := os.Stat(path)
	if c.seen[name] || err != nil || info.IsDir() {
		if err == nil && info.IsDir() && !c.seen[name] { // a driver, whose name is all that counts
			c.seen[name] = true
			c.files = append(c.files, txtar.File{Name: name + "/", Data: nil})
		}
		return
	}
	raw, err := os.ReadFile(path)
	if err != nil || len(raw) > biggest {
		return // some attributes answer with an error by design: a link's speed when it is down
	}
	c.seen[name] = true
	if !utf8.Valid(raw) || strings.Contains(string(raw), "\n-- ") || slices.Contains(raw, 0) {
		name, raw = name+base64Mark, []byte(base64.StdEncoding.EncodeToString(raw)+"\n")
	}
	c.files = append(c.files, txtar.File{Name: name, Data: raw})
}

// Extract lays a recording out below dir.
func Extract(archive []byte, dir string) error {
	for _, f := range txtar.Parse(archive).Files {
		name, isLink := strings.CutSuffix(f.Name, linkMark)
		name, isBase64 := strings.CutSuffix(name, base64Mark)
		if !filepath.IsLocal(strings.TrimSuffix(name, "/")) {
			return fmt.Errorf("recording: %q leads outside", f.Name)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("recording: %w", err)
		}
		var err error
		switch {
		case isLink:
			err = os.Symlink(strings.TrimSpace(string(f.Data)), path)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case isBase64:
			var raw []byte
			if raw, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(f.Data))); err == nil {
				err = os.WriteFile(path, raw, 0o644)
			}
		default:
			err = os.WriteFile(path, f.Data, 0o644)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("recording: %s: %w", f.Name, err)
		}
	}
	return nil
}
