package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stmcginnis/gofish"
	schema "github.com/stmcginnis/gofish/redfish"

	"github.com/slipway-metal/slipway/conductor/bmc/internal/guard"
	"github.com/slipway-metal/slipway/conductor/bmc/internal/safehttp"
)

// answerLimit bounds one answer of a BMC. The largest ones known (message
// registries, which are not read here) are near 1 MB.
const answerLimit = 4 << 20

func redfishDriver() Driver {
	return Driver{
		Name: redfishName, Properties: redfishProperties, Secrets: []string{"redfish_password"},
		Open: func(info map[string]any, opt Options) (BMC, error) {
			in, err := parseRedfish(info)
			if err != nil {
				return nil, err
			}
			r := &redfish{
				in: in, opt: opt, guard: opt.shared.of(in.key(), opt.Timeouts),
				http: safehttp.New(opt.Timeouts.Request, answerLimit, in.tls),
			}
			r.http.Rewrite = r.rewrite
			return r, nil
		},
	}
}

// redfish is a BMC that speaks Redfish. gofish does the HTTP, the sessions and
// the errors; resources are decoded here, only the fields that matter: a wrong
// type in a field that nobody needs (BMCs have many) must not stop a power-off.
type redfish struct {
	in    redfishInfo
	opt   Options
	guard *guard.Guard

	// Under the guard's turn:
	http      *safehttp.Client
	api       *gofish.APIClient // nil: not connected
	session   string            // path of our session, "" for basic or none
	rootBasic bool              // this BMC wants credentials for the service root too
	system    string            // path, once found
}

var (
	_ Power        = (*redfish)(nil)
	_ BootDevice   = (*redfish)(nil)
	_ Identity     = (*redfish)(nil)
	_ VirtualMedia = (*redfish)(nil)
)

// Driver implements BMC.
func (r *redfish) Driver() string { return redfishName }

// Address implements BMC.
func (r *redfish) Address() string { return r.in.address }

// Close implements BMC: it ends the session.
func (r *redfish) Close(ctx context.Context) error {
	return r.call(ctx, "log out", func() error {
		if r.api != nil && r.session != "" {
			resp, err := r.api.Delete(r.session)
			if err == nil {
				err = resp.Body.Close()
			}
			if s := status(err); err != nil && s != http.StatusNotFound && s != http.StatusUnauthorized {
				return err
			}
		}
		r.disconnect()
		r.http.CloseIdle()
		return nil
	})
}

// credentials changes with what a login depends on.
func (r *redfish) credentials() string {
	return strings.Join([]string{r.in.username, r.in.password.Reveal(), r.in.auth}, "\x00")
}

// call takes its turn at the BMC and makes an *Error of what goes wrong.
func (r *redfish) call(ctx context.Context, op string, f func() error) error {
	err := r.guard.Do(ctx, r.credentials(), func(ctx context.Context) (guard.Outcome, error) {
		r.http.Use(ctx)
		defer r.http.Use(context.Background())
		err := r.explain(op, f())
		return outcome(ctx, err), err
	})
	return r.explain(op, err)
}

// do is call with a connection; an expired session is renewed once.
func (r *redfish) do(ctx context.Context, op string, f func() error) error {
	return r.call(ctx, op, func() error {
		fresh := r.api == nil
		if err := r.connect(); err != nil {
			return err
		}
		err := f()
		if status(err) != http.StatusUnauthorized {
			return err
		}
		had := r.session
		r.disconnect()
		if fresh || had == "" {
			return err
		}
		if err := r.connect(); err != nil {
			return err
		}
		return f()
	})
}

func (r *redfish) disconnect() { r.api, r.session = nil, "" }

// rewrite sends the first request to the service root that driver_info names, and
// gives it credentials where the BMC wants them there.
func (r *redfish) rewrite(req *http.Request) {
	if req.URL.Path == "/redfish/v1/" {
		req.URL.Path = r.in.root
	}
	if r.rootBasic && req.Header.Get("X-Auth-Token") == "" && req.Header.Get("Authorization") == "" {
		req.SetBasicAuth(r.in.username, r.in.password.Reveal())
	}
}

