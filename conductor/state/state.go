// Package state holds Ironic's provision-state machine as data and the one
// pure function over it. It imports nothing of ours.
package state

import (
	"fmt"
	"slices"
	"strings"
)

// State is a provision state, spelled as Ironic spells it.
type State string

// The provision states.
const (
	Enroll         State = "enroll"
	Manageable     State = "manageable"
	Available      State = "available"
	Active         State = "active"
	Error          State = "error"
	Rescue         State = "rescue"
	Verifying      State = "verifying"
	Deploying      State = "deploying"
	WaitCallback   State = "wait call-back"
	DeployFailed   State = "deploy failed"
	DeployHold     State = "deploy hold"
	Cleaning       State = "cleaning"
	CleanWait      State = "clean wait"
	CleanFailed    State = "clean failed"
	CleanHold      State = "clean hold"
	Deleting       State = "deleting"
	Inspecting     State = "inspecting"
	InspectFailed  State = "inspect failed"
	InspectWait    State = "inspect wait"
	Adopting       State = "adopting"
	AdoptFailed    State = "adopt failed"
	Rescuing       State = "rescuing"
	RescueWait     State = "rescue wait"
	RescueFailed   State = "rescue failed"
	Unrescuing     State = "unrescuing"
	UnrescueFailed State = "unrescue failed"
	Servicing      State = "servicing"
	ServiceWait    State = "service wait"
	ServiceFailed  State = "service failed"
	ServiceHold    State = "service hold"
)

// Verb is what moves a node from state to state: a user's verb (manage, deploy,
// delete, …) or a conductor's own event (done, fail, wait, resume, hold).
type Verb string

// The verbs. Users' first, then the conductor's own.
const (
	VerbManage   Verb = "manage"
	VerbProvide  Verb = "provide"
	VerbClean    Verb = "clean"
	VerbInspect  Verb = "inspect"
	VerbAdopt    Verb = "adopt"
	VerbDeploy   Verb = "deploy"
	VerbRebuild  Verb = "rebuild"
	VerbDelete   Verb = "delete"
	VerbRescue   Verb = "rescue"
	VerbService  Verb = "service"
	VerbUnrescue Verb = "unrescue"
	VerbAbort    Verb = "abort"
	VerbUnhold   Verb = "unhold"
	VerbDone     Verb = "done"
	VerbFail     Verb = "fail"
	VerbWait     Verb = "wait"
	VerbResume   Verb = "resume"
	VerbHold     Verb = "hold"
)

// The kinds of work that edges queue. A handler is registered for each.
const (
	WorkAdopt    = "adopt"
	WorkClean    = "clean"
	WorkDeploy   = "deploy"
	WorkInspect  = "inspect"
	WorkRescue   = "rescue"
	WorkService  = "service"
	WorkUndeploy = "undeploy"
	WorkUnrescue = "unrescue"
	WorkVerify   = "verify"
)

// Edge is one permitted transition. Work is queued by the same transaction that
// enters To; "" rests or leaves queued work as it is.
type Edge struct {
	From State
	On   Verb
	To   State
	Work string
}

