package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// patchOp is one operation of a JSON Patch (RFC 6902) of the three that Ironic takes.
type patchOp struct {
	op, path string
	steps    []string // path, unescaped
	value    any
	raw      json.RawMessage // as sent, for messages
}

// maxPatchOps bounds one PATCH.
const maxPatchOps = 1000

func readPatch(r *http.Request) ([]patchOp, error) {
	raw, err := readBody(r)
	if err != nil {
		return nil, err
	}
	var whole json.RawMessage
	if err := decodeJSON(raw, &whole); err != nil {
		return nil, err
	}
	var rows []json.RawMessage
	if json.Unmarshal(whole, &rows) != nil {
		return nil, bad("Schema error for patch: %s is not of type 'array'", brief(whole))
	}
	if len(rows) > maxPatchOps {
		return nil, bad("Schema error for patch: more than %d operations", maxPatchOps)
	}
	ops := make([]patchOp, len(rows))
	for i, row := range rows {
		if ops[i], err = readPatchOp(row); err != nil {
			return nil, err
		}
	}
	return ops, nil
}

func readPatchOp(raw json.RawMessage) (patchOp, error) {
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil || m == nil {
		return patchOp{}, bad("Schema error for patch: %s is not of type 'object'", brief(raw))
	}
	o := patchOp{raw: raw}
	for name, to := range map[string]*string{"op": &o.op, "path": &o.path} {
		v, ok := m[name]
		if !ok {
			return o, bad("Schema error for patch: '%s' is a required property", name)
		}
		if json.Unmarshal(v, to) != nil {
			return o, bad("Schema error for patch: %s is not of type 'string'", brief(v))
		}
	}
	if !slices.Contains([]string{"add", "replace", "remove"}, o.op) {
		return o, bad("Schema error for patch: '%s' is not one of ['add', 'replace', 'remove']", o.op)
	}
	if len(o.path) < 2 || o.path[0] != '/' {
		return o, bad("Schema error for patch: '%s' does not match '^(/[\\\\w-]+)(/[\\\\w.@-]+)*$'", o.path)
	}
	for _, s := range strings.Split(o.path[1:], "/") {
		o.steps = append(o.steps, strings.NewReplacer("~1", "/", "~0", "~").Replace(s))
	}
	if v, ok := m["value"]; ok {
		if err := json.Unmarshal(v, &o.value); err != nil {
			return o, bad("Schema error for patch: value of %s: %v", o.path, err)
		}
	} else if o.op != "remove" {
		return o, bad("Schema error for patch: 'value' is a required property of '%s'", o.op)
	}
	return o, nil
}

// refuse words a failed operation as the recorded server does.
func (o *patchOp) refuse(reason string) error {
	return bad("Couldn't apply patch '%s'. Reason: %s", brief(o.raw), reason)
}

// apply changes doc, a decoded JSON document, in place.
func (o *patchOp) apply(doc map[string]any) error {
	if _, err := o.into(doc, o.steps); err != nil {
		return o.refuse(err.Error())
	}
	return nil
}

// into applies the operation below at and returns at's new value.
func (o *patchOp) into(at any, steps []string) (any, error) {
	key := steps[0]
	switch at := at.(type) {
	case map[string]any:
		child, there := at[key]
		if len(steps) > 1 {
			if !there {
				return nil, fmt.Errorf("member '%s' not found", key)
			}
			v, err := o.into(child, steps[1:])
			if err != nil {
				return nil, err
			}
			at[key] = v
			return at, nil
		}
		switch {
		case o.op == "add":
			at[key] = o.value
		case !there && o.op == "remove":
			return nil, fmt.Errorf("can't remove a non-existent object '%s'", key)
		case !there:
			return nil, fmt.Errorf("can't replace a non-existent object '%s'", key)
		case o.op == "remove":
			delete(at, key)
		default:
			at[key] = o.value
		}
		return at, nil
	case []any:
		return o.intoArray(at, key, steps)
	}
	return nil, fmt.Errorf("'%s' is below a value that is neither an object nor an array", key)
}

func (o *patchOp) intoArray(at []any, key string, steps []string) (any, error) {
	if len(steps) == 1 && o.op == "add" && key == "-" {
		return append(at, o.value), nil
	}
	i, err := strconv.Atoi(key)
	limit := len(at)
	if len(steps) == 1 && o.op == "add" {
		limit++
	}
	if err != nil || i < 0 || i >= limit {
		return nil, fmt.Errorf("'%s' is not an index of the array", key)
	}
	if len(steps) > 1 {
		v, err := o.into(at[i], steps[1:])
		if err != nil {
			return nil, err
		}
		at[i] = v
		return at, nil
	}
	switch o.op {
	case "add":
		return slices.Insert(at, i, o.value), nil
	case "remove":
		return slices.Delete(at, i, i+1), nil
	}
	at[i] = o.value
	return at, nil
}

// patch applies ops to o's patchable fields and returns the names it touched.
// rawDoc gives a field's present value with its secrets.
func (t *table[T]) patch(m minor, o T, ops []patchOp, rawDoc map[string]any, required ...string) ([]string, error) {
	var touched []string
	for i := range ops {
		name := ops[i].steps[0]
		f := t.find(name)
		switch {
		case f != nil && f.since > m:
			return nil, notAcceptable()
		case f == nil || f.set == nil || f.createOnly:
			return nil, bad("Cannot patch /%s. Only the following can be updated: %s", strings.Join(ops[i].steps, "/"), strings.Join(t.patchable(m), ", "))
		case ops[i].op == "remove" && len(ops[i].steps) == 1 && slices.Contains(required, name):
			return nil, bad("Cannot remove mandatory attribute '/%s'", name)
		}
		if !slices.Contains(touched, name) {
			touched = append(touched, name)
		}
	}
	before := make(map[string]any, len(touched))
	for _, name := range touched {
		before[name] = deepCopy(rawDoc[name])
	}
	for i := range ops {
		if err := ops[i].apply(rawDoc); err != nil {
			return nil, err
		}
	}
	for _, name := range touched {
		now, was := rawDoc[name], before[name]
		if nm, ok := now.(map[string]any); ok {
			if wm, ok := was.(map[string]any); ok {
				unmask(nm, wm)
			}
		}
		if err := t.find(name).set(o, now); err != nil {
			return nil, bad("Schema error for %s: %s: %s", t.what, name, err)
		}
	}
	return touched, nil
}

func deepCopy(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = deepCopy(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = deepCopy(e)
		}
		return out
	}
	return v
}
