package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
)

func (s *server) getStates(w http.ResponseWriter, r *http.Request) {
	n, err := s.node(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	write(s, w, r, http.StatusOK, nodes, n, func(f *nodeField) bool { return slices.Contains(stateFields, f.name) })
}

// verbSince are the microversions that brought the targets of states/provision
// (proto/testdata/states.json; unhold, service and the abort of inspections and
// deployments by microversions.json).
var verbSince = map[string]minor{
	"manage": 4, "provide": 4, "inspect": 6, "abort": 13, "clean": 15, "adopt": 17, "rescue": 38, "unrescue": 38,
	"deploy": 73, "undeploy": 73, "unhold": 85, "service": 87,
}

// provision is the body of PUT states/provision.
type provision struct {
	Target         *string         `json:"target"`
	ConfigDrive    any             `json:"configdrive"`
	CleanSteps     []provisionStep `json:"clean_steps"`
	DeploySteps    []provisionStep `json:"deploy_steps"`
	ServiceSteps   []provisionStep `json:"service_steps"`
	RescuePassword *string         `json:"rescue_password"`
	DisableRamdisk *bool           `json:"disable_ramdisk"`
	Runbook        *string         `json:"runbook"`
}

// provisionStep is one step that the caller chose.
type provisionStep struct {
	Interface string         `json:"interface"`
	Step      string         `json:"step"`
	Args      map[string]any `json:"args,omitempty"`
	Priority  *int           `json:"priority,omitempty"`
	Order     *int           `json:"order,omitempty"`
}

// StartPayload is the payload of the work that a provision verb queues. The
// flows read what concerns them.
type StartPayload struct {
	Verb           state.Verb      `json:"verb"`
	CleanSteps     []provisionStep `json:"clean_steps,omitempty"`
	DeploySteps    []provisionStep `json:"deploy_steps,omitempty"`
	ServiceSteps   []provisionStep `json:"service_steps,omitempty"`
	DisableRamdisk bool            `json:"disable_ramdisk,omitempty"`
}

func (s *server) putProvision(w http.ResponseWriter, r *http.Request) {
	var body provision
	err := readJSON(r, &body)
	if err == nil && body.Target == nil {
		err = bad("Missing mandatory parameter: target")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n, err := s.node(r)
	if err == nil {
		err = s.provision(r, n, &body)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.accepted(w, r, n)
}

// accepted is the 202 of a change of state.
func (s *server) accepted(w http.ResponseWriter, r *http.Request, n *store.Node) {
	w.Header().Set("Location", s.view(r).base+"/v1/nodes/"+n.UUID+"/states")
	w.WriteHeader(http.StatusAccepted)
}

// refusedAction is Ironic's wording of a target it does not take.
func refusedAction(n *store.Node, target, in string) *fault {
	return bad("The requested action \"%s\" can not be performed on node \"%s\" while it is in state \"%s\".", clip(target), n.UUID, in)
}

// provision advances the node by the verb. A racing change of the same node is
// decided anew, a few times.
func (s *server) provision(r *http.Request, n *store.Node, body *provision) error {
	m, target := minorOf(r), *body.Target
	verb, ok := state.Parse(target)
	if !ok {
		return refusedAction(n, target, string(n.ProvisionState))
	}
	if m < verbSince[target] {
		return notAcceptable()
	}
	if err := body.check(m, verb); err != nil {
		return err
	}
	for try := 0; ; try++ {
		err := s.advance(r, n, verb, body)
		if !errors.Is(err, store.ErrStale) || try == 3 {
			return err
		}
		if n, err = s.node(r); err != nil {
			return err
		}
	}
}

func (s *server) advance(r *http.Request, n *store.Node, verb state.Verb, body *provision) error {
	edge, err := state.Next(n.ProvisionState, verb)
	if err != nil {
		return verbRefused(n, *body.Target, err)
	}
	if err := s.mayProvision(r, n, verb); err != nil {
		return err
	}
	payload, err := json.Marshal(StartPayload{
		Verb: verb, CleanSteps: body.CleanSteps, DeploySteps: body.DeploySteps, ServiceSteps: body.ServiceSteps,
		DisableRamdisk: body.DisableRamdisk != nil && *body.DisableRamdisk,
	})
	if err != nil {
		return fmt.Errorf("node %s: payload of %s: %w", n.UUID, verb, err)
	}
	t := store.Transition{
		Node: n.UUID, From: n.ProvisionState, Verbs: []state.Verb{verb},
		Set: func(n *store.Node) error { body.set(n, verb); return nil },
		Who: s.user(r), Why: "requested: " + string(verb),
	}
	if edge.Work != "" {
		t.Payload = payload
	}
	if verb == state.VerbClean { // a manual clean returns to manageable
		manageable := state.Manageable
		t.Target = &manageable
	}
	_, err = s.store.Advance(r.Context(), t)
	return verbRefused(n, *body.Target, err)
}

// verbRefused words a verb that the state does not take: 409 and what it would
// take (the recorded server answers 400 and nothing).
func verbRefused(n *store.Node, target string, err error) error {
	var no *state.NotAcceptedError
	if !errors.As(err, &no) {
		return err
	}
	would := "none until the conductor has finished"
	if len(no.Accepted) > 0 {
		names := make([]string, len(no.Accepted))
		for i, v := range no.Accepted {
			names[i] = string(v)
		}
		would = strings.Join(names, ", ")
	}
	return client(http.StatusConflict, "%s Accepted now: %s.", refusedAction(n, target, string(no.From)).text, would)
}

// mayProvision holds Ironic's rules beside the table.
func (s *server) mayProvision(r *http.Request, n *store.Node, verb state.Verb) error {
	deploys := verb == state.VerbDeploy || verb == state.VerbRebuild
	switch {
	case n.Protected && (verb == state.VerbDelete || verb == state.VerbRebuild):
		return client(http.StatusForbidden, "Node %s is protected and can not be undeployed, rebuilt or deleted", n.UUID)
	case n.Maintenance && deploys:
		return bad("The %s operation can't be performed on node %s because it's in maintenance mode.", verb, n.UUID)
	case n.Retired && verb == state.VerbProvide:
		return bad("The provide operation can't be performed on node %s because it is retired.", n.UUID)
	case verb == state.VerbAbort && n.ProvisionState == state.InspectWait && minorOf(r) < 41:
		return notAcceptable()
	case verb == state.VerbAbort && n.ProvisionState == state.WaitCallback && minorOf(r) < 110:
		return notAcceptable()
	}
	if deploys {
		if err := s.deployable(n); err != nil {
			return bad("Failed to validate deploy or power info for node %s. Error: %s", n.UUID, err)
		}
	}
	return nil
}

// check validates the arguments against verb and microversion.
func (b *provision) check(m minor, verb state.Verb) error {
	if b.Runbook != nil {
		return bad("Runbook %s could not be found.", clip(*b.Runbook))
	}
	deploys := verb == state.VerbDeploy || verb == state.VerbRebuild
	for _, a := range []struct {
		name  string
		given bool
		since minor
		fits  bool
	}{
		{"clean_steps", b.CleanSteps != nil, 15, verb == state.VerbClean},
		{"deploy_steps", b.DeploySteps != nil, 69, deploys},
		{"service_steps", b.ServiceSteps != nil, 87, verb == state.VerbService},
		{"rescue_password", b.RescuePassword != nil, 38, verb == state.VerbRescue},
		{"disable_ramdisk", b.DisableRamdisk != nil, 70, verb == state.VerbClean || verb == state.VerbService && m >= 108},
		{"configdrive", b.ConfigDrive != nil, 1, deploys},
	} {
		if !a.given {
			continue
		}
		if m < a.since {
			return notAcceptable()
		}
		if !a.fits {
			return bad("\"%s\" is only valid when setting target provision state to a verb that uses it, not to %s", a.name, *b.Target)
		}
	}
	switch {
	case verb == state.VerbClean && b.CleanSteps == nil:
		return bad("A \"clean_steps\" or \"runbook\" is required when setting target provision state to clean")
	case verb == state.VerbService && b.ServiceSteps == nil:
		return bad("A \"service_steps\" or \"runbook\" is required when setting target provision state to service")
	case verb == state.VerbRescue && (b.RescuePassword == nil || strings.TrimSpace(*b.RescuePassword) == ""):
		return bad("A non-empty \"rescue_password\" is required when setting target provision state to rescue")
	case verb == state.VerbRebuild && b.ConfigDrive != nil && m < 35:
		return notAcceptable()
	}
	for kind, steps := range map[string][]provisionStep{"clean_steps": b.CleanSteps, "deploy_steps": b.DeploySteps, "service_steps": b.ServiceSteps} {
		if err := checkSteps(kind, steps); err != nil {
			return err
		}
	}
	return checkConfigDrive(m, b.ConfigDrive)
}

// maxSteps bounds a caller's list.
const maxSteps = 500

func checkSteps(kind string, steps []provisionStep) error {
	if len(steps) > maxSteps {
		return bad("Schema error for %s: more than %d steps", kind, maxSteps)
	}
	for _, st := range steps {
		switch {
		case st.Step == "":
			return bad("Schema error for %s: 'step' is a required property", kind)
		case !isInterface(st.Interface):
			return bad("Schema error for %s: interface '%s' of step '%s' is not one of Ironic's interfaces", kind, clip(st.Interface), clip(st.Step))
		}
	}
	return nil
}

// checkConfigDrive takes base64 (of a gzipped ISO), an http or https URL, or
// (since 1.56) the parts of one.
func checkConfigDrive(m minor, drive any) error {
	switch d := drive.(type) {
	case nil:
		return nil
	case string:
		if u, err := url.Parse(d); err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
			return nil
		}
		if _, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(d), "")); err != nil || d == "" {
			return bad("The configdrive is neither base64 nor an http(s) URL")
		}
		return nil
	case map[string]any:
		if m < 56 {
			return notAcceptable()
		}
		for k, v := range d {
			switch k {
			case "meta_data", "network_data", "vendor_data":
				if _, ok := v.(map[string]any); v != nil && !ok {
					return bad("Schema error for configdrive: %s is not of type 'object'", k)
				}
			case "user_data":
			default:
				return bad("Schema error for configdrive: Additional properties are not allowed ('%s' was unexpected)", clip(k))
			}
		}
		if d["vendor_data"] != nil && m < 59 {
			return notAcceptable()
		}
		return nil
	}
	return bad("Schema error for configdrive: %s is not of type 'string', 'object'", brief(drive))
}

