package shell_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mvdan.cc/sh/v3/interp"

	"github.com/slipway-metal/slipway/initramfs/init/shell"
)

// run gives the shell a command line and returns what it said and its status.
func run(t *testing.T, args []string, typed string) (out, errs string, status uint8) {
	t.Helper()
	in := filepath.Join(t.TempDir(), "typed")
	if err := os.WriteFile(in, []byte(typed), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stdout, stderr strings.Builder
	if err := shell.Run(t.Context(), args, f, &stdout, &stderr); err != nil {
		var ok bool
		if status, ok = interp.IsExitStatus(err); !ok {
			t.Fatal(err)
		}
	}
	return stdout.String(), stderr.String(), status
}

func TestCommandsRunInsideTheShell(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "log"), []byte("one\nTwo\nthree\ntwo and a half\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/nowhere")
	for _, c := range []struct{ line, want string }{
		{"cat log | grep -i two", "Two\ntwo and a half\n"},
		{"head -n 1 log; tail -n 1 log", "one\ntwo and a half\n"},
		{"for f in $(ls); do echo file $f; done", "file log\n"},
		{"cp log copy && shasum -a 256 copy | grep -i 'copy' | head -n 1 >/dev/null && rm copy && ls", "log\n"},
		{"mkdir -p a/b && mv log a/b/ && find a | grep log | grep -i A/B >found && mv a/b/log . && rm -r a && ls", "found\nlog\n"},
	} {
		out, errs, status := run(t, []string{"-c", "cd " + dir + "; " + c.line}, "")
		if out != c.want || status != 0 {
			t.Errorf("%s\nsaid %q %q, status %d; want %q", c.line, out, errs, status, c.want)
		}
	}
}

func TestFailuresAreToldAndHaveAStatus(t *testing.T) {
	t.Setenv("PATH", "/nowhere")
	for _, c := range []struct{ line, want string }{
		{"cat /no/such/file", "/no/such/file"},
		{"frobnicate", "frobnicate"},
		{"grep '('", "grep"},
		{"head -n many", "many"},
		{"mount vda", "usage"},
	} {
		_, errs, status := run(t, []string{"-c", c.line}, "")
		if status == 0 || !strings.Contains(errs, c.want) {
			t.Errorf("%s: status %d, said %q", c.line, status, errs)
		}
	}
}

func TestTypingGoesOnAfterMistakes(t *testing.T) {
	out, errs, status := run(t, nil, "cd /\npwd\nif true; then\necho inside\nfi\nfi )\necho after\nfalse\nexit 3\necho never\n")
	for _, want := range []string{"/\n", "> > inside\n", "after\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("output %q lacks %q", out, want)
		}
	}
	if strings.Contains(out, "never") || status != 3 || errs == "" {
		t.Errorf("status %d, output %q, errors %q", status, out, errs)
	}
}
