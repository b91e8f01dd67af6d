package ironic

import (
	"encoding/json"
	"os"
	"testing"
)

// Every recorded refusal must give its reason to a client of ours.
func TestParseErrorFindsTheReasonInEveryRecordedRefusal(t *testing.T) {
	raw, err := os.ReadFile("../testdata/errors.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Note     string
		Status   int
		Response json.RawMessage
	}
	if err := json.Unmarshal(raw, &rows); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Status < 400 {
			continue
		}
		if e := ParseError(r.Status, r.Response); e.Message == "" || e.Message[0] == '{' {
			t.Errorf("%s: no reason found: %+v", r.Note, e)
		}
	}
	if e := ParseError(502, []byte("<html>")); e.Code != "Server" || e.Message == "" {
		t.Errorf("a body that is not ours: %+v", e)
	}
}

// The recorded node must decode into the type that clients use.
func TestNodeDecodesTheRecordedSample(t *testing.T) {
	raw, err := os.ReadFile("../testdata/fields.json")
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Node Node `json:"node_sample"`
		Port Port `json:"port_sample"`
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	if f.Node.Driver != "fake-hardware" || f.Node.CreatedAt == nil || f.Node.Name == "" || len(f.Node.Links) != 2 {
		t.Errorf("node: %+v", f.Node)
	}
	if f.Port.Address != "52:54:00:aa:64:a6" || !f.Port.PXEEnabled {
		t.Errorf("port: %+v", f.Port)
	}
}

func FuzzParseError(f *testing.F) {
	f.Add(404, []byte(`{"error_message": "{\"faultstring\": \"x\"}"}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if e := ParseError(status, body); e == nil || e.Error() == "" {
			t.Fatal("no error")
		}
	})
}
