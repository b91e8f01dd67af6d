// Package deploy carries a node from available to active: ramdisk up, image
// written, config drive, boot entry, and the machine restarted from its disk.
// It also tears an instance down again.
package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/conductor/bmc"
	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/agent"
	"github.com/slipway-metal/slipway/proto/event"
)

// payload is the flow's record.
type payload struct {
	Ramdisk flow.Ramdisk   `json:"ramdisk"`
	Plan    []flow.Planned `json:"plan,omitempty"`
	// Disk is the root disk, resolved once; orders name nothing else.
	Disk  agent.DiskIdentity `json:"disk"`
	Begun time.Time          `json:"begun,omitzero"`
	// Finish is the flow's place after the last step.
	Finish flow.Finish `json:"finish"`
}

// Commands of the agent.
const (
	execute    = "deploy.execute_deploy_step"
	bootloader = "image.install_bootloader"
)

// Handler deploys.
func Handler(d *flow.Deps) work.Handler {
	return func(ctx context.Context, j *work.Job) work.Result {
		if flow.Fake(j.Node) {
			return work.Done{}
		}
		var p payload
		if err := flow.Load(j, &p); err != nil {
			return work.Fail{Cause: err, Next: "retry the verb"}
		}
		if p.Begun.IsZero() {
			if _, err := ImageInfo(j.Node); err != nil {
				return work.Fail{Cause: err, Next: "set what it names with `slipway node set`, then deploy again"}
			}
			p.Begun = d.Now()
		}
		if p.Finish.Begun() {
			return finish(ctx, d, j, &p)
		}
		if res := d.Ensure(ctx, j, &p.Ramdisk, &p); res != nil {
			return res
		}
		if p.Plan == nil {
			if err := plan(j.Node, &p); err != nil {
				return work.Fail{Cause: err, Next: "`slipway plan " + j.Node.UUID + "` shows the disks; correct properties/root_device or inspect the node again"}
			}
			if err := j.Save(ctx, &p); err != nil {
				return work.Retry{After: time.Second, Cause: err}
			}
		}
		params := func(s *flow.Planned) (any, error) { return stepParams(ctx, d, j.Node, s) }
		if res := d.Run(ctx, j, p.Plan, params, &p); res != nil {
			return res
		}
		return finish(ctx, d, j, &p)
	}
}

// plan resolves the root disk and lays the steps out.
func plan(n *store.Node, p *payload) error {
	inv, err := n.Hardware()
	if err != nil {
		return err
	}
	hints, err := n.RootHints()
	if err != nil {
		return err
	}
	disk, err := agent.PickRootDisk(inv.Disks, hints)
	if err != nil {
		return fmt.Errorf("node %s: root device: %w", n.UUID, err)
	}
	p.Disk = disk.Identity()
	p.Plan = []flow.Planned{
		flow.NewStep(execute, agent.Step{Step: "write_image", Interface: "deploy", Priority: 80}, p.Disk),
		flow.NewStep(bootloader, agent.Step{Step: "install_bootloader", Interface: "deploy", Priority: 60}),
	}
	return nil
}

