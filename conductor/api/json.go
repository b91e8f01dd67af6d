package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// readJSON reads the whole body into v. Malformed, too deep and too large
// bodies are refused with the reason (the recorded server answers 500 to the first).
func readJSON(r *http.Request, v any) error {
	raw, err := readBody(r)
	if err != nil {
		return err
	}
	return decodeJSON(raw, v)
}

func readBody(r *http.Request) ([]byte, error) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return nil, client(http.StatusRequestEntityTooLarge, "The request body is larger than %d bytes.", big.Limit)
		}
		return nil, bad("The request body could not be read: %v", err)
	}
	return raw, nil
}

func decodeJSON(raw []byte, v any) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return bad("The request needs a JSON body.")
	}
	if !depthOK(raw) {
		return bad("The request body nests deeper than %d levels.", maxDepth)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			return bad("The request body is not valid JSON: %v (at byte %d)", err, syntax.Offset)
		case errors.As(err, &kind) && kind.Field != "":
			return bad("Schema error: '%s' must be of type %s, not %s", kind.Field, jsonKind(kind.Type.Kind().String()), kind.Value)
		case errors.As(err, &kind):
			return bad("Schema error: the request body must be of type %s, not %s", jsonKind(kind.Type.Kind().String()), kind.Value)
		}
		return bad("The request body is not valid JSON: %v", err)
	}
	return nil
}

func jsonKind(k string) string {
	switch k {
	case "map", "struct":
		return "object"
	case "slice":
		return "array"
	case "bool":
		return "boolean"
	}
	return k
}

// depthOK counts brackets outside strings, so that a hostile body is refused
// before the decoder recurses.
func depthOK(raw []byte) bool {
	depth, inText := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inText && c == '\\':
			i++
		case c == '"':
			inText = !inText
		case inText:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return false
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return true
}

// writeJSON answers with v.
func (s *server) writeJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		s.fail(w, r, fmt.Errorf("encode the reply to %s %s: %w", r.Method, r.URL.Path, err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(raw) //nolint:errcheck // the client is gone; nobody is left to tell
}
