package cli

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/slipway-metal/slipway/proto/ironic"
)

// provision asks for a verb and, with w.Wait, follows the node to its end.
func provision(ctx context.Context, g *Globals, ident string, req ironic.ProvisionRequest, w Waiting, ends ...string) error {
	cl := g.client()
	what := req.Target + " node " + ident
	n, err := cl.node(ctx, ident)
	if err != nil {
		return explainError(what, g.URL, err)
	}
	return provisionNode(ctx, g, n, req, w, what, ends...)
}

func provisionNode(ctx context.Context, g *Globals, n *ironic.Node, req ironic.ProvisionRequest, w Waiting, what string, ends ...string) error {
	cl := g.client()
	follow := newFollower(g, cl, n.UUID)
	if w.Wait {
		ctx := follow.start(ctx) // before the verb, so that no event is missed
		defer follow.stop()
		if err := cl.do(ctx, http.MethodPut, "/v1/nodes/"+n.UUID+"/states/provision", req, nil); err != nil {
			return explainError(what, g.URL, err)
		}
		return follow.until(ctx, what, w.Timeout, ends...)
	}
	if err := cl.do(ctx, http.MethodPut, "/v1/nodes/"+n.UUID+"/states/provision", req, nil); err != nil {
		return explainError(what, g.URL, err)
	}
	fmt.Fprintf(g.Stderr, "accepted; follow it with: slipway node watch %s\n", n.UUID)
	return nil
}

// NodeManage is `slipway node manage`.
type NodeManage struct {
	Target
	Waiting
}

// Run manages.
func (c *NodeManage) Run(ctx context.Context, g *Globals) error {
	return provision(ctx, g, c.Node, ironic.ProvisionRequest{Target: "manage"}, c.Waiting, "manageable")
}

// NodeInspect is `slipway node inspect`.
type NodeInspect struct {
	Target
	Waiting
}

// Run inspects.
func (c *NodeInspect) Run(ctx context.Context, g *Globals) error {
	return provision(ctx, g, c.Node, ironic.ProvisionRequest{Target: "inspect"}, c.Waiting, "manageable")
}

// NodeProvide is `slipway node provide`.
type NodeProvide struct {
	Target
	Waiting
}

// Run provides.
func (c *NodeProvide) Run(ctx context.Context, g *Globals) error {
	return provision(ctx, g, c.Node, ironic.ProvisionRequest{Target: "provide"}, c.Waiting, "available")
}

// NodeClean is `slipway node clean`.
type NodeClean struct {
	Target
	Step []string `help:"Clean step as interface.step, in order; repeatable." required:"" placeholder:"deploy.erase_devices_metadata" sep:"none"`
	Waiting
}

// Run cleans.
func (c *NodeClean) Run(ctx context.Context, g *Globals) error {
	req := ironic.ProvisionRequest{Target: "clean"}
	for _, s := range c.Step {
		iface, step, ok := strings.Cut(s, ".")
		if !ok {
			return usage(fmt.Sprintf("%q is not interface.step", s), "for example: --step deploy.erase_devices_metadata")
		}
		req.CleanSteps = append(req.CleanSteps, map[string]any{"interface": iface, "step": step})
	}
	return provision(ctx, g, c.Node, req, c.Waiting, "manageable")
}

// NodeUndeploy is `slipway node undeploy`.
type NodeUndeploy struct {
	Target
	Yes bool `help:"Don't ask." short:"y"`
	Waiting
}

// Run undeploys.
func (c *NodeUndeploy) Run(ctx context.Context, g *Globals) error {
	if err := g.confirm(c.Yes, "Tear down the instance on "+c.Node+" and wipe its disks?"); err != nil {
		return err
	}
	return provision(ctx, g, c.Node, ironic.ProvisionRequest{Target: "deleted"}, c.Waiting, "available")
}

// NodeAbort is `slipway node abort`.
type NodeAbort struct{ Target }

// Run aborts.
func (c *NodeAbort) Run(ctx context.Context, g *Globals) error {
	return provision(ctx, g, c.Node, ironic.ProvisionRequest{Target: "abort"}, Waiting{})
}

// NodeRescue is `slipway node rescue`.
type NodeRescue struct {
	Target
	RescuePassword string `help:"Password of the rescue user; better by the environment." env:"SLIPWAY_RESCUE_PASSWORD" placeholder:"***"`
	Waiting
}

// Run rescues.
func (c *NodeRescue) Run(ctx context.Context, g *Globals) error {
	return provision(ctx, g, c.Node, ironic.ProvisionRequest{Target: "rescue", RescuePassword: c.RescuePassword}, c.Waiting, "rescue")
}

// NodeDeploy is `slipway node deploy`.
type NodeDeploy struct {
	Target
	Image    string `help:"URL of the disk image: raw, qcow2, or raw packed by gzip, xz or zstd; told apart by content." placeholder:"URL"`
	Digest   string `help:"Its sha256 or sha512, in hex." placeholder:"HEX"`
	Hostname string `help:"Host name of the instance; the node's name unless given." placeholder:"NAME"`
	SSHKey   string `help:"File with the public key that may log in." type:"existingfile" placeholder:"FILE"`
	UserData string `help:"cloud-init user data." type:"existingfile" placeholder:"FILE"`
	Network  string `help:"Network data (OpenStack network_data.json); DHCP unless given." type:"existingfile" placeholder:"FILE"`
	Yes      bool   `help:"Don't ask." short:"y"`
	Waiting
}

