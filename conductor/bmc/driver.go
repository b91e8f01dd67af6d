package bmc

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/slipway-metal/slipway/conductor/bmc/internal/guard"
)

// Driver is a hardware type.
type Driver struct {
	Name string
	// Properties are the keys of driver_info, with what they mean, for
	// GET /v1/drivers/X/properties.
	Properties map[string]string
	// Secrets are the keys that hold passwords.
	Secrets []string
	// Open checks info and returns a BMC; it sends nothing.
	Open func(info map[string]any, opt Options) (BMC, error)
}

// Registry holds drivers by name.
type Registry struct{ drivers map[string]Driver }

// NewRegistry returns a registry of drivers; a name given twice is a programmer's error.
func NewRegistry(drivers ...Driver) *Registry {
	r := &Registry{drivers: map[string]Driver{}}
	for _, d := range drivers {
		if _, ok := r.drivers[d.Name]; ok {
			panic("bmc: driver " + d.Name + " given twice")
		}
		r.drivers[d.Name] = d
	}
	return r
}

// Builtin is the registry of all drivers of this package.
func Builtin() *Registry { return NewRegistry(redfishDriver(), fakeDriver(), manualDriver()) }

// Names lists the drivers, sorted.
func (r *Registry) Names() []string { return slices.Sorted(maps.Keys(r.drivers)) }

// Driver returns the driver with that name; the error lists those there are.
func (r *Registry) Driver(name string) (Driver, error) {
	d, ok := r.drivers[name]
	if !ok {
		return Driver{}, fmt.Errorf("%w: no driver %q: use one of %s", ErrInvalid, name, strings.Join(r.Names(), ", "))
	}
	return d, nil
}

// Open checks info and opens a BMC.
func (r *Registry) Open(driver string, info map[string]any, opt Options) (BMC, error) {
	d, err := r.Driver(driver)
	if err != nil {
		return nil, err
	}
	return d.Open(info, opt.withDefaults())
}

// Open is Builtin().Open with default options.
func Open(driver string, info map[string]any) (BMC, error) {
	return Builtin().Open(driver, info, Options{})
}

// Properties describes a built-in driver's driver_info, key → meaning.
func Properties(driver string) (map[string]string, error) {
	d, err := Builtin().Driver(driver)
	if err != nil {
		return nil, err
	}
	return maps.Clone(d.Properties), nil
}

// guards holds one guard an address, so that all who talk to it share its turn,
// its breaker and its login verdicts.
type guards struct {
	mu     sync.Mutex
	byAddr map[string]*guard.Guard
}

func newGuards() *guards { return &guards{byAddr: map[string]*guard.Guard{}} }

func (g *guards) of(address string, t Timeouts) *guard.Guard {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byAddr[address] == nil {
		g.byAddr[address] = guard.New(BreakerFailures, t.BreakerOpen, t.LoginRetry)
	}
	return g.byAddr[address]
}

// fields reads driver_info with errors that name the key.
type fields struct {
	driver string
	info   map[string]any
}

func (f fields) bad(key, format string, args ...any) error {
	return &InfoError{Driver: f.driver, Key: key, Problem: fmt.Sprintf(format, args...)}
}

// str reads an optional string. The value is not shown in the error: it may be a secret.
func (f fields) str(key string) (string, error) {
	switch v := f.info[key].(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	default:
		return "", f.bad(key, "must be a string, not %s", kind(v))
	}
}

func (f fields) oneOf(key, def string, allowed ...string) (string, error) {
	v, err := f.str(key)
	switch {
	case err != nil:
		return "", err
	case v == "":
		return def, nil
	case !slices.Contains(allowed, v):
		return "", f.bad(key, "is %q; use one of %s", v, strings.Join(allowed, ", "))
	}
	return v, nil
}

// kind names a decoded JSON value's type.
func kind(v any) string {
	switch v.(type) {
	case bool:
		return "a boolean"
	case float64, int, int64:
		return "a number"
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return fmt.Sprintf("a %T", v)
}