// ImageInfo reads and checks what instance_info says of the image.
func ImageInfo(n *store.Node) (agent.ImageInfo, error) {
	get := func(k string) string { s, _ := n.InstanceInfo[k].(string); return s }
	src := get("image_source")
	if src == "" {
		return agent.ImageInfo{}, fmt.Errorf("instance_info/image_source is missing: nothing to deploy")
	}
	u, err := url.Parse(src)
	if err != nil {
		return agent.ImageInfo{}, fmt.Errorf("instance_info/image_source is no URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return agent.ImageInfo{}, fmt.Errorf("instance_info/image_source has scheme %q; the agent reads http and https only (file: would be a file of the conductor)", u.Scheme)
	}
	info := agent.ImageInfo{ID: src, URLs: []string{src}, DiskFormat: get("image_disk_format"), StreamRaw: true, NodeUUID: n.UUID}
	info.OSHashAlgo, info.OSHashValue = strings.ToLower(get("image_os_hash_algo")), strings.ToLower(get("image_os_hash_value"))
	if info.OSHashValue == "" {
		sum := strings.ToLower(strings.TrimSpace(get("image_checksum")))
		switch {
		case strings.Contains(sum, "://"):
			return info, fmt.Errorf("instance_info/image_checksum is a URL; give the digest itself, as what a URL shows can change with the image")
		case len(sum) == 64:
			info.OSHashAlgo = "sha256"
		case len(sum) == 128:
			info.OSHashAlgo = "sha512"
		case sum == "":
			return info, fmt.Errorf("the image's digest is missing: set instance_info/image_checksum (sha256 or sha512 hex), or image_os_hash_algo and image_os_hash_value")
		case len(sum) == 32:
			return info, fmt.Errorf("instance_info/image_checksum is an MD5, which protects nothing; give a sha256 or sha512")
		default:
			return info, fmt.Errorf("instance_info/image_checksum is neither a sha256 (64 hex digits) nor a sha512 (128)")
		}
		info.OSHashValue = sum
	}
	want := map[string]int{"sha256": 64, "sha512": 128}[info.OSHashAlgo]
	if want == 0 {
		return info, fmt.Errorf("instance_info/image_os_hash_algo is %q; sha256 and sha512 are taken", info.OSHashAlgo)
	}
	if len(info.OSHashValue) != want || strings.Trim(info.OSHashValue, "0123456789abcdef") != "" {
		return info, fmt.Errorf("the image's %s must be %d hex digits", info.OSHashAlgo, want)
	}
	info.Checksum = info.OSHashValue
	return info, nil
}

func stepParams(ctx context.Context, d *flow.Deps, n *store.Node, s *flow.Planned) (any, error) {
	if s.Command == bootloader {
		mode := n.BootMode
		if mode == "" {
			inv, err := n.Hardware()
			if err != nil {
				return nil, err
			}
			mode = inv.Boot.CurrentBootMode
		}
		params := map[string]any{
			"root_uuid": nil, "efi_system_part_uuid": nil, "prep_boot_part_uuid": nil,
			"target_boot_mode": mode,
		}
		if id := flow.CommandID(n, s); id != "" {
			params["slipway_command_id"] = id
		}
		return params, nil
	}
	var args map[string]any
	if s.Step.Step == "write_image" {
		info, err := ImageInfo(n)
		if err != nil {
			return nil, err
		}
		if info.RootDevice, err = n.RootHints(); err != nil {
			return nil, err
		}
		drive, err := configDrive(n)
		if err != nil {
			return nil, fmt.Errorf("config drive: %w", err)
		}
		args = map[string]any{"image_info": info, "configdrive": drive}
	}
	return d.StepParams(ctx, n, s, args)
}

// finish restarts the machine from its disk and keeps the facts.
func finish(ctx context.Context, d *flow.Deps, j *work.Job, p *payload) work.Result {
	if res := d.BootDisk(ctx, j, &p.Finish, p); res != nil {
		return res
	}
	facts := factsOf(d, p)
	d.Record(ctx, j.Node.UUID, event.Evidence{Hop: event.HopDisk, Fact: "machine started from its disk", OK: true})
	return work.Done{Set: func(n *store.Node) error {
		n.PowerState = string(bmc.PowerOn)
		n.DeployStep = map[string]any{}
		n.DriverInternalInfo[store.KeyDeploy] = facts
		return flow.ForgetAgent(n)
	}}
}

func factsOf(d *flow.Deps, p *payload) map[string]any {
	steps := make([]map[string]any, 0, len(p.Plan))
	facts := map[string]any{
		"disk": map[string]any{"wwn": p.Disk.WWN, "serial": p.Disk.Serial, "size": p.Disk.Size, "path": p.Disk.Path},
	}
	for _, s := range p.Plan {
		steps = append(steps, map[string]any{"step": s.Step.Step, "seconds": s.Ended.Sub(s.Started).Seconds()})
		if s.Step.Step == "write_image" && len(s.Result) > 0 {
			var result agent.StepDone
			if json.Unmarshal(s.Result, &result) == nil {
				facts["image"] = result.DeployResult
			}
		}
	}
	facts["steps"] = steps
	facts["seconds"] = d.Now().Sub(p.Begun).Seconds()
	facts["finished_at"] = d.Now().UTC().Format(time.RFC3339)
	return facts
}
