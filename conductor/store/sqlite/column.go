package sqlite

import (
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// field is a struct field seen as a column: it reads and writes itself.
type field interface {
	sql.Scanner
	driver.Valuer
}

// column binds a column to the field of a T. One list of them a table makes its
// SELECT, INSERT and UPDATE, so that a field can't be forgotten in one of them.
type column[T any] struct {
	name string
	of   func(*T) field
}

// selectList is "prefix.a, prefix.b, …".
func selectList[T any](cols []column[T], prefix string) string {
	names := make([]string, len(cols))
	for i, c := range cols {
		names[i] = prefix + c.name
	}
	return strings.Join(names, ", ")
}

// dests are the scan destinations of v.
func dests[T any](cols []column[T], v *T) []any {
	out := make([]any, len(cols))
	for i, c := range cols {
		out[i] = c.of(v)
	}
	return out
}

// values are v's columns as the database stores them.
func values[T any](cols []column[T], v *T) ([]any, error) {
	out := make([]any, len(cols))
	for i, c := range cols {
		x, err := c.of(v).Value()
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", c.name, err)
		}
		out[i] = x
	}
	return out, nil
}

// insert writes v as a new row.
func insert[T any](tx *sql.Tx, table string, cols []column[T], v *T) error {
	vals, err := values(cols, v)
	if err != nil {
		return err
	}
	marks := strings.TrimSuffix(strings.Repeat("?, ", len(cols)), ", ")
	_, err = tx.Exec("INSERT INTO "+table+" ("+selectList(cols, "")+") VALUES ("+marks+")", vals...)
	return err
}

// update writes the columns of row key that differ between two sets of values.
func update[T any](tx *sql.Tx, table string, cols []column[T], before, after []any, key string) error {
	var sets []string
	var args []any
	for i, c := range cols {
		if before[i] != after[i] {
			sets = append(sets, c.name+" = ?")
			args = append(args, after[i])
		}
	}
	if len(sets) == 0 {
		return nil
	}
	_, err := tx.Exec("UPDATE "+table+" SET "+strings.Join(sets, ", ")+" WHERE uuid = ?", append(args, key)...)
	return err
}

func differ(before, after []any) bool {
	for i := range before {
		if before[i] != after[i] {
			return true
		}
	}
	return false
}

// text is a string; NULL when empty.
type text[S ~string] struct{ p *S }

func (t text[S]) Value() (driver.Value, error) {
	if *t.p == "" {
		return nil, nil
	}
	return string(*t.p), nil
}

func (t text[S]) Scan(v any) error {
	var n sql.NullString
	if err := n.Scan(v); err != nil {
		return err
	}
	*t.p = S(n.String)
	return nil
}

// stamp is a time in nanoseconds since 1970 UTC; NULL when zero.
type stamp struct{ p *time.Time }

func (t stamp) Value() (driver.Value, error) { return nanos(*t.p), nil }

func (t stamp) Scan(v any) error {
	var n sql.NullInt64
	if err := n.Scan(v); err != nil {
		return err
	}
	*t.p = time.Time{}
	if n.Valid {
		*t.p = time.Unix(0, n.Int64).UTC()
	}
	return nil
}

// nanos is a time as a parameter.
func nanos(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixNano()
}

// flag is a bool as 0 or 1.
type flag struct{ p *bool }

func (f flag) Value() (driver.Value, error) { return bit(*f.p), nil }

func (f flag) Scan(v any) error {
	var n sql.NullInt64
	if err := n.Scan(v); err != nil {
		return err
	}
	*f.p = n.Int64 != 0
	return nil
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// tri is a *bool; NULL when nil.
type tri struct{ p **bool }

func (t tri) Value() (driver.Value, error) {
	if *t.p == nil {
		return nil, nil
	}
	return bit(**t.p), nil
}

func (t tri) Scan(v any) error {
	var n sql.NullInt64
	if err := n.Scan(v); err != nil {
		return err
	}
	*t.p = nil
	if n.Valid {
		b := n.Int64 != 0
		*t.p = &b
	}
	return nil
}

// integer is an int64 or int.
type integer[I ~int | ~int64] struct{ p *I }

func (i integer[I]) Value() (driver.Value, error) { return int64(*i.p), nil }

func (i integer[I]) Scan(v any) error {
	var n sql.NullInt64
	if err := n.Scan(v); err != nil {
		return err
	}
	*i.p = I(n.Int64)
	return nil
}

// dict is a JSON object: never NULL, and never a nil map when read.
type dict[V any] struct{ p *map[string]V }

func (d dict[V]) Value() (driver.Value, error) {
	if len(*d.p) == 0 {
		return "{}", nil
	}
	raw, err := json.Marshal(*d.p) // keys sorted, so equal maps are equal texts
	return string(raw), err
}

func (d dict[V]) Scan(v any) error {
	var s sql.NullString
	if err := s.Scan(v); err != nil {
		return err
	}
	*d.p = map[string]V{}
	if !s.Valid || s.String == "{}" {
		return nil
	}
	return json.Unmarshal([]byte(s.String), d.p)
}

// openDict is a dict without its secrets, which are sealed elsewhere.
type openDict struct{ p *map[string]any }

func (d openDict) Value() (driver.Value, error) {
	open, _ := split(*d.p)
	return dict[any]{&open}.Value()
}

func (d openDict) Scan(v any) error { return dict[any](d).Scan(v) }

// list is a JSON array of texts.
type list struct{ p *[]string }

func (l list) Value() (driver.Value, error) {
	if len(*l.p) == 0 {
		return "[]", nil
	}
	raw, err := json.Marshal(*l.p)
	return string(raw), err
}

func (l list) Scan(v any) error {
	var s sql.NullString
	if err := s.Scan(v); err != nil {
		return err
	}
	*l.p = nil
	if !s.Valid || s.String == "[]" {
		return nil
	}
	return json.Unmarshal([]byte(s.String), l.p)
}

// raw is a JSON document kept as it is; NULL when nil.
type raw struct{ p *json.RawMessage }

func (r raw) Value() (driver.Value, error) {
	if *r.p == nil {
		return nil, nil
	}
	return string(*r.p), nil
}

func (r raw) Scan(v any) error {
	var s sql.NullString
	if err := s.Scan(v); err != nil {
		return err
	}
	*r.p = nil
	if s.Valid {
		*r.p = json.RawMessage(s.String)
	}
	return nil
}
