package api

import (
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// maxPage is Ironic's default max_limit, in objects.
const maxPage = 1000

var (
	uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
	// nameForm are RFC 3986's unreserved characters, Ironic's rule since 1.10.
	nameForm = regexp.MustCompile(`^[A-Za-z0-9._~-]{1,255}$`)
	// hostForm is the rule before it.
	hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)
	macForm  = regexp.MustCompile(`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`)
)

func isUUID(s string) bool { return uuidForm.MatchString(s) }

// normalMAC returns the form that the store keeps, or false.
func normalMAC(s string) (string, bool) {
	s = strings.ReplaceAll(strings.ToLower(strings.TrimSpace(s)), "-", ":")
	return s, macForm.MatchString(s)
}

// page is the part of a list request that all resources share.
type page struct {
	query   url.Values
	minor   minor
	marker  string
	limit   int
	sortKey string
	desc    bool
	fields  []string // nil when not asked for
	detail  bool
}

// readPage reads marker, limit, sort_key, sort_dir, fields and detail.
func readPage[T any](r *http.Request, t *table[T]) (*page, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, bad("The query string is malformed: %v", err)
	}
	p := &page{query: query, minor: minorOf(r), marker: query.Get("marker"), limit: maxPage}
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, bad("Invalid input for field/attribute limit. Value: '%s'. unable to convert to int", clip(text))
		}
		if n < 0 {
			return nil, bad("Limit must be positive")
		}
		if n > 0 {
			p.limit = min(n, maxPage)
		}
	}
	switch dir := query.Get("sort_dir"); dir {
	case "", "asc":
	case "desc":
		p.desc = true
	default:
		return nil, bad("Invalid sort direction: %s. Acceptable values are 'asc' or 'desc'", clip(dir))
	}
	if key := query.Get("sort_key"); key != "" && key != "id" {
		f := t.find(key)
		if f == nil || !f.sort {
			return nil, bad("The sort_key value \"%s\" is an invalid field for sorting", clip(key))
		}
		if f.since > p.minor {
			return nil, notAcceptable()
		}
		p.sortKey = key
	}
	if p.fields, err = readFields(r, t); err != nil {
		return nil, err
	}
	if text := query.Get("detail"); text != "" {
		if p.minor < minorDetailQuery {
			return nil, notAcceptable()
		}
		if p.detail, err = parseBool(text); err != nil {
			return nil, bad("Invalid detail: %s", err)
		}
		if p.detail && p.fields != nil {
			return nil, bad("Can't fetch a subset of fields with 'detail' set")
		}
	}
	return p, nil
}

// readFields reads fields=, nil when absent.
func readFields[T any](r *http.Request, t *table[T]) ([]string, error) {
	query := r.URL.Query()
	if !query.Has("fields") {
		return nil, nil
	}
	if minorOf(r) < minorFields {
		return nil, notAcceptable()
	}
	names := []string{}
	for _, part := range query["fields"] {
		for _, n := range strings.Split(part, ",") {
			if n = strings.TrimSpace(n); n != "" {
				names = append(names, clip(n))
			}
		}
	}
	return names, t.checkNames(minorOf(r), names)
}

// show answers with one object of a resource, its fields as asked for.
func show[T any](s *server, w http.ResponseWriter, r *http.Request, t *table[T], find func(*http.Request) (T, error)) {
	names, err := readFields(r, t)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	o, err := find(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	pick := t.all
	if names != nil {
		pick = t.only(names)
	}
	write(s, w, r, http.StatusOK, t, o, pick)
}

// write answers with the picked fields of an object.
func write[T any](s *server, w http.ResponseWriter, r *http.Request, status int, t *table[T], o T, pick func(*field[T]) bool) {
	raw, err := t.render(s.view(r), o, pick)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.writeJSON(w, r, status, raw)
}

// pickOf chooses what a list shows.
func pickOf[T any](p *page, t *table[T]) func(*field[T]) bool {
	switch {
	case p.fields != nil:
		return t.only(p.fields)
	case p.detail:
		return t.all
	}
	return t.briefly
}

// next is the URL of the page after the one that ends with last.
func (p *page) next(v *view, path, last string) string {
	q := url.Values{}
	for k, vs := range p.query {
		if k != "marker" && k != "limit" {
			q[k] = vs
		}
	}
	q.Set("limit", strconv.Itoa(p.limit))
	q.Set("marker", last)
	return v.base + "/v1/" + path + "?" + q.Encode()
}

// text reads a filter that exists since a microversion.
func (p *page) text(name string, since minor) (string, error) {
	if !p.query.Has(name) {
		return "", nil
	}
	if p.minor < since {
		return "", notAcceptable()
	}
	return p.query.Get(name), nil
}

// tristate reads a boolean filter, nil when absent.
func (p *page) tristate(name string, since minor) (*bool, error) {
	text, err := p.text(name, since)
	if err != nil || text == "" {
		return nil, err
	}
	b, err := parseBool(text)
	if err != nil {
		return nil, bad("Invalid %s: %s", name, err)
	}
	return &b, nil
}

// clip keeps a client's text in a message short.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}
