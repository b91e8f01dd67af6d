package clean

import (
	"strings"
	"testing"

	"github.com/slipway-metal/slipway/conductor/flow"
	"github.com/slipway-metal/slipway/conductor/state"
	"github.com/slipway-metal/slipway/conductor/store"
	"github.com/slipway-metal/slipway/conductor/work"
	"github.com/slipway-metal/slipway/proto/agent"
)

var offered = []agent.Step{
	{Step: "low", Interface: "deploy", Priority: 10}, {Step: "manual", Interface: "deploy"},
	{Step: "b", Interface: "deploy", Priority: 99}, {Step: "a", Interface: "raid", Priority: 99},
}

func TestAutomatedStepsRunByPriorityAndManualOnesDoNot(t *testing.T) {
	var got []string
	for _, s := range automated(offered) {
		got = append(got, s.Step)
	}
	if strings.Join(got, " ") != "a b low" {
		t.Errorf("%v", got)
	}
}

func TestAStepThatTheAgentDoesNotOfferIsRefusedBeforeAnyRuns(t *testing.T) {
	_, err := pick([]agent.Step{{Step: "low", Interface: "deploy"}, {Step: "a", Interface: "deploy"}}, offered)
	if err == nil || !strings.Contains(err.Error(), "deploy.a") || !strings.Contains(err.Error(), "raid.a") {
		t.Errorf("%v", err)
	}
	got, err := pick([]agent.Step{{Step: "manual", Interface: "deploy", Args: map[string]any{"x": 1.0}}}, offered)
	if err != nil || len(got) != 1 || got[0].Args["x"] != 1.0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// The node's own setting needs no ramdisk to be obeyed.
func TestANodeThatIsNotToBeCleanedByItselfIsNot(t *testing.T) {
	off := false
	h := Handler(&flow.Deps{})
	res := h(t.Context(), &work.Job{Node: &store.Node{Driver: "redfish", AutomatedClean: &off, TargetProvisionState: state.Available}})
	if d, ok := res.(work.Done); !ok || d.Verb != "" {
		t.Errorf("%+v", res)
	}
}