func (r *redfish) open(cfg gofish.ClientConfig) (*gofish.APIClient, error) {
	cfg.Endpoint, cfg.HTTPClient = r.in.endpoint, r.http.HTTP()
	return gofish.Connect(cfg)
}

// connect opens a session, or settles for basic authentication where the BMC has
// no session to give (auth type auto).
func (r *redfish) connect() error {
	if r.api != nil {
		return nil
	}
	api, err := r.open(gofish.ClientConfig{})
	if status(err) == http.StatusUnauthorized && r.in.username != "" && !r.rootBasic {
		// No login has failed yet: the request had no credentials.
		r.rootBasic = true
		api, err = r.open(gofish.ClientConfig{})
	}
	if err != nil {
		return err
	}
	if r.in.username == "" {
		r.api = api
		return nil
	}
	user, password := r.in.username, r.in.password.Reveal()
	if r.in.auth != "basic" {
		token, err := r.login(api)
		switch {
		case err == nil && token.Token != "" && token.Session != "":
			api, err = r.open(gofish.ClientConfig{Session: &gofish.Session{ID: token.Session, Token: token.Token}})
			if err == nil {
				r.api, r.session = api, token.Session
			}
			return err
		case err == nil:
			err = fmt.Errorf("%w: the BMC opened one and gave no token for it", errNoSession)
		}
		if r.in.auth == "session" || !noSession(err) {
			return err
		}
		r.opt.Logger.Info("no session at this BMC, using basic authentication", "bmc", r.in.address, "cause", r.words(err))
	}
	r.api, err = r.open(gofish.ClientConfig{Username: user, Password: password, BasicAuth: true})
	return err
}

var errNoSession = errors.New("no session")

// login opens a session.
func (r *redfish) login(api *gofish.APIClient) (*schema.AuthToken, error) {
	var root struct {
		Links struct{ Sessions ref }
	}
	if _, err := r.getBy(api, "/redfish/v1/", &root); err != nil {
		return nil, err
	}
	if root.Links.Sessions.ID == "" {
		return nil, fmt.Errorf("%w: the service root links none", errNoSession)
	}
	return api.Service.CreateSession(r.in.username, r.in.password.Reveal())
}

// noSession tells a BMC without (free) sessions from one that refuses us.
func noSession(err error) bool {
	if errors.Is(err, errNoSession) {
		return true
	}
	switch status(err) {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	}
	for _, id := range messageIDs(err) {
		if strings.HasSuffix(id, ".SessionLimitExceeded") {
			return true
		}
	}
	return false
}

// get decodes the resource at path and returns its ETag.
func (r *redfish) get(path string, out any) (etag string, err error) {
	return r.getBy(r.api, path, out)
}

func (r *redfish) getBy(api *gofish.APIClient, path string, out any) (etag string, err error) {
	resp, err := api.Get(path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	err = json.NewDecoder(resp.Body).Decode(out)
	var field *json.UnmarshalTypeError
	if errors.As(err, &field) && field.Field != "" {
		// The other fields are decoded; this one stays empty.
		r.opt.Logger.Warn("BMC sends a field of the wrong type", "bmc", r.in.address, "path", path, "field", field.Field)
		err = nil
	}
	if err != nil {
		return "", &notRedfishError{path, err}
	}
	return resp.Header.Get("ETag"), nil
}

// post invokes an action. The answer's body is not read: what counts is read back.
func (r *redfish) post(path string, body any) error {
	return drain(r.api.Post(path, body))
}

// patch changes a resource, if it is still the one that etag was read from. A BMC
// that refuses its own ETag (several do; sushy has the same way out) is asked again without.
func (r *redfish) patch(path, etag string, body any) error {
	var header map[string]string
	if etag != "" {
		header = map[string]string{"If-Match": etag}
	}
	err := drain(r.api.PatchWithHeaders(path, body, header))
	if status(err) == http.StatusPreconditionFailed && etag != "" {
		err = drain(r.api.Patch(path, body))
	}
	return err
}

// drain ends an exchange whose answer is not read.
func drain(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// poll calls f until it says done, fails, or limit passes; then done is false.
// Calls that find the BMC away for a moment are repeated: BMCs restart services
// while a machine's power changes.
func (r *redfish) poll(ctx context.Context, limit time.Duration, f func() (done bool, err error)) (done bool, err error) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for wait := r.opt.Timeouts.Poll; ; wait = min(wait*3/2, 10*r.opt.Timeouts.Poll) {
		done, err = f()
		if done || err != nil && !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrTimeout) {
			return done, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-deadline.C:
			t.Stop()
			return false, err
		case <-ctx.Done():
			t.Stop()
			return false, ctx.Err()
		}
	}
}