// Run deploys.
func (c *NodeDeploy) Run(ctx context.Context, g *Globals) error {
	what := "deploy node " + c.Node
	cl := g.client()
	n, err := cl.node(ctx, c.Node)
	if err != nil {
		return explainError(what, g.URL, err)
	}
	if err := g.confirm(c.Yes, "Write an image onto the root disk of "+c.Node+"? What is on it is lost; `slipway plan` shows it."); err != nil {
		return err
	}
	drive, err := c.configDrive(n)
	if err != nil {
		return err
	}
	var ops []ironic.PatchOp
	if c.Image != "" {
		ops = append(ops, ironic.PatchOp{Op: "add", Path: "/instance_info/image_source", Value: c.Image})
	}
	if c.Digest != "" {
		ops = append(ops, ironic.PatchOp{Op: "add", Path: "/instance_info/image_checksum", Value: c.Digest})
	}
	if c.Hostname != "" {
		ops = append(ops, ironic.PatchOp{Op: "add", Path: "/instance_info/display_name", Value: c.Hostname})
	}
	if len(ops) > 0 {
		if err := cl.do(ctx, http.MethodPatch, "/v1/nodes/"+n.UUID, ops, nil); err != nil {
			return explainError(what, g.URL, err)
		}
	}
	return provisionNode(ctx, g, n, ironic.ProvisionRequest{Target: "active", ConfigDrive: drive}, c.Waiting, what, "active")
}

func (c *NodeDeploy) configDrive(n *ironic.Node) (any, error) {
	host := c.Hostname
	if host == "" {
		host = n.Name
	}
	if host == "" {
		host = n.UUID
	}
	meta := map[string]any{"uuid": n.UUID, "name": host, "hostname": host}
	if c.SSHKey != "" {
		key, err := os.ReadFile(c.SSHKey)
		if err != nil {
			return nil, usage(err.Error(), "name a public key: --ssh-key ~/.ssh/id_ed25519.pub")
		}
		if strings.Contains(string(key), "PRIVATE KEY") {
			return nil, usage(c.SSHKey+" is a private key", "name the public one: "+c.SSHKey+".pub")
		}
		meta["public_keys"] = map[string]any{"default": strings.TrimSpace(string(key))}
	}
	drive := map[string]any{"meta_data": meta}
	for key, file := range map[string]string{"user_data": c.UserData, "network_data": c.Network} {
		if file == "" {
			continue
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, usage(err.Error(), "")
		}
		drive[key] = string(raw)
		if key == "network_data" {
			m, err := jsonObject(raw)
			if err != nil {
				return nil, usage(file+": "+err.Error(), "network data is a JSON object with links, networks and services")
			}
			drive[key] = m
		}
	}
	return drive, nil
}

// NodePower is `slipway node power`.
type NodePower struct {
	Target
	To  string `arg:"" help:"on, off, reboot, soft-off or soft-reboot." enum:"on,off,reboot,soft-off,soft-reboot"`
	Yes bool   `help:"Don't ask before switching off or restarting." short:"y"`
}

// Run switches.
func (c *NodePower) Run(ctx context.Context, g *Globals) error {
	if c.To != "on" {
		if err := g.confirm(c.Yes, "Power "+c.To+" "+c.Node+"?"); err != nil {
			return err
		}
	}
	target := map[string]string{"on": "power on", "off": "power off", "reboot": "rebooting", "soft-off": "soft power off", "soft-reboot": "soft rebooting"}[c.To]
	cl := g.client()
	n, err := cl.node(ctx, c.Node)
	if err == nil {
		err = cl.do(ctx, http.MethodPut, "/v1/nodes/"+n.UUID+"/states/power", ironic.PowerRequest{Target: target}, nil)
	}
	return explainError("power "+c.To+" node "+c.Node, g.URL, err)
}

// NodeMaintenance is `slipway node maintenance`.
type NodeMaintenance struct {
	Target
	Off    bool   `help:"Unset it."`
	Reason string `help:"Why." placeholder:"TEXT"`
}

// Run sets or unsets.
func (c *NodeMaintenance) Run(ctx context.Context, g *Globals) error {
	cl := g.client()
	n, err := cl.node(ctx, c.Node)
	if err == nil {
		path := "/v1/nodes/" + n.UUID + "/maintenance"
		if c.Off {
			err = cl.do(ctx, http.MethodDelete, path, nil, nil)
		} else {
			err = cl.do(ctx, http.MethodPut, path, map[string]string{"reason": c.Reason}, nil)
		}
	}
	return explainError("maintenance of node "+c.Node, g.URL, err)
}

// confirm asks before something is lost; without a terminal it wants --yes.
func (g *Globals) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !g.TTY {
		return usage("this needs a yes", "add --yes")
	}
	fmt.Fprintf(g.Stderr, "%s [y/N] ", question)
	var answer string
	if _, err := fmt.Fscanln(os.Stdin, &answer); err != nil && answer == "" {
		answer = "n"
	}
	if a := strings.ToLower(answer); a != "y" && a != "yes" {
		return &Error{What: "not confirmed: nothing was done", Code: ExitFailed}
	}
	return nil
}
