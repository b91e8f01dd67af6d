package pack

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Part is a row of the size table.
type Part struct {
	Name  string `json:"name"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"` // uncompressed
	// Compressed is the size in bytes of the part when compressed on its own; in
	// the archive it takes about as much.
	Compressed int64 `json:"compressed_bytes"`
}

// Parts sums up the files by part, largest first.
func Parts(files []File) ([]Part, error) {
	data := make(map[string][]byte)
	parts := make(map[string]*Part)
	for _, f := range files {
		p := parts[f.Part]
		if p == nil {
			p = &Part{Name: f.Part}
			parts[f.Part] = p
		}
		p.Files++
		p.Bytes += int64(len(f.Data))
		data[f.Part] = append(data[f.Part], f.Data...)
	}
	var rows []Part
	for name, p := range parts {
		small, err := Compress(data[name])
		if err != nil {
			return nil, err
		}
		p.Compressed = int64(len(small))
		rows = append(rows, *p)
	}
	slices.SortFunc(rows, func(a, b Part) int {
		return cmp.Or(cmp.Compare(b.Compressed, a.Compressed), cmp.Compare(a.Name, b.Name))
	})
	return rows, nil
}

// WriteTable prints the parts and the whole against the budget, in bytes.
func WriteTable(w io.Writer, parts []Part, unpacked, total, budget int64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "part\tfiles\tunpacked\tcompressed\t")
	for _, p := range parts {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t\n", p.Name, p.Files, p.Bytes, p.Compressed)
	}
	fmt.Fprintf(t, "ramdisk\t\t%d\t%d\t\n", unpacked, total)
	fmt.Fprintf(t, "budget\t\t\t%d\t\n", budget)
	return t.Flush()
}
