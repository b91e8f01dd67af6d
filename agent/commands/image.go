package commands

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/slipway-metal/slipway/agent/sequence"
	"github.com/slipway-metal/slipway/agent/steps"
)

// stepAs makes an asynchronous command of a deploy step: its parameters are the
// step's arguments, and what is wrong with them is a bad request (recorded).
func (d Deps) stepAs(name string, result func(steps.Result) any) sequence.Command {
	return sequence.Command{Async: true, Parse: func(raw json.RawMessage) (sequence.Run, error) {
		step, err := d.Registry.Find(steps.Deploy, name)
		if err != nil {
			return nil, err
		}
		args, t, err := decode[map[string]json.RawMessage](raw)
		if err != nil {
			return nil, err
		}
		node := args["node"]
		delete(args, "node")
		rest, err := json.Marshal(args)
		if err != nil {
			return nil, err
		}
		if err := step.Validate(rest); err != nil {
			return nil, err
		}
		return func(ctx context.Context) (sequence.Outcome, error) {
			res, err := d.run(ctx, step, rest, node, t.Order)
			if err != nil {
				return sequence.Outcome{}, failed(err)
			}
			return sequence.Outcome{Result: result(res)}, nil
		}, nil
	}}
}

// prepareImage is IPA's older way to write an image; its result is a sentence.
func (d Deps) prepareImage() sequence.Command {
	return d.stepAs("write_image", func(r steps.Result) any {
		w, ok := r.Value.(steps.Written)
		if !ok {
			return r.Value
		}
		return map[string]string{"result": fmt.Sprintf("prepare_image: image (%s) written to device %s", w.URL, w.Name)}
	})
}

func (d Deps) installBootloader() sequence.Command {
	return d.stepAs("install_bootloader", func(r steps.Result) any { return r.Value })
}