// Edges is the whole machine: Ironic 39's transitions
// (proto/testdata/states.json; a test holds the two equal).
var Edges = []Edge{
	{Enroll, VerbManage, Verifying, WorkVerify},
	{Manageable, VerbProvide, Cleaning, WorkClean},
	{Manageable, VerbClean, Cleaning, WorkClean},
	{Manageable, VerbInspect, Inspecting, WorkInspect},
	{Manageable, VerbAdopt, Adopting, WorkAdopt},
	{Available, VerbDeploy, Deploying, WorkDeploy},
	{Available, VerbManage, Manageable, ""},
	{Active, VerbRebuild, Deploying, WorkDeploy},
	{Active, VerbDelete, Deleting, WorkUndeploy},
	{Active, VerbRescue, Rescuing, WorkRescue},
	{Active, VerbService, Servicing, WorkService},
	{Error, VerbRebuild, Deploying, WorkDeploy},
	{Error, VerbDelete, Deleting, WorkUndeploy},
	{Rescue, VerbRescue, Rescuing, WorkRescue},
	{Rescue, VerbDelete, Deleting, WorkUndeploy},
	{Rescue, VerbUnrescue, Unrescuing, WorkUnrescue},
	{Verifying, VerbDone, Manageable, ""},
	{Verifying, VerbFail, Enroll, ""},
	{Deploying, VerbFail, DeployFailed, ""},
	{Deploying, VerbWait, WaitCallback, ""},
	{Deploying, VerbHold, DeployHold, ""},
	{Deploying, VerbDone, Active, ""},
	{WaitCallback, VerbHold, DeployHold, ""},
	{WaitCallback, VerbResume, Deploying, ""},
	{WaitCallback, VerbFail, DeployFailed, ""},
	{WaitCallback, VerbAbort, DeployFailed, ""},
	{WaitCallback, VerbDelete, Deleting, WorkUndeploy},
	{DeployFailed, VerbRebuild, Deploying, WorkDeploy},
	{DeployFailed, VerbDeploy, Deploying, WorkDeploy},
	{DeployFailed, VerbDelete, Deleting, WorkUndeploy},
	{DeployHold, VerbUnhold, WaitCallback, ""},
	{DeployHold, VerbAbort, DeployFailed, ""},
	{Cleaning, VerbDone, Available, ""},
	{Cleaning, VerbFail, CleanFailed, ""},
	{Cleaning, VerbWait, CleanWait, ""},
	{Cleaning, VerbHold, CleanHold, ""},
	{Cleaning, VerbManage, Manageable, ""},
	{CleanWait, VerbFail, CleanFailed, ""},
	{CleanWait, VerbAbort, CleanFailed, ""},
	{CleanWait, VerbHold, CleanHold, ""},
	{CleanWait, VerbResume, Cleaning, ""},
	{CleanFailed, VerbManage, Manageable, ""},
	{CleanHold, VerbAbort, CleanFailed, ""},
	{CleanHold, VerbUnhold, CleanWait, ""},
	{Deleting, VerbFail, Error, ""},
	{Deleting, VerbClean, Cleaning, WorkClean},
	{Inspecting, VerbDone, Manageable, ""},
	{Inspecting, VerbFail, InspectFailed, ""},
	{Inspecting, VerbWait, InspectWait, ""},
	{InspectFailed, VerbManage, Manageable, ""},
	{InspectFailed, VerbInspect, Inspecting, WorkInspect},
	{InspectWait, VerbDone, Manageable, ""},
	{InspectWait, VerbFail, InspectFailed, ""},
	{InspectWait, VerbAbort, InspectFailed, ""},
	{InspectWait, VerbResume, Inspecting, ""},
	{Adopting, VerbDone, Active, ""},
	{Adopting, VerbFail, AdoptFailed, ""},
	{AdoptFailed, VerbAdopt, Adopting, WorkAdopt},
	{AdoptFailed, VerbManage, Manageable, ""},
	{Rescuing, VerbDone, Rescue, ""},
	{Rescuing, VerbWait, RescueWait, ""},
	{Rescuing, VerbFail, RescueFailed, ""},
	{RescueWait, VerbResume, Rescuing, ""},
	{RescueWait, VerbFail, RescueFailed, ""},
	{RescueWait, VerbAbort, RescueFailed, ""},
	{RescueWait, VerbDelete, Deleting, WorkUndeploy},
	{RescueFailed, VerbRescue, Rescuing, WorkRescue},
	{RescueFailed, VerbUnrescue, Unrescuing, WorkUnrescue},
	{RescueFailed, VerbDelete, Deleting, WorkUndeploy},
	{Unrescuing, VerbDone, Active, ""},
	{Unrescuing, VerbFail, UnrescueFailed, ""},
	{UnrescueFailed, VerbRescue, Rescuing, WorkRescue},
	{UnrescueFailed, VerbUnrescue, Unrescuing, WorkUnrescue},
	{UnrescueFailed, VerbDelete, Deleting, WorkUndeploy},
	{Servicing, VerbDone, Active, ""},
	{Servicing, VerbFail, ServiceFailed, ""},
	{Servicing, VerbWait, ServiceWait, ""},
	{Servicing, VerbHold, ServiceHold, ""},
	{ServiceWait, VerbHold, ServiceHold, ""},
	{ServiceWait, VerbResume, Servicing, ""},
	{ServiceWait, VerbFail, ServiceFailed, ""},
	{ServiceWait, VerbAbort, ServiceFailed, ""},
	{ServiceWait, VerbDelete, Deleting, WorkUndeploy},
	{ServiceFailed, VerbService, Servicing, WorkService},
	{ServiceFailed, VerbRescue, Rescuing, WorkRescue},
	{ServiceFailed, VerbWait, ServiceWait, ""},
	{ServiceFailed, VerbHold, ServiceHold, ""},
	{ServiceFailed, VerbDelete, Deleting, WorkUndeploy},
	{ServiceFailed, VerbAbort, Active, ""},
	{ServiceHold, VerbService, Servicing, WorkService},
	{ServiceHold, VerbUnhold, ServiceWait, ""},
	{ServiceHold, VerbFail, ServiceFailed, ""},
	{ServiceHold, VerbAbort, ServiceFailed, ""},
}

