// Package ipxe writes iPXE scripts. iPXE has no quoting: a line is split at
// white space after every ${…} in it was expanded, and the words ||, && and ;
// end a command (iPXE's core/exec.c and core/settings.c). So a value that comes
// from outside is either made of harmless characters or refused; it is never
// escaped.
package ipxe

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
)

// ErrUnsafe is in the chain of errors about a value that can't go into a script.
var ErrUnsafe = errors.New("not allowed in an iPXE script")

// MaxCommandLine is the longest kernel command line in bytes: x86's
// COMMAND_LINE_SIZE is 2048 with the terminating NUL.
const MaxCommandLine = 2047

// Boot is a boot of kernel and ramdisks over the network.
type Boot struct {
	Node    string   // UUID, for the console; may be ""
	Kernel  string   // http URL
	Initrds []Initrd // in the order in which the kernel reads them
	Args    []string // kernel command line, a word each
}

// Initrd is one ramdisk, by a name without path and an http URL.
type Initrd struct{ Name, URL string }

// Retries of each file before the machine is reset.
const attempts = 10

// Script returns the script of b. Each file is fetched with up to ten attempts;
// the pause before another attempt grows, and starts at a value that differs
// between machines, so that a rack that lost its server does not come back in
// step.
func (b Boot) Script() (string, error) {
	if b.Node != "" {
		if err := checkWord("node", b.Node); err != nil {
			return "", err
		}
	}
	var s script
	s.line("#!ipxe")
	s.line("echo Slipway: network boot of", orUnknown(b.Node))
	s.line("imgfree")
	s.line(fmt.Sprintf("set slipway-pause:int32 %d", 1+rand.IntN(5)))

	words := []string{"kernel", "--name", "vmlinuz", b.Kernel}
	if err := checkURL("kernel", b.Kernel); err != nil {
		return "", err
	}
	for _, i := range b.Initrds {
		// The EFI stub finds a ramdisk of iPXE's by its name; under BIOS the word does nothing.
		words = append(words, "initrd="+i.Name)
	}
	length := 0
	for _, a := range b.Args {
		if err := checkWord("kernel argument", a); err != nil {
			return "", err
		}
		if strings.HasPrefix(a, "initrd=") {
			return "", fmt.Errorf("kernel argument %q: set by Slipway: %w", a, ErrUnsafe)
		}
		words = append(words, a)
	}
	for _, w := range words[3:] {
		length += len(w) + 1
	}
	if length > MaxCommandLine {
		return "", fmt.Errorf("kernel command line of %d bytes: the kernel takes %d", length, MaxCommandLine)
	}
	s.fetch("kernel", words...)
	for n, i := range b.Initrds {
		if err := checkName(i.Name); err != nil {
			return "", err
		}
		if err := checkURL("ramdisk", i.URL); err != nil {
			return "", err
		}
		s.fetch(fmt.Sprintf("initrd%d", n), "initrd", "--name", i.Name, i.URL)
	}
	s.line("echo Slipway: starting Linux")
	s.line("boot ||")
	s.line("echo Slipway: the kernel did not start; resetting in 30 s")
	s.line("sleep 30")
	s.line("reboot")
	s.line(":failed")
	s.line("echo Slipway: gave up fetching; resetting in 30 s. See slipway explain", b.Node)
	s.line("sleep 30")
	s.line("reboot")
	return s.String(), nil
}

func orUnknown(node string) string {
	if node == "" {
		return "an unknown machine"
	}
	return "node " + node
}

// Disk returns the script of a machine that should boot its disk. Under UEFI
// iPXE can only give control back; where that does not reach the disk (OVMF), the
// boot device has to be set by the BMC, as Slipway does.
func Disk() string {
	var s script
	s.line("#!ipxe")
	s.line("echo Slipway: nothing to boot from the network; going on with the disk")
	s.line("iseq ${platform} pcbios || exit 0")
	s.line("sanboot --no-describe --drive 0x80 || exit 0")
	return s.String()
}

// Wait returns the script of a machine whose boot can't be decided now: it asks
// again at retryURL after some seconds.
func Wait(retryURL string) (string, error) {
	if err := checkURL("retry", retryURL); err != nil {
		return "", err
	}
	var s script
	s.line("#!ipxe")
	s.line("echo Slipway: the conductor can't tell yet what to boot; asking again")
	s.line(fmt.Sprintf("sleep %d", 5+rand.IntN(6)))
	s.line("chain --replace --autofree", retryURL, "|| reboot")
	return s.String(), nil
}

// AskMAC returns a script that asks again with the MAC of the interface that iPXE
// booted from. baseURL is the conductor's own.
func AskMAC(baseURL string) string {
	var s script
	s.line("#!ipxe")
	s.line("chain --replace --autofree", baseURL+"?mac=${netX/mac:hexhyp}", "|| reboot")
	return s.String()
}

type script struct{ strings.Builder }

func (s *script) line(words ...string) {
	s.WriteString(strings.Join(words, " "))
	s.WriteByte('\n')
}

// fetch writes the loop around one fetching command. label is ours.
func (s *script) fetch(label string, words ...string) {
	s.line("set slipway-try:int32 0")
	s.line(":" + label)
	s.line(strings.Join(words, " "), "&& goto", label+"-done ||")
	s.line("inc slipway-try")
	s.line(fmt.Sprintf("iseq ${slipway-try} %d && goto failed ||", attempts))
	s.line("echo Slipway: fetch failed, attempt ${slipway-try}; again in ${slipway-pause} s")
	s.line("sleep ${slipway-pause}")
	s.line("inc slipway-pause 2")
	s.line("goto", label)
	s.line(":" + label + "-done")
}

// checkWord refuses what is not one harmless word: printable ASCII without white
// space, without $ (expansion) and \ (continuation), not starting with # (comment),
// and none of iPXE's command separators.
func checkWord(what, w string) error {
	if w == "" {
		return fmt.Errorf("%s: empty: %w", what, ErrUnsafe)
	}
	for i := range len(w) {
		if c := w[i]; c <= ' ' || c > '~' || c == '$' || c == '\\' {
			return fmt.Errorf("%s %.100q: byte %d (%q): %w", what, w, i, c, ErrUnsafe)
		}
	}
	if w[0] == '#' || w == "||" || w == "&&" || w == ";" {
		return fmt.Errorf("%s %.100q: %w", what, w, ErrUnsafe)
	}
	return nil
}

// checkName wants a plain file name of letters, digits, dot, dash, underscore.
func checkName(name string) error {
	if name == "" || len(name) > 64 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" || name[0] == '-' {
		return fmt.Errorf("ramdisk name %.100q: %w", name, ErrUnsafe)
	}
	return nil
}

// checkURL wants an absolute http or https URL without credentials.
func checkURL(what, raw string) error {
	if err := checkWord(what+" URL", raw); err != nil {
		return err
	}
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("%s URL: %w", what, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%s URL %q: want http(s)://host/…: %w", what, u.Redacted(), ErrUnsafe)
	}
	return nil
}