// set changes the node's other fields by the verb.
func (b *provision) set(n *store.Node, verb state.Verb) {
	if n.InstanceInfo == nil {
		n.InstanceInfo = map[string]any{}
	}
	switch verb {
	case state.VerbDeploy:
		delete(n.InstanceInfo, "configdrive")
		fallthrough
	case state.VerbRebuild:
		if b.ConfigDrive != nil {
			n.InstanceInfo["configdrive"] = b.ConfigDrive
		}
	case state.VerbAbort:
		// Its agent may be in the middle of a write: the flows switch it off.
		info := map[string]any{store.KeyHalt: true}
		for k, v := range n.DriverInternalInfo {
			info[k] = v
		}
		n.DriverInternalInfo = info
	case state.VerbRescue:
		n.InstanceInfo["rescue_password"] = *b.RescuePassword
	}
}

// powerTargets maps a target to the power state it ends in and the microversion
// that brought it.
var powerTargets = map[string]struct {
	ends  string
	since minor
}{
	"power on": {"power on", 1}, "power off": {"power off", 1}, "rebooting": {"power on", 1},
	"soft power off": {"power off", 27}, "soft rebooting": {"power on", 27},
}

func (s *server) putPower(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Target  *string `json:"target"`
		Timeout *int    `json:"timeout"`
	}
	err := readJSON(r, &body)
	if err == nil && body.Target == nil {
		err = bad("Missing mandatory parameter: target")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n, err := s.node(r)
	if err == nil {
		err = s.power(r, n, *body.Target, body.Timeout)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.accepted(w, r, n)
}

func (s *server) power(r *http.Request, n *store.Node, target string, timeout *int) error {
	t, ok := powerTargets[target]
	now := n.PowerState
	if now == "" {
		now = "None"
	}
	switch {
	case !ok:
		return refusedAction(n, target, now)
	case minorOf(r) < t.since || timeout != nil && minorOf(r) < 27:
		return notAcceptable()
	case timeout != nil && *timeout < 1:
		return bad("timeout must be a positive number of seconds, not %d", *timeout)
	case n.Reservation != "":
		return locked(n)
	case n.ProvisionState == state.CleanWait && !n.Maintenance:
		return refusedAction(n, target, string(n.ProvisionState))
	case n.DisablePowerOff && t.ends == "power off":
		return bad("Node %s has disable_power_off set and can not be powered off", n.UUID)
	}
	if err := s.cfg.Power.Validate(r.Context(), n); err != nil {
		return bad("Failed to validate power info for node %s. Error: %s", n.UUID, err)
	}
	was := n.TargetPowerState
	set := func(target string) error {
		_, err := s.store.UpdateNode(r.Context(), n.UUID, 0, func(n *store.Node) error { n.TargetPowerState = target; return nil })
		return err
	}
	if err := set(t.ends); err != nil {
		return fmt.Errorf("node %s: set target power state: %w", n.UUID, err)
	}
	var wait time.Duration
	if timeout != nil {
		wait = time.Duration(*timeout) * time.Second
	}
	if err := s.cfg.Power.SetPower(r.Context(), n.UUID, target, wait); err != nil {
		if back := set(was); back != nil {
			err = errors.Join(err, back)
		}
		return client(http.StatusConflict, "Node %s: %s could not be started: %s", n.UUID, target, err)
	}
	return nil
}
