package configdrive

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/google/go-cmp/cmp"
)

var full = Options{
	UUID: "16b28910-812f-470f-a6f7-e50c4858c395", Name: "node-7", Hostname: "node-7.rack",
	SSHKeys:     []string{"ssh-ed25519 AAAAC3 a@b", "ssh-rsa AAAAB3 c@d"},
	UserData:    []byte("#cloud-config\nhostname: x\n"),
	NetworkData: map[string]any{"links": []any{map[string]any{"id": "eth0", "type": "phy"}}},
	VendorData:  map[string]any{"a": "b"},
}

func build(t *testing.T, o Options) []byte {
	t.Helper()
	iso, err := Build(o)
	if err != nil {
		t.Fatal(err)
	}
	return iso
}

// extract unpacks a volume by xorriso, which nobody here wrote.
func extract(t *testing.T, iso []byte, args ...string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	img, out := filepath.Join(dir, "iso"), filepath.Join(dir, "out")
	if err := os.WriteFile(img, iso, 0o600); err != nil {
		t.Fatal(err)
	}
	argv := append(append([]string{"-abort_on", "WARNING", "-osirrox", "on"}, args...), "-indev", img, "-extract", "/", out)
	if log, err := exec.Command("xorriso", argv...).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v\n%s", err, log)
	}
	files := map[string]string{}
	err := filepath.WalkDir(out, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(out, p)
		files[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// xorriso finds the same files by Rock Ridge, by Joliet and by neither.
func TestVolumeIsReadable(t *testing.T) {
	iso := build(t, full)
	files := extract(t, iso)
	if len(files) != 8 {
		t.Errorf("%d files, want four in each of two directories", len(files))
	}
	var meta map[string]any
	if err := json.Unmarshal([]byte(files["openstack/latest/meta_data.json"]), &meta); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"uuid": full.UUID, "name": "node-7", "hostname": "node-7.rack",
		"public_keys": map[string]any{"key-0": full.SSHKeys[0], "key-1": full.SSHKeys[1]}}
	if diff := cmp.Diff(want, meta); diff != "" {
		t.Errorf("meta_data.json (-want +got):\n%s", diff)
	}
	if got := files["openstack/latest/user_data"]; got != string(full.UserData) {
		t.Errorf("user_data %q", got)
	}
	if diff := cmp.Diff(files, extract(t, iso, "-read_fs", "nojoliet")); diff != "" {
		t.Errorf("Rock Ridge alone (-both +rockridge):\n%s", diff)
	}
	if diff := cmp.Diff(files, extract(t, iso, "-read_fs", "norock")); diff != "" {
		t.Errorf("Joliet alone (-both +joliet):\n%s", diff)
	}
	plain := extract(t, iso, "-read_fs", "ecma119")
	if plain["OPENSTACK/LATEST/USER_DATA"] != string(full.UserData) && plain["openstack/latest/user_data"] != string(full.UserData) {
		t.Errorf("plain ISO 9660 shows %v", plain)
	}
}

// A second reader that nobody here wrote agrees, on the label as well.
func TestVolumeByGoDiskfs(t *testing.T) {
	iso := build(t, full)
	p := filepath.Join(t.TempDir(), "iso")
	if err := os.WriteFile(p, iso, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := file.OpenFromPath(p, true)
	if err != nil {
		t.Fatal(err)
	}
	v, err := iso9660.Read(b, int64(len(iso)), 0, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimRight(v.Label(), " \x00"); got != Label {
		t.Errorf("label %q, want %q", got, Label)
	}
	got, err := fs.ReadFile(v, "openstack/latest/user_data")
	if err != nil || !bytes.Equal(got, full.UserData) {
		t.Errorf("user_data %q, %v", got, err)
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	a, b := build(t, full), build(t, full)
	if !bytes.Equal(a, b) {
		t.Error("two builds of the same options differ")
	}
	x, err := Encode(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := Encode(b)
	if err != nil || x != y {
		t.Errorf("two encodings differ (%v)", err)
	}
	if len(a) > 80<<10 {
		t.Errorf("a small drive has %d bytes", len(a))
	}
}

// A drive that the real Ironic built is decoded, and the same request gives
// the same files here.
func TestSameFilesAsIronic(t *testing.T) {
	recorded, err := os.ReadFile("testdata/ironic-39.b64")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := Normalize(string(recorded), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ours, err := Normalize(map[string]any{"meta_data": map[string]any{"hello": "x"}, "user_data": "#cloud-config\n"},
		Options{UUID: "16b28910-812f-470f-a6f7-e50c4858c395"})
	if err != nil {
		t.Fatal(err)
	}
	want, got := extract(t, theirs.ISO), extract(t, ours.ISO)
	for _, m := range []map[string]string{want, got} { // JSON's spaces do not matter
		for k, v := range m {
			m[k] = strings.ReplaceAll(v, " ", "")
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-Ironic +Slipway):\n%s", diff)
	}
}

func TestNormalizeForms(t *testing.T) {
	iso := build(t, full)
	encoded, err := Encode(iso)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		in   any
		want Drive
	}{
		{"base64 of gzip", encoded, Drive{ISO: iso}},
		{"base64 in lines", encoded[:70] + "\n" + encoded[70:] + "\n", Drive{ISO: iso}},
		{"URL", "https://files/drive?token=x", Drive{URL: "https://files/drive?token=x"}},
		{"nothing", nil, Drive{ISO: iso}},
		{"empty text", "", Drive{ISO: iso}},
		{"empty object", map[string]any{}, Drive{ISO: iso}},
		{"nulls", map[string]any{"meta_data": nil, "user_data": nil}, Drive{ISO: iso}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Normalize(c.in, full)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.ISO, c.want.ISO) || got.URL != c.want.URL {
				t.Errorf("got %d bytes, URL %q", len(got.ISO), got.URL)
			}
			text, err := got.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if c.want.URL == "" && text != encoded {
				t.Error("encoded differently")
			}
		})
	}
}

// What is refused is named, and no secret is quoted.
func TestBadDrives(t *testing.T) {
	const secret = "hunter2"
	notISO, err := Encode([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		in   any
		o    Options
		want string
	}{
		{"number", 7, full, "want an object, a URL, or base64"},
		{"not base64", "{" + secret + "}", full, "not base64"},
		{"not gzip", "aHVudGVyMg==", full, "not gzip"},
		{"not a volume", notISO, full, "neither an ISO 9660"},
		{"file URL", "file:///etc/" + secret, full, "not http or https"},
		{"unknown field", map[string]any{"metadata": secret}, full, `unknown field "metadata"`},
		{"meta_data as text", map[string]any{"meta_data": secret}, full, "meta_data is a string"},
		{"user_data as number", map[string]any{"user_data": 3.5}, full, "user_data is a float64"},
		{"no uuid", map[string]any{"user_data": secret}, Options{}, "no uuid"},
		{"key with a line break", nil, Options{UUID: "u", SSHKeys: []string{"a\n" + secret}}, "line break"},
		{"not JSON", map[string]any{"meta_data": map[string]any{"f": func() {}}}, full, "cannot express"},
		{"huge", nil, Options{UUID: "u", UserData: make([]byte, 64<<20)}, "at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Normalize(c.in, c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error quotes a secret: %v", err)
			}
		})
	}
}
