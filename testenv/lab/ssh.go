package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// guestAddress is what the lab's own OS images say on the console.
var guestAddress = regexp.MustCompile(`slipway-guest: address ([0-9.]+)`)

// layKey makes the lab's SSH key pair once.
func layKey(dir string) error {
	path := filepath.Join(dir, sshKeyFile)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "slipway-lab", "-f", path).CombinedOutput()
	if err != nil {
		return &Error{What: "make the lab's SSH key", Why: fmt.Sprintf("ssh-keygen: %v %s", err, out), Next: "install Debian's openssh-client", Err: err}
	}
	return nil
}

// SSHCommand returns the command line that logs in to the machine's deployed
// system with the lab's key, from inside the lab's network. Host keys are not
// kept: a lab's machine has new ones after every deploy.
func (h *Handle) SSHCommand(ctx context.Context, argv ...string) ([]string, error) {
	m, ok := h.lab.spec.Machine(h.name)
	if !ok {
		return nil, h.unknown()
	}
	address, err := h.Address(ctx)
	if err != nil {
		return nil, err
	}
	line := []string{"ssh", "-F", "/dev/null", "-i", filepath.Join(h.lab.dir, sshFolder, sshKeyFile),
		"-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10", m.SSH.User + "@" + address, "--"}
	return h.lab.Enter(ctx, append(line, argv...)...)
}

// Address is where the machine's deployed system answers: the lab file's word,
// else the console's, else what the network saw.
func (h *Handle) Address(ctx context.Context) (string, error) {
	if m, ok := h.lab.spec.Machine(h.name); ok && m.Address.IsValid() {
		return m.Address.String(), nil
	}
	st, err := h.Status(ctx)
	if err != nil {
		return "", err
	}
	if !st.On {
		return "", &Error{What: "find the address of " + h.name, Why: "the machine is off", Next: "slipway-lab power " + h.name + " on", Err: os.ErrNotExist}
	}
	said, err := h.consoleFrom(st.ConsoleStart)
	if err != nil {
		return "", err
	}
	if all := guestAddress.FindAllSubmatch(said, -1); all != nil {
		return string(all[len(all)-1][1]), nil
	}
	if st.Address != "" {
		return st.Address, nil
	}
	return "", &Error{What: "find the address of " + h.name, Why: "neither its console nor the network has told one yet",
		Next: "see how far it is: slipway-lab console " + h.name, Err: os.ErrNotExist}
}
