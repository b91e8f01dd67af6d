package ipxe

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const base = "http://10.77.0.1:6385/boot/"

func example() Boot {
	return Boot{
		Node: "5f1b6f9e-0000-4000-8000-000000000001", Kernel: base + "secret0123456789/vmlinuz",
		Initrds: []Initrd{{"initrd", base + "secret0123456789/initrd"}, {"config.cpio", base + "secret0123456789/config.cpio"}},
		Args:    []string{"BOOTIF=01-52-54-00-aa-00-01", "console=ttyS0,115200n8", "dyndbg=\"+p\"", "a'b", "x;y", "||x", "a=#b"},
	}
}

// parse reads a script as iPXE does: a line is a comment, a label, or commands
// that are split at white space and end at ||, && or ; (core/exec.c). It returns
// the commands, the labels and the variables that would be expanded.
func parse(t *testing.T, text string) (commands [][]string, labels, variables []string) {
	t.Helper()
	if !strings.HasPrefix(text, "#!ipxe\n") {
		t.Fatalf("no magic first line in %q", text)
	}
	for line := range strings.Lines(text) {
		rest := line
		for {
			_, after, ok := strings.Cut(rest, "${")
			if !ok {
				break
			}
			name, behind, closed := strings.Cut(after, "}")
			if !closed {
				t.Fatalf("open expansion in %q", line)
			}
			variables, rest = append(variables, name), behind
		}
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#"):
			continue
		case strings.HasPrefix(words[0], ":"):
			labels = append(labels, words[0][1:])
			continue
		}
		for len(words) > 0 {
			end := slices.IndexFunc(words, func(w string) bool { return w == "||" || w == "&&" || w == ";" || w[0] == '#' })
			if end < 0 {
				commands = append(commands, words)
				break
			}
			if end > 0 {
				commands = append(commands, words[:end])
			}
			if words[end][0] == '#' {
				break
			}
			words = words[end+1:]
		}
	}
	return commands, labels, variables
}

// check holds a script to what it was made from.
func check(t *testing.T, b Boot, text string) {
	t.Helper()
	commands, labels, variables := parse(t, text)
	var kernel [][]string
	var initrds []Initrd
	for _, c := range commands {
		switch c[0] {
		case "kernel":
			kernel = append(kernel, c)
		case "initrd":
			if len(c) != 4 || c[1] != "--name" {
				t.Fatalf("initrd command %q", c)
			}
			initrds = append(initrds, Initrd{c[2], c[3]})
		case "goto":
			if len(c) != 2 || !slices.Contains(labels, c[1]) {
				t.Errorf("%q leads nowhere", c)
			}
		case "echo", "imgfree", "set", "inc", "iseq", "sleep", "boot", "reboot":
		default:
			t.Errorf("a command that nobody wrote: %q", c)
		}
	}
	want := []string{"kernel", "--name", "vmlinuz", b.Kernel}
	for _, i := range b.Initrds {
		want = append(want, "initrd="+i.Name)
	}
	if want = append(want, b.Args...); len(kernel) != 1 || !slices.Equal(kernel[0], want) {
		t.Errorf("kernel commands %q, want one: %q", kernel, want)
	}
	if !slices.Equal(initrds, b.Initrds) {
		t.Errorf("ramdisks %q, want %q", initrds, b.Initrds)
	}
	for _, v := range variables {
		if v != "slipway-try" && v != "slipway-pause" {
			t.Errorf("expands ${%s}", v)
		}
	}
}

func TestScriptSaysWhatItWasMadeFrom(t *testing.T) {
	text, err := example().Script()
	if err != nil {
		t.Fatal(err)
	}
	check(t, example(), text)
	for _, want := range []string{"imgfree\n", "inc slipway-try\n", "sleep ${slipway-pause}\n", "goto failed", "reboot\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// The attacks of CVE-2026-46447 (kernel_append_params) and their kin.
func TestHostileValuesAreRefused(t *testing.T) {
	for _, hostile := range []string{
		"quiet\nchain http://evil/", "quiet\rchain http://evil/", "a b", "a\tb", "${net0/mac}", "$", "a\\", "#!ipxe", "#", "||", "&&", ";",
		"", "\x00", "a\u2028chain", "ä", "\x7f", "initrd=other", strings.Repeat("x", 64<<10),
	} {
		b := example()
		b.Args = append(b.Args, hostile)
		if text, err := b.Script(); err == nil {
			t.Errorf("argument %.80q accepted:\n%.400s", hostile, text)
		}
		for what, change := range map[string]func(*Boot){
			"node":        func(b *Boot) { b.Node = "x" + hostile + "\n" },
			"kernel URL":  func(b *Boot) { b.Kernel = base + hostile + " " },
			"ramdisk URL": func(b *Boot) { b.Initrds[0].URL = "ftp://host/" + hostile },
			"name":        func(b *Boot) { b.Initrds[0].Name = "-" + hostile },
		} {
			b := example()
			change(&b)
			if text, err := b.Script(); err == nil {
				t.Errorf("%s with %.80q accepted:\n%.400s", what, hostile, text)
			}
		}
	}
}

func TestCommandLineThatTheKernelWouldCutIsRefused(t *testing.T) {
	b := example()
	b.Args = nil
	for range 200 {
		b.Args = append(b.Args, "slipway=1234567")
	}
	if _, err := b.Script(); err == nil || !strings.Contains(err.Error(), "kernel command line") {
		t.Error(err)
	}
}

func TestMachinesDoNotRetryInStep(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		text, err := example().Script()
		if err != nil {
			t.Fatal(err)
		}
		seen[text] = true
	}
	if len(seen) < 2 {
		t.Error("every machine starts with the same pause")
	}
}

func TestDiskScriptKnowsBothFirmwares(t *testing.T) {
	commands, _, variables := parse(t, Disk())
	got := fmt.Sprint(commands[1:])
	if got != "[[iseq ${platform} pcbios] [exit 0] [sanboot --no-describe --drive 0x80] [exit 0]]" || !slices.Equal(variables, []string{"platform"}) {
		t.Error(got, variables)
	}
}

func TestWaitAndAskComeBack(t *testing.T) {
	text, err := Wait(base + "ipxe?mac=52%3A54%3A00%3Aaa%3A00%3A01")
	if err != nil || !strings.Contains(text, "chain --replace --autofree "+base+"ipxe?mac=52%3A54%3A00%3Aaa%3A00%3A01 || reboot\n") {
		t.Error(err, text)
	}
	if !strings.Contains(AskMAC(base+"ipxe"), base+"ipxe?mac=${netX/mac:hexhyp} || reboot\n") {
		t.Error(AskMAC(base))
	}
	if _, err := Wait("http://x/ y"); !errors.Is(err, ErrUnsafe) {
		t.Error(err)
	}
}

func FuzzScript(f *testing.F) {
	e := example()
	f.Add(e.Node, e.Kernel, "initrd", e.Initrds[0].URL, "quiet", "console=ttyS0")
	f.Add("n", base+"k?a=b", "a", base, "a\nb", "${x}")
	f.Add("n", "http://[::1]/k", "a.b", "https://h", "||", "&&")
	f.Fuzz(func(t *testing.T, node, kernel, name, initrd, arg1, arg2 string) {
		b := Boot{Node: node, Kernel: kernel, Initrds: []Initrd{{name, initrd}}, Args: []string{arg1, arg2}}
		if text, err := b.Script(); err == nil {
			check(t, b, text)
		}
	})
}
