// Package layers keeps the house in order: which package may import which, where
// system calls, flags and exits live, and how long a file may be. The rules are
// the design's; to change one, change the design.
package layers

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/slipway-metal/slipway/"
)

// rule says what the packages at and below a path may import of this module (at
// and below these paths), besides the standard library and, unless bare, others'
// modules. The longest path that fits a package rules it.
type rule struct {
	of   string
	may  []string
	bare bool // the standard library only
}

// flows may use these.
var flow = []string{
	"conductor/state", "conductor/store", "conductor/work", "conductor/bmc", "conductor/images",
	"conductor/agentclient", "conductor/configdrive", "conductor/flow", "proto",
}

var rules = []rule{
	{of: "proto", may: []string{"proto"}, bare: true},

	{of: "agent", may: []string{"agent", "proto"}},
	// The conductor reads images with it; it knows nothing of the agent.
	{of: "agent/image", may: []string{"agent/image", "proto"}},

	{of: "conductor/state", bare: true},
	{of: "conductor/store", may: []string{"conductor/state", "conductor/store", "proto"}},
	{of: "conductor/work", may: []string{"conductor/state", "conductor/store"}},
	{of: "conductor/events", may: []string{"proto"}},
	{of: "conductor/logs", may: []string{"proto"}},
	{of: "conductor/explain", may: []string{"conductor/state", "conductor/store", "proto"}},
	{of: "conductor/api", may: []string{"conductor/api", "conductor/state", "conductor/store", "conductor/events", "conductor/explain", "proto"}},

	// The edges know neither each other nor a flow nor the store.
	{of: "conductor/bmc", may: []string{"conductor/bmc", "proto"}},
	{of: "conductor/boot", may: []string{"conductor/boot", "proto"}},
	{of: "conductor/images", may: []string{"conductor/images", "agent/image", "proto"}},
	{of: "conductor/handoff", may: []string{"conductor/handoff", "proto"}},
	{of: "conductor/agentclient", may: []string{"proto"}},
	{of: "conductor/configdrive", may: []string{"agent/image", "proto"}},

	{of: "conductor/flow", may: flow},
	{of: "conductor/clean", may: flow},
	{of: "conductor/deploy", may: flow},
	{of: "conductor/inspect", may: flow},
	{of: "conductor/rescue", may: flow},
	{of: "conductor/service", may: flow},
	{of: "conductor/verify", may: flow},

	// They talk to the API like everybody else.
	{of: "conductor/cli", may: []string{"conductor/cli", "proto"}},
	{of: "conductor/ui", may: []string{"conductor/ui", "proto"}},

	// Where the conductor is put together.
	{of: "conductor/serve", may: []string{"conductor", "agent/image", "proto"}},
	{of: "conductor", may: []string{"conductor/cli", "conductor/serve"}},

	{of: "initramfs", may: []string{"initramfs", "proto"}},
	// The lab drives everything; nothing drives the lab.
	{of: "testenv", may: []string{"testenv", "agent", "conductor", "proto", "initramfs"}},
	{of: "scripts", may: []string{"scripts"}},
}

// within says whether a package is at or below a path.
func within(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

func ruleOf(pkg string) *rule {
	var best *rule
	for i := range rules {
		if r := &rules[i]; within(pkg, r.of) && (best == nil || len(r.of) > len(best.of)) {
			best = r
		}
	}
	return best
}

// pkg is a package as `go list -json` tells of it; tests are left out: they may
// use whatever shows that the package works.
type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", "./...")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages only", len(all))
	}
	return all
}

// offence is why a package may not import another, or "".
func offence(from, to string) string {
	r := ruleOf(from)
	if r == nil {
		return "no rule covers it: say in scripts/layers what it may import"
	}
	ours, isOurs := strings.CutPrefix(to, module)
	switch first, _, _ := strings.Cut(to, "/"); {
	case isOurs:
		for _, may := range r.may {
			if within(ours, may) {
				return ""
			}
		}
		return "it may import of ours: " + strings.Join(r.may, ", ")
	case r.bare && strings.Contains(first, "."):
		return "it may import the standard library only"
	}
	return ""
}

func TestImportsFollowTheDesign(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if ruleOf(from) == nil {
			t.Errorf("%s: no rule covers it: say in scripts/layers what it may import", from)
			continue
		}
		for _, to := range p.Imports {
			if why := offence(from, to); why != "" {
				t.Errorf("%s imports %s: %s", from, to, why)
			}
		}
	}
}

