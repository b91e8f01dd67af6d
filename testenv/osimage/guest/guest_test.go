package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lay writes files under a new root.
func lay(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, parts ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

const passwd = "root:x:0:0:root:/root:/bin/bash\n"

// guestRoot is a system with a config drive's files in it, as the mount shows them.
func guestRoot(t *testing.T, meta, network string) string {
	t.Helper()
	files := map[string]string{"etc/passwd": passwd, "etc/systemd/network/80-dhcp.network": "", "drive/meta_data.json": meta}
	if network != "" {
		files["drive/network_data.json"] = network
	}
	return lay(t, files)
}

func TestConfigDriveSetsNameAndKeys(t *testing.T) {
	root := guestRoot(t, `{"uuid":"u1","hostname":"first-light.example.org","public_keys":{"b":"ssh-ed25519 BBBB b","a":"ssh-ed25519 AAAA a\n"}}`, "")
	if err := apply(root, filepath.Join(root, "drive")); err != nil {
		t.Fatal(err)
	}
	if got := read(t, root, "etc/hostname"); got != "first-light\n" {
		t.Errorf("hostname = %q", got)
	}
	if got, want := read(t, root, "root/.ssh/authorized_keys"), "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b\n"; got != want {
		t.Errorf("authorized_keys = %q, want %q", got, want)
	}
	info, err := os.Stat(filepath.Join(root, "root/.ssh/authorized_keys"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("sshd refuses keys that others can write: %v, %v", info.Mode(), err)
	}
}

func TestConfigDriveIsAppliedOnceAnInstance(t *testing.T) {
	root := guestRoot(t, `{"uuid":"u1","hostname":"one"}`, "")
	drive := filepath.Join(root, "drive")
	if err := apply(root, drive); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := apply(root, drive); err != nil {
		t.Fatal(err)
	}
	if got := read(t, root, "etc/hostname"); got != "mine\n" {
		t.Errorf("a reboot undid the owner's host name: %q", got)
	}
}

func TestNetworkData(t *testing.T) {
	for name, tc := range map[string]struct {
		network string
		want    []string
	}{
		"dhcp": {
			`{"links":[{"id":"l","ethernet_mac_address":"52:54:00:77:00:01"}],"networks":[{"type":"ipv4_dhcp","link":"l"}]}`,
			[]string{"MACAddress=52:54:00:77:00:01", "DHCP=ipv4", "ClientIdentifier=mac"},
		},
		"static": {
			`{"links":[{"id":"l","ethernet_mac_address":"52:54:00:77:00:01","mtu":1450}],
			  "networks":[{"type":"ipv4","link":"l","ip_address":"10.77.0.50","netmask":"255.255.255.0","gateway":"10.77.0.1",
			  "routes":[{"network":"10.9.0.0","netmask":"255.255.0.0","gateway":"10.77.0.2"}]}]}`,
			[]string{"MTUBytes=1450", "Address=10.77.0.50/24", "Gateway=10.77.0.1", "Destination=10.9.0.0/16"},
		},
		"static with a prefix length and Neutron's default route": {
			`{"links":[{"id":"l","ethernet_mac_address":"52:54:00:77:00:01"}],
			  "networks":[{"type":"ipv4","link":"l","ip_address":"10.77.0.50/25",
			  "routes":[{"network":"0.0.0.0","netmask":"0.0.0.0","gateway":"10.77.0.1"}]}]}`,
			[]string{"Address=10.77.0.50/25", "Destination=0.0.0.0/0"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := guestRoot(t, `{"uuid":"u"}`, tc.network)
			if err := apply(root, filepath.Join(root, "drive")); err != nil {
				t.Fatal(err)
			}
			got := read(t, root, "etc/systemd/network/10-config-drive-0.network")
			for _, want := range tc.want {
				if !strings.Contains(got, want+"\n") {
					t.Errorf("no %q in\n%s", want, got)
				}
			}
		})
	}
}

func TestBadConfigDriveIsSaid(t *testing.T) {
	for name, tc := range map[string]struct{ meta, network, want string }{
		"no JSON":           {`{`, "", "meta_data.json"},
		"netmask in pieces": {`{"uuid":"u"}`, `{"links":[{"id":"l","ethernet_mac_address":"52:54:00:77:00:01"}],"networks":[{"type":"ipv4","link":"l","ip_address":"10.0.0.1","netmask":"255.0.255.0"}]}`, "holes"},
	} {
		t.Run(name, func(t *testing.T) {
			root := guestRoot(t, tc.meta, tc.network)
			if err := apply(root, filepath.Join(root, "drive")); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestDriveIsFoundByItsLabel(t *testing.T) {
	iso := make([]byte, 40<<10)
	copy(iso[32768+40:], "config-2                        ")
	root := lay(t, map[string]string{
		"class/vda": "", "class/vda1": "", "class/vda4": "", "class/sr0": "",
		"dev/vda": strings.Repeat("x", 64<<10), "dev/vda1": "short", "dev/vda4": string(iso),
	})
	got, err := findDrive(filepath.Join(root, "class"), filepath.Join(root, "dev"))
	if err != nil || got != filepath.Join(root, "dev/vda4") {
		t.Errorf("found %q, %v", got, err)
	}
}

func TestHostKeyIsOneThatOpenSSHReads(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("skipped: no ssh-keygen here (Debian's openssh-client)")
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := makeHostKey(path); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(keygen, "-y", "-f", path).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	fields := strings.Fields(string(out))
	if want := strings.Fields(read(t, path+".pub")); len(fields) < 2 || fields[1] != want[1] {
		t.Errorf("ssh-keygen reads %q from the private half, the public half is %q", fields, want)
	}
	before := read(t, path)
	if err := makeHostKey(path); err != nil || read(t, path) != before {
		t.Errorf("a second boot changed the host key: %v", err)
	}
}
