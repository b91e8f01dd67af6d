package modules_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/kmodule"
	"github.com/ulikunitz/xz"

	"github.com/slipway-metal/slipway/initramfs/internal/kotest"
	"github.com/slipway-metal/slipway/initramfs/modules"
)

// tree writes modules below dir/kernel and lists them.
func tree(t *testing.T, files map[string][]byte) (map[string]modules.Module, string) {
	t.Helper()
	dir := t.TempDir()
	for path, data := range files {
		file := filepath.Join(dir, "kernel", path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all, err := modules.Tree(dir)
	if err != nil {
		t.Fatal(err)
	}
	return all, dir
}

func virtio(t *testing.T) (map[string]modules.Module, map[string]bool) {
	t.Helper()
	all, _ := tree(t, map[string][]byte{
		"drivers/net/virtio_net.ko":         kotest.Module("alias=virtio:d00000001v*", "depends=virtio,net_failover"),
		"drivers/net/net_failover.ko":       kotest.Module("depends=failover"),
		"net/core/failover.ko":              kotest.Module("depends="),
		"drivers/virtio/virtio.ko":          kotest.Module("depends=virtio-ring"),
		"drivers/virtio/virtio_ring.ko":     kotest.Module("depends="),
		"drivers/char/virtio-rng.ko":        kotest.Module("alias=virtio:d00000004v*", "depends=virtio"),
		"drivers/net/ethernet/a/r8169.ko":   kotest.Module("softdep=pre: realtek post: nowhere", "firmware=rtl_nic/rtl8168h-2.fw", "depends=mii"),
		"drivers/net/ethernet/a/mii.ko":     kotest.Module("depends="),
		"drivers/net/ethernet/a/old.ko":     kotest.Module("depends="),
		"drivers/net/ethernet/b/c/older.ko": kotest.Module("depends="),
		"drivers/net/phy/realtek.ko":        kotest.Module("depends=builtin_lib"),
	})
	return all, map[string]bool{"nvme": true, "builtin_lib": true}
}

func names(s *modules.Selection) string {
	var list []string
	for _, m := range s.Modules {
		list = append(list, m.Name)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func TestASelectionIsClosedOverDependencies(t *testing.T) {
	all, builtin := virtio(t)
	for _, c := range []struct {
		name, patterns, want, builtIn string
	}{
		{"dependencies come along, spelled either way", "virtio-net", "failover net_failover virtio virtio_net virtio_ring", ""},
		{"a built-in one needs no module", "nvme virtio_rng", "virtio virtio_ring virtio_rng", "nvme"},
		{"an optional one may be absent", "?mpi3mr virtio_ring", "virtio_ring", ""},
		{"soft dependencies come along where they exist", "r8169", "mii r8169 realtek", ""},
		{"a directory, without some", "drivers/net/ethernet/ !old !drivers/net/ethernet/b/", "mii r8169 realtek", ""},
		{"what another one needs stays", "r8169 !mii", "mii r8169 realtek", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			sel, err := modules.Select(all, builtin, strings.Fields(c.patterns))
			if err != nil {
				t.Fatal(err)
			}
			if got := names(sel); got != c.want {
				t.Errorf("modules: %s\nwant:    %s", got, c.want)
			}
			if got := strings.Join(sel.BuiltIn, " "); got != c.builtIn {
				t.Errorf("built in: %q, want %q", got, c.builtIn)
			}
		})
	}
}

func TestAListThatDoesNotFitTheKernelIsRefused(t *testing.T) {
	all, builtin := virtio(t)
	for _, c := range []struct{ pattern, want string }{
		{"virtio_nett", "virtio_nett"},
		{"drivers/nothing/", "drivers/nothing/"},
	} {
		if _, err := modules.Select(all, builtin, []string{c.pattern}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Select(%q) = %v, want an error naming %s", c.pattern, err, c.want)
		}
	}
}

func TestAMissingDependencyIsNamed(t *testing.T) {
	all, _ := tree(t, map[string][]byte{"a.ko": kotest.Module("depends=gone")})
	if _, err := modules.Select(all, nil, []string{"a"}); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("error %v does not name the missing module", err)
	}
}

// u-root's prober is what loads in the ramdisk; what it loads, in which order,
// is what the index is for.
func TestTheIndexLoadsDependenciesFirst(t *testing.T) {
	all, builtin := virtio(t)
	sel, err := modules.Select(all, builtin, []string{"virtio_net", "r8169"})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules/6.1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), sel.DepFile(), 0o644); err != nil {
		t.Fatal(err)
	}
	loads := make(chan string, len(sel.Modules)) // the prober calls back from several goroutines
	prober, err := kmodule.NewProber(kmodule.ProbeOpts{RootDir: root, KVer: "6.1", IgnoreProcMods: true, DryRunCB: func(path string) {
		loads <- strings.TrimSuffix(filepath.Base(path), ".ko")
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := prober.Probe("virtio_net", ""); err != nil {
		t.Fatal(err)
	}
	close(loads)
	var order []string
	for name := range loads {
		order = append(order, name)
	}
	for _, pair := range [][2]string{{"virtio_ring", "virtio"}, {"virtio", "virtio_net"}, {"failover", "net_failover"}, {"net_failover", "virtio_net"}} {
		if i, j := slices.Index(order, pair[0]), slices.Index(order, pair[1]); i < 0 || j < i {
			t.Errorf("loaded %v: %s must come before %s", order, pair[0], pair[1])
		}
	}
}

func TestIndexFilesListOnlyWhatIsIn(t *testing.T) {
	all, builtin := virtio(t)
	sel, err := modules.Select(all, builtin, []string{"r8169", "virtio_rng"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("alias virtio:d00000004v* virtio_rng\n", string(sel.AliasFile())); diff != "" {
		t.Errorf("modules.alias (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("softdep r8169 pre: realtek\nsoftdep ipmi_si post: ipmi_devintf\n", string(sel.SoftdepFile([]string{"ipmi_si post: ipmi_devintf"}))); diff != "" {
		t.Errorf("modules.softdep (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"rtl_nic/rtl8168h-2.fw"}, sel.Firmware()); diff != "" {
		t.Errorf("firmware (-want +got):\n%s", diff)
	}
}

// Debian 12's modules are plain, 13's are .ko.xz, and others' are .ko.zst.
func TestModulesAreStoredUncompressed(t *testing.T) {
	plain := kotest.Module("alias=pci:v1*", "depends=")
	var xzBuf, zstBuf strings.Builder
	xw, err := xz.NewWriter(&xzBuf)
	if err != nil {
		t.Fatal(err)
	}
	zw, err := zstd.NewWriter(&zstBuf)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{xw, zw} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	all, _ := tree(t, map[string][]byte{"a.ko": plain, "b.ko.xz": []byte(xzBuf.String()), "c.ko.zst": []byte(zstBuf.String())})
	sel, err := modules.Select(all, nil, []string{"a", "b", "c"})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range sel.Modules {
		if filepath.Ext(m.Path) != ".ko" || string(m.Image) != string(plain) {
			t.Errorf("module %s is stored as %s, %d bytes; want .ko, %d bytes", m.Name, m.Path, len(m.Image), len(plain))
		}
	}
}

func TestBuiltInModulesAreRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/drivers/nvme/host/nvme-core.ko\nkernel/fs/ext4/ext4.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := modules.Builtin(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]bool{"nvme_core": true, "ext4": true}, got); diff != "" {
		t.Errorf("built in (-want +got):\n%s", diff)
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add(kotest.Module("alias=pci:v00008086d*", "depends=a,b", "softdep=pre: c post: d"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, image []byte) {
		info, err := modules.ParseInfo(image)
		if err != nil {
			return
		}
		for _, name := range slices.Concat(info.Depends, info.SoftPre, info.SoftPost) {
			if name == "" || strings.Contains(name, "-") {
				t.Errorf("module name %q is not the kernel's spelling", name)
			}
		}
	})
}