// The rules must refuse what the design forbids, or they are not the design's.
func TestTheRulesRefuseWhatTheDesignForbids(t *testing.T) {
	for _, x := range []struct {
		from, to string
		ok       bool
	}{
		{"proto/agent", "encoding/json", true}, {"proto/agent", "golang.org/x/sys/unix", false}, {"proto/agent", module + "conductor/state", false},
		{"conductor/state", "fmt", true}, {"conductor/state", module + "proto/event", false},
		{"conductor/bmc", module + "conductor/boot", false}, {"conductor/boot/dhcp", module + "conductor/store", false},
		{"conductor/images", module + "conductor/bmc", false}, {"conductor/handoff/kolla", module + "conductor/deploy", false},
		{"conductor/cli", module + "conductor/api", false}, {"conductor/ui", module + "conductor/store", false}, {"conductor/cli", module + "proto/ironic", true},
		{"agent/steps", module + "conductor/state", false}, {"conductor/deploy", module + "agent/steps", false},
		{"conductor/configdrive", module + "agent/image", true}, {"agent/image/source", module + "agent/host", false},
		{"conductor/deploy", module + "conductor/api", false}, {"conductor/clean", module + "conductor/serve", false},
		{"conductor/api", module + "conductor/flow", false}, {"conductor/serve", module + "testenv/lab", false},
		{"proto/ironic", "github.com/google/uuid", false}, {"attic", "fmt", false},
	} {
		if got := offence(x.from, x.to) == ""; got != x.ok {
			t.Errorf("%s → %s: allowed is %v, want %v (%s)", x.from, x.to, got, x.ok, offence(x.from, x.to))
		}
	}
}

// sources calls f with every source file of ours, by its path from the root.
func sources(t *testing.T, f func(name string, text []byte)) {
	t.Helper()
	code := []string{".go", ".sh", ".js", ".css", ".html", ".sql", ".py"}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != "." && (base == "testdata" || strings.HasPrefix(base, ".") || slices.Contains([]string{"bin", "build"}, name)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !slices.Contains(code, path.Ext(name)) {
			return nil
		}
		text, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a file that an editor or a test had for a moment
		}
		if err != nil {
			return err
		}
		f(filepath.ToSlash(name), text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

const maxLines = 500

// firstComment is the first comment of a source file, in any of its languages.
var firstComment = regexp.MustCompile(`(?s)\A(?:#![^\n]*\n)?\s*(/\*.*?\*/|<!--.*?-->|(?:(?://|#|--)[^\n]*\n)+)`)

func TestNoFileIsLongWithoutAReason(t *testing.T) {
	sources(t, func(name string, text []byte) {
		lines := strings.Count(string(text), "\n")
		if lines <= maxLines {
			return
		}
		if first := firstComment.FindSubmatch(text); first != nil && strings.Contains(string(first[1]), "500 lines") {
			return
		}
		t.Errorf("%s has %d lines: split it, or begin it with a comment that says why it is over 500 lines", name, lines)
	})
}

// selectors calls f with every use of a name of an imported package.
func selectors(t *testing.T, name string, text []byte, f func(pkg, sel string, line int)) {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, text, parser.SkipObjectResolution)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	imported := map[string]string{}
	for _, i := range file.Imports {
		p := strings.Trim(i.Path.Value, `"`)
		local := path.Base(p)
		if i.Name != nil {
			local = i.Name.Name
		}
		imported[local] = p
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && imported[x.Name] != "" {
				f(imported[x.Name], s.Sel.Name, fset.Position(s.Pos()).Line)
			}
		}
		return true
	})
}

// ours are the non-test Go files of agent, conductor and proto.
func ours(name string) bool {
	return path.Ext(name) == ".go" && !strings.HasSuffix(name, "_test.go") &&
		(within(name, "agent") || within(name, "conductor") || within(name, "proto"))
}

// errno and signal names are words, not calls.
var words = regexp.MustCompile(`^(E[A-Z0-9]+|SIG[A-Z0-9]+|Errno|Signal)$`)

func TestTheAgentsSystemCallsLiveInOnePackage(t *testing.T) {
	raw := []string{"syscall", "golang.org/x/sys/unix", "github.com/vishvananda/netlink"}
	sources(t, func(name string, text []byte) {
		if !ours(name) || !within(name, "agent") || within(name, "agent/host/linux") {
			return
		}
		selectors(t, name, text, func(pkg, sel string, line int) {
			if slices.Contains(raw, pkg) && !words.MatchString(sel) {
				t.Errorf("%s:%d uses %s.%s: system calls live in agent/host/linux alone", name, line, path.Base(pkg), sel)
			}
		})
	})
}

func TestOnlyMainReadsFlagsAndEnvironmentAndExits(t *testing.T) {
	forbidden := map[string]*regexp.Regexp{
		"os":   regexp.MustCompile(`^(Exit|Getenv|LookupEnv|Environ|Args)$`),
		"log":  regexp.MustCompile(`^(Fatal|Fatalf|Fatalln)$`),
		"flag": regexp.MustCompile(`.`),
	}
	sources(t, func(name string, text []byte) {
		if !ours(name) || name == "agent/main.go" || name == "conductor/main.go" {
			return
		}
		selectors(t, name, text, func(pkg, sel string, line int) {
			if re := forbidden[pkg]; re != nil && re.MatchString(sel) {
				t.Errorf("%s:%d uses %s.%s: only the two main.go read flags and the environment or exit", name, line, pkg, sel)
			}
		})
	})
}
