package cli

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/proto/event"
	"github.com/slipway-metal/slipway/proto/ironic"
)

func TestAnErrorIsWhatWhyAndNext(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		code int
		says []string
	}{
		"not found":   {&ironic.Error{Status: 404, Message: "Node x could not be found."}, ExitNotFound, []string{"error: show x", "why: Node x", "next: `slipway node list`"}},
		"wrong state": {&ironic.Error{Status: 409, Message: "accepted now: provide"}, ExitConflict, []string{"why: accepted now: provide", "slipway explain"}},
		"anything":    {errors.New("broken"), ExitFailed, []string{"why: broken"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := explainError("show x", "http://here", tc.err)
			if got := ExitCode(err); got != tc.code {
				t.Errorf("exit code %d, want %d", got, tc.code)
			}
			for _, want := range tc.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("does not say %q:\n%v", want, err)
				}
			}
		})
	}
	g := &Globals{URL: "http://127.0.0.1:1", Stdout: &bytes.Buffer{}, Output: "table", Now: time.Now}
	if err := (&NodeList{}).Run(t.Context(), g); ExitCode(err) != ExitUnreachable || !strings.Contains(err.Error(), "slipway serve") {
		t.Errorf("no conductor: exit code %d: %v", ExitCode(err), err)
	}
	if ExitCode(nil) != ExitOK || ExitCode(context.Canceled) != ExitInterrupted {
		t.Error("success or interruption has another exit code")
	}
}

func TestValuesAreJSONWhereTheyCanBe(t *testing.T) {
	got, err := pairs([]string{"a=1", "b=x", `c={"serial":"S"}`, "d=http://x/?q=1", "e="})
	want := map[string]any{"a": 1.0, "b": "x", "c": map[string]any{"serial": "S"}, "d": "http://x/?q=1", "e": ""}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	if _, err := pairs([]string{"nothing"}); ExitCode(err) != ExitUsage {
		t.Errorf("no =: %v", err)
	}
	ops := patchDict("extra", map[string]any{"b/c": 1, "a~": 2})
	if ops[0].Path != "/extra/a~0" || ops[1].Path != "/extra/b~1c" {
		t.Errorf("paths %q, %q are not RFC 6901's", ops[0].Path, ops[1].Path)
	}
}

// What comes from machines can't drive the terminal.
func TestMachinesTextIsHarmless(t *testing.T) {
	evil := "x\x1b]0;owned\x07\r\ny"
	var out bytes.Buffer
	if err := writeTable(&out, []string{"H"}, [][]string{{evil}}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		strings.TrimSuffix(strings.SplitN(out.String(), "\n", 2)[1], "\n"),
		describe(event.New("n", event.KindLog, time.Now(), event.Log{Source: "agent", Message: evil})),
		describe(event.New("n", event.KindEvidence, time.Now(), event.Evidence{Hop: "http", Fact: evil, Detail: map[string]any{"error": evil}})),
		describeProgress(event.Progress{Step: evil, Stage: evil, Bottleneck: evil}),
	} {
		if strings.ContainsAny(text, "\x1b\x07\r\n") || !strings.Contains(text, "owned") {
			t.Errorf("%q", text)
		}
	}
}

func TestAUniquePrefixNamesANode(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/nodes":
			_, _ = w.Write([]byte(`{"nodes":[{"uuid":"aa-1","name":"rack1"},{"uuid":"ab-2","name":"rack2"}]}`))
		case "/v1/nodes/aa-1":
			_, _ = w.Write([]byte(`{"uuid":"aa-1","name":"rack1"}`))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer s.Close()
	cl := newClient(s.URL, "", "")
	for ident, want := range map[string]string{"aa": "aa-1", "rack1": "aa-1", "aa-1": "aa-1"} {
		if n, err := cl.node(t.Context(), ident); err != nil || n.UUID != want {
			t.Errorf("%s: %v, %v", ident, n, err)
		}
	}
	if _, err := cl.node(t.Context(), "rack"); ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "2 nodes") {
		t.Errorf("an ambiguous prefix: %v", err)
	}
	if _, err := cl.node(t.Context(), "zz"); !isNotFound(err) {
		t.Errorf("no such prefix: %v", err)
	}
}
