// Package bootconf finds out what the ramdisk was booted for: from the file
// that the conductor appended to it, else from the kernel's command line, where
// a stock Ironic puts it.
package bootconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"strings"

	"github.com/slipway-metal/slipway/proto/agent"
)

// File is where the conductor's configuration lies in the ramdisk.
const File = "etc/slipway/boot.json"

// Config is what the ramdisk was booted for.
type Config struct {
	agent.BootConfig
	// InspectURL, when set, is where a stock Ironic wants the inventory.
	InspectURL string
	// Insecure: the operator said ipa-insecure=1; the conductor's certificate isn't checked.
	Insecure bool
	// Source names where Conductor came from, for the console.
	Source string
}

// Load reads the configuration from the root file system fsys ("/" in the
// ramdisk, which has etc/slipway/boot.json and proc/cmdline).
func Load(fsys fs.FS) (Config, error) {
	var c Config
	cmdline, err := fs.ReadFile(fsys, "proc/cmdline")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("boot configuration: %w", err)
	}
	keys := parseCmdline(string(cmdline))
	raw, err := fs.ReadFile(fsys, File)
	switch {
	case err == nil:
		if err := json.Unmarshal(raw, &c.BootConfig); err != nil {
			return c, fmt.Errorf("boot configuration /%s: %w", File, err)
		}
		c.Source = "/" + File
	case errors.Is(err, fs.ErrNotExist):
		c.Conductor = keys["ipa-api-url"]
		c.Source = "kernel command line"
	default:
		return c, fmt.Errorf("boot configuration: %w", err)
	}
	if !c.Slipway {
		c.InspectURL = keys["ipa-inspection-callback-url"]
		c.Insecure = keys["ipa-insecure"] == "1" || strings.EqualFold(keys["ipa-insecure"], "true")
		if strings.EqualFold(c.InspectURL, "mdns") {
			c.InspectURL = "" // never trusted: whoever answers first would own the machine
		}
	}
	if c.BootMAC == "" {
		c.BootMAC = bootif(keys["BOOTIF"])
	}
	c.BootMAC = strings.ToLower(c.BootMAC)
	if c.LogLevel == "" && (keys["ipa-debug"] == "1" || strings.EqualFold(keys["ipa-debug"], "true")) {
		c.LogLevel = "debug"
	}
	return c, c.check()
}

func (c *Config) check() error {
	if c.Conductor == "" {
		return errors.New("boot configuration: no conductor: neither /" + File + " nor ipa-api-url= on the kernel command line")
	}
	u, err := url.Parse(c.Conductor)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("boot configuration: conductor %q of the %s: want http(s)://address:port", c.Conductor, c.Source)
	}
	c.Conductor = strings.TrimSuffix(c.Conductor, "/")
	if c.BootMAC != "" {
		if _, err := net.ParseMAC(c.BootMAC); err != nil {
			return fmt.Errorf("boot configuration: boot MAC: %w", err)
		}
	}
	return nil
}

// bootif turns PXELINUX's BOOTIF=01-aa-bb-cc-dd-ee-ff, or iPXE's MAC with
// colons, into a MAC with colons; "" for anything else.
func bootif(v string) string {
	v = strings.ToLower(strings.ReplaceAll(v, "-", ":"))
	if strings.Count(v, ":") == 6 { // the leading byte is the hardware type
		_, v, _ = strings.Cut(v, ":")
	}
	if hw, err := net.ParseMAC(v); err != nil || len(hw) != 6 {
		return ""
	}
	return v
}

// parseCmdline splits the kernel's command line as the kernel does: at blanks
// outside double quotes; the last one of a repeated key counts.
func parseCmdline(s string) map[string]string {
	out := map[string]string{}
	quoted := false
	words := strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\n' || r == '\t')
	})
	for _, w := range words {
		k, v, _ := strings.Cut(strings.ReplaceAll(w, `"`, ""), "=")
		out[k] = v
	}
	return out
}
