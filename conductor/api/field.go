package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// field is one attribute of a resource: the single place that knows since when
// it exists, how it is shown, and whether and how clients may set it.
type field[T any] struct {
	name  string
	since minor
	brief bool // part of a list without detail
	sort  bool // may be a sort_key
	get   func(v *view, o T) any
	// set takes decoded JSON; nil value means the default. A nil func makes the
	// field read-only.
	set func(o T, value any) error
	// createOnly fields can't be patched.
	createOnly bool
}

// view is what rendering needs besides the object.
type view struct {
	minor     minor
	base      string // scheme and host the client used
	conductor string
}

func (s *server) view(r *http.Request) *view {
	base := s.cfg.PublicURL
	if base == "" {
		scheme := "http"
		if r.TLS != nil {
			scheme = "https"
		}
		base = scheme + "://" + r.Host
	}
	return &view{minor: minorOf(r), base: base, conductor: s.cfg.Conductor}
}

// link is Ironic's pair of self and bookmark.
func (v *view) link(path string) any {
	return []map[string]string{
		{"href": v.base + "/v1/" + path, "rel": "self"},
		{"href": v.base + "/" + path, "rel": "bookmark"},
	}
}

// table is a resource's fields.
type table[T any] struct {
	what   string // "node", for messages
	fields []field[T]
}

func (t *table[T]) find(name string) *field[T] {
	for i := range t.fields {
		if t.fields[i].name == name {
			return &t.fields[i]
		}
	}
	return nil
}

// render writes the fields that pick chooses among those the microversion has.
func (t *table[T]) render(v *view, o T, pick func(*field[T]) bool) (json.RawMessage, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i := range t.fields {
		f := &t.fields[i]
		if f.since > v.minor || !pick(f) {
			continue
		}
		raw, err := json.Marshal(f.get(v, o))
		if err != nil {
			return nil, fmt.Errorf("encode %s field %s: %w", t.what, f.name, err)
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		b.WriteString(f.name)
		b.WriteString(`":`)
		b.Write(raw)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (t *table[T]) all(*field[T]) bool       { return true }
func (t *table[T]) briefly(f *field[T]) bool { return f.brief }

// only picks the named fields and always the links, as Ironic does.
func (t *table[T]) only(names []string) func(*field[T]) bool {
	return func(f *field[T]) bool { return f.name == "links" || slices.Contains(names, f.name) }
}

// checkNames validates a fields= list (the recorded server answers 500 to unknown ones).
func (t *table[T]) checkNames(m minor, names []string) error {
	for _, n := range names {
		f := t.find(n)
		if f == nil {
			return bad("Field(s) \"%s\" are not valid", n)
		}
		if f.since > m {
			return notAcceptable()
		}
	}
	return nil
}

// assign sets a new object's fields from a request body.
func (t *table[T]) assign(m minor, o T, body map[string]json.RawMessage) error {
	for _, name := range sortedKeys(body) {
		f := t.find(name)
		if f == nil || f.set == nil {
			return bad("Schema error for %s: Additional properties are not allowed ('%s' was unexpected)", t.what, name)
		}
		if f.since > m {
			return notAcceptable()
		}
		var value any
		if err := decodeJSON(body[name], &value); err != nil {
			return err
		}
		if err := f.set(o, value); err != nil {
			return bad("Schema error for %s: %s: %s", t.what, name, err)
		}
	}
	return nil
}

// patchable lists the fields PATCH takes, in the table's order.
func (t *table[T]) patchable(m minor) []string {
	var out []string
	for i := range t.fields {
		if f := &t.fields[i]; f.set != nil && !f.createOnly && f.since <= m {
			out = append(out, f.name)
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// The forms of values in replies: null for what is empty.

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// timeForm is Python's isoformat of a UTC time, as recorded.
const timeForm = "2006-01-02T15:04:05.000000+00:00"

func timeOrNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format(timeForm)
}

func object(m map[string]any) any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// The kinds of values in requests.

// maxText bounds a string field, in bytes, as Ironic's columns do.
const maxText = 255

func setText(limit int, to *string, value any) error {
	if value == nil {
		*to = ""
		return nil
	}
	text, ok := value.(string)
	if !ok {
		return fmt.Errorf("%s is not of type 'string'", brief(value))
	}
	if len(text) > limit {
		return fmt.Errorf("is longer than %d bytes", limit)
	}
	*to = text
	return nil
}

func setObject(to *map[string]any, value any) error {
	if value == nil {
		*to = map[string]any{}
		return nil
	}
	m, ok := value.(map[string]any)
	if !ok {
		return fmt.Errorf("%s is not of type 'object'", brief(value))
	}
	*to = m
	return nil
}

// setBool takes what oslo's bool_from_string takes, because clients send strings.
func setBool(to *bool, value any) error {
	switch value := value.(type) {
	case nil:
		*to = false
		return nil
	case bool:
		*to = value
		return nil
	case string:
		b, err := parseBool(value)
		if err == nil {
			*to = b
		}
		return err
	}
	return fmt.Errorf("%s is not of type 'boolean'", brief(value))
}

func setTristate(to **bool, value any) error {
	if value == nil {
		*to = nil
		return nil
	}
	var b bool
	if err := setBool(&b, value); err != nil {
		return err
	}
	*to = &b
	return nil
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "1", "t", "true", "on", "y", "yes":
		return true, nil
	case "0", "f", "false", "off", "n", "no":
		return false, nil
	}
	return false, fmt.Errorf("Unrecognized value '%s', acceptable values are: '0', '1', 'f', 'false', 'n', 'no', 'off', 'on', 't', 'true', 'y', 'yes'", s)
}

// brief shows a refused value without letting it flood the message.
func brief(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "the value"
	}
	if len(raw) > 80 {
		return string(raw[:77]) + "..."
	}
	return string(raw)
}