// system fields that the driver uses, of DSP0268's ComputerSystem.
type system struct {
	path, etag string
	behaviour  behaviour

	PowerState                        string
	Manufacturer, Model, SerialNumber string
	SKU, UUID, BiosVersion            string
	LastResetTime                     string
	Boot                              struct {
		Enabled        string   `json:"BootSourceOverrideEnabled"`
		Target         string   `json:"BootSourceOverrideTarget"`
		Mode           string   `json:"BootSourceOverrideMode"`
		AllowedTargets []string `json:"BootSourceOverrideTarget@Redfish.AllowableValues"`
		AllowedEnabled []string `json:"BootSourceOverrideEnabled@Redfish.AllowableValues"`
	}
	ProcessorSummary   struct{ Count json.Number }
	MemorySummary      struct{ TotalSystemMemoryGiB json.Number }
	EthernetInterfaces ref
	VirtualMedia       ref
	Links              struct{ ManagedBy []ref }
	Actions            struct {
		Reset struct {
			Target  string   `json:"target"`
			Allowed []string `json:"ResetType@Redfish.AllowableValues"`
		} `json:"#ComputerSystem.Reset"`
	}
}

type ref struct {
	ID string `json:"@odata.id"`
}

type members struct{ Members []ref }

// readSystem reads our ComputerSystem, finding it first. Call it in do.
func (r *redfish) readSystem() (*system, error) {
	if r.system == "" {
		path, err := r.findSystem()
		if err != nil {
			return nil, err
		}
		r.system = path
	}
	s := &system{path: r.system}
	var err error
	if s.etag, err = r.get(r.system, s); err != nil {
		if status(err) == http.StatusNotFound {
			return nil, &InfoError{redfishName, "redfish_system_id", fmt.Sprintf("%s does not exist at BMC %s", r.system, r.in.address)}
		}
		return nil, err
	}
	s.behaviour, _ = behaviourOf(s.Manufacturer, r.in.quirks)
	return s, nil
}

func (r *redfish) findSystem() (string, error) {
	if r.in.system != "" {
		return r.in.system, nil
	}
	var root struct{ Systems ref }
	if _, err := r.get("/redfish/v1/", &root); err != nil {
		return "", err
	}
	if root.Systems.ID == "" {
		return "", &notRedfishError{r.in.root, errors.New("the service root links no Systems")}
	}
	var list members
	if _, err := r.get(root.Systems.ID, &list); err != nil {
		return "", err
	}
	var paths []string
	for _, m := range list.Members {
		paths = append(paths, clean(m.ID))
	}
	slices.Sort(paths)
	switch len(paths) {
	case 1:
		return list.Members[0].ID, nil
	case 0:
		return "", &notRedfishError{root.Systems.ID, errors.New("the BMC shows no systems; a chassis controller may show them only when the blade is seated")}
	}
	return "", &InfoError{redfishName, "redfish_system_id", fmt.Sprintf("is missing, and BMC %s has several systems; use one of %s", r.in.address, strings.Join(paths, ", "))}
}
