package fakebmc_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/slipway-metal/slipway/testenv/fakebmc"
)

const system = "/redfish/v1/Systems/8e7b1a52-0000-4000-8000-000000000001"

// answer is a response whose body was read.
type answer struct {
	StatusCode int
	Status     string
	Header     http.Header
}

// ask makes one request; auth is "user:password", a session's token, or empty.
func ask(t *testing.T, method, url, auth, body string, header ...string) (answer, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if user, password, ok := strings.Cut(auth, ":"); ok {
		req.SetBasicAuth(user, password)
	} else if auth != "" {
		req.Header.Set("X-Auth-Token", auth)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if len(data) > 0 && resp.Header.Get("Content-Type") == "application/json" {
		if err := json.Unmarshal(data, &out); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
	}
	return answer{resp.StatusCode, resp.Status, resp.Header}, out
}

func TestWhatIsServedToWhom(t *testing.T) {
	_, _, url := serve(t, config)
	resp, _ := ask(t, "POST", url+"/redfish/v1/SessionService/Sessions", "", `{"UserName":"admin","Password":"hunter2"}`)
	token := resp.Header.Get("X-Auth-Token")
	for _, c := range []struct {
		method, path, auth, body string
		want                     int
	}{
		{"GET", "/redfish", "", "", 200},
		{"GET", "/redfish/v1", "", "", 200},
		{"GET", "/redfish/v1/", "", "", 200},
		{"GET", "/redfish/v1/$metadata", "", "", 200},
		{"GET", "/redfish/v1/Systems", "", "", 401},
		{"GET", "/redfish/v1/Systems", "admin:wrong", "", 401},
		{"GET", "/redfish/v1/Systems", "no-such-token", "", 401},
		{"GET", "/redfish/v1/Systems", token, "", 200},
		{"GET", "/redfish/v1/Systems/", "admin:hunter2", "", 200},
		{"GET", "/redfish/v1/Systems/other", token, "", 404},
		{"POST", "/redfish/v1/SessionService/Sessions", "", `{"UserName":"admin","Password":"wrong"}`, 401},
		{"POST", "/redfish/v1/SessionService/Sessions", "", `{`, 400},
		{"POST", "/redfish/v1/Systems", token, `{}`, 405},
		{"PATCH", system, token, `{"Boot":{"BootSourceOverrideTarget":"Toaster"}}`, 400},
		{"PATCH", system, token, `{"Boot":{"BootSourceOverrideEnabled":"Maybe"}}`, 400},
		{"PATCH", system, token, `{"Boot":`, 400},
		{"PATCH", system, token, `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`, 200},
		{"POST", system + "/Actions/ComputerSystem.Reset", token, `{"ResetType":"Explode"}`, 400},
		{"POST", system + "/Actions/ComputerSystem.Reset", token, `{"ResetType":"On"}`, 204},
		{"POST", system + "/VirtualMedia/Cd/Actions/VirtualMedia.InsertMedia", token, `{"Image":"file:///etc/passwd"}`, 400},
		{"DELETE", resp.Header.Get("Location"), token, "", 204},
		{"DELETE", resp.Header.Get("Location"), "admin:hunter2", "", 404},
		{"GET", "/redfish/v1/Systems", token, "", 401},
	} {
		have, body := ask(t, c.method, url+c.path, c.auth, c.body)
		if have.StatusCode != c.want {
			t.Errorf("%s %s %s: %d %v, want %d", c.method, c.path, c.body, have.StatusCode, body, c.want)
		}
		if e, ok := body["error"].(map[string]any); c.want >= 400 && (!ok || e["@Message.ExtendedInfo"] == nil) {
			t.Errorf("%s %s: %v is no Redfish error", c.method, c.path, body)
		}
	}
}

func TestAPatchNeedsTheETagOfWhatItChanges(t *testing.T) {
	_, _, url := serve(t, config)
	const auth, pxe = "admin:hunter2", `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`
	resp, _ := ask(t, "GET", url+system, auth, "")
	tag := resp.Header.Get("ETag")
	if resp, _ := ask(t, "PATCH", url+system, auth, pxe, "If-Match", tag); resp.StatusCode != 200 {
		t.Fatalf("its own ETag: %s", resp.Status)
	}
	if resp, _ := ask(t, "PATCH", url+system, auth, pxe, "If-Match", tag); resp.StatusCode != 412 {
		t.Errorf("an ETag from before the change: %s, want 412", resp.Status)
	}
}

func TestAMachineThatStartsByItselfSpendsOnce(t *testing.T) {
	b, _, url := serve(t, config)
	ask(t, "PATCH", url+system, "admin:hunter2", `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`)
	if o := b.Override(); o.Device != fakebmc.PXE || !o.Once {
		t.Fatalf("override %+v", o)
	}
	b.Booted()
	if _, doc := ask(t, "GET", url+system, "admin:hunter2", ""); doc["Boot"].(map[string]any)["BootSourceOverrideEnabled"] != "Disabled" {
		t.Errorf("boot %v", doc["Boot"])
	}
}
