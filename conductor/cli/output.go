package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"

	"github.com/slipway-metal/slipway/proto/ironic"
)

func hasStatus(err error, status int) bool {
	var api *ironic.Error
	return errors.As(err, &api) && api.Status == status
}

// clean makes text from machines safe for a terminal: control characters go.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// table is rows under headings; wide headings are shown by -o wide only.
type table struct {
	head, wide []string
	rows       [][]string
}

// print writes v in the format asked for; t is v as a table.
func (g *Globals) print(v any, t table) error {
	switch g.Output {
	case "json":
		enc := json.NewEncoder(g.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		// By way of JSON, so that names are the API's.
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		var plain any
		if err := json.Unmarshal(raw, &plain); err != nil {
			return err
		}
		enc := yaml.NewEncoder(g.Stdout)
		enc.SetIndent(2)
		return errors.Join(enc.Encode(plain), enc.Close())
	}
	head := t.head
	if g.Output == "wide" {
		head = slices.Concat(t.head, t.wide)
	}
	return writeTable(g.Stdout, head, t.rows)
}

func writeTable(w io.Writer, head []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 2, 2, ' ', 0)
	if len(head) > 0 {
		fmt.Fprintln(tw, strings.Join(head, "\t")) //nolint:errcheck // Flush reports it
	}
	for _, r := range rows {
		if len(head) > 0 && len(r) > len(head) {
			r = r[:len(head)]
		}
		cells := make([]string, len(r))
		for i, c := range r {
			cells[i] = clean(c)
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t")) //nolint:errcheck // Flush reports it
	}
	return tw.Flush()
}

// size prints bytes with a decimal unit, as disks and links are sold.
func size(b float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for b >= 1000 && i < len(units)-1 {
		b /= 1000
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%.0f %s", b, units[i])
	}
	return fmt.Sprintf("%.1f %s", b, units[i])
}

func age(t *time.Time, now time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return now.Sub(*t).Round(time.Second).String()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