// Info is what is known of a state besides its edges.
type Info struct {
	Stable bool  // rests until a user acts
	Target State // the target a node in this state is on its way to; "" when stable
}

// States maps every state to its Info.
var States = map[State]Info{
	Enroll:         {true, ""},
	Manageable:     {true, ""},
	Available:      {true, ""},
	Active:         {true, ""},
	Error:          {true, ""},
	Rescue:         {true, ""},
	Verifying:      {false, Manageable},
	Deploying:      {false, Active},
	WaitCallback:   {false, Active},
	DeployFailed:   {false, Active},
	DeployHold:     {false, Active},
	Cleaning:       {false, Available},
	CleanWait:      {false, Available},
	CleanFailed:    {false, Available},
	CleanHold:      {false, Available},
	Deleting:       {false, Available},
	Inspecting:     {false, Manageable},
	InspectFailed:  {false, Manageable},
	InspectWait:    {false, Manageable},
	Adopting:       {false, Active},
	AdoptFailed:    {false, Active},
	Rescuing:       {false, Rescue},
	RescueWait:     {false, Rescue},
	RescueFailed:   {false, Rescue},
	Unrescuing:     {false, Active},
	UnrescueFailed: {false, Active},
	Servicing:      {false, Active},
	ServiceWait:    {false, Active},
	ServiceFailed:  {false, Active},
	ServiceHold:    {false, Active},
}

// aliases are the targets that PUT states/provision takes beside the verbs.
var aliases = map[string]Verb{
	"active":   VerbDeploy,
	"deploy":   VerbDeploy,
	"deleted":  VerbDelete,
	"undeploy": VerbDelete,
	"manage":   VerbManage,
	"provide":  VerbProvide,
	"inspect":  VerbInspect,
	"abort":    VerbAbort,
	"clean":    VerbClean,
	"adopt":    VerbAdopt,
	"rescue":   VerbRescue,
	"unrescue": VerbUnrescue,
	"unhold":   VerbUnhold,
	"service":  VerbService,
	"rebuild":  VerbRebuild,
}

// Parse maps the target of a provision request to its verb.
func Parse(target string) (Verb, bool) {
	v, ok := aliases[target]
	return v, ok
}

// NotAcceptedError is a verb that the state does not take.
type NotAcceptedError struct {
	From     State
	On       Verb
	Accepted []Verb // users' verbs that From does take
}

// Error lists what would be accepted.
func (e *NotAcceptedError) Error() string {
	names := make([]string, len(e.Accepted))
	for i, v := range e.Accepted {
		names[i] = string(v)
	}
	would := "nothing: the conductor is at work on it"
	if len(names) > 0 {
		would = strings.Join(names, ", ")
	}
	return fmt.Sprintf("the requested action %q can not be performed on a node in state %q; accepted now: %s", e.On, e.From, would)
}

// Next returns the edge that on takes from a state, or a *NotAcceptedError.
func Next(from State, on Verb) (Edge, error) {
	for _, e := range Edges {
		if e.From == from && e.On == on {
			return e, nil
		}
	}
	return Edge{}, &NotAcceptedError{From: from, On: on, Accepted: Accepted(from)}
}

// own are the conductor's events; users can't ask for them.
var own = []Verb{VerbDone, VerbFail, VerbWait, VerbResume, VerbHold}

// Accepted lists the users' verbs a state takes, sorted.
func Accepted(from State) []Verb {
	var out []Verb
	for _, e := range Edges {
		if e.From == from && !slices.Contains(own, e.On) {
			out = append(out, e.On)
		}
	}
	slices.Sort(out)
	return out
}

// Failed are the states that a failure leaves a node in.
var Failed = []State{AdoptFailed, CleanFailed, DeployFailed, InspectFailed, RescueFailed, ServiceFailed, UnrescueFailed, Error}

// Deletable are the states in which a node may be deleted without maintenance.
// Ironic adds "available" (common/states.py, DELETE_ALLOWED_STATES has three).
var Deletable = []State{Manageable, Enroll, AdoptFailed, Available}

// LookupAllowed are the states in which an agent may look its node up; with
// fast track, FastTrackLookup.
var (
	LookupAllowed   = []State{Deploying, WaitCallback, Cleaning, CleanWait, Inspecting, InspectWait, Rescuing, RescueWait, Servicing, ServiceWait}
	FastTrackLookup = append([]State{Enroll, Manageable, Available, ServiceHold}, LookupAllowed...)
)

// Waiting maps a working state to the state in which its work rests, and back.
var Waiting = map[State]State{
	Deploying: WaitCallback, Cleaning: CleanWait, Inspecting: InspectWait, Rescuing: RescueWait, Servicing: ServiceWait,
}
