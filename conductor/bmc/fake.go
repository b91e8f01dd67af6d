package bmc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const fakeName = "fake-hardware"

func fakeDriver() Driver {
	return Driver{
		Name: fakeName,
		Properties: map[string]string{
			"fake_power_delay":      "Seconds that each power call takes. Optional, default 0",
			"fake_management_delay": "Seconds that each other call takes. Optional, default 0",
			"fake_failures": "Calls that fail: operation=class or operation=class:times, separated by commas. Operations: " + strings.Join(fakeOps, ", ") +
				". Classes: " + strings.Join(slices.Sorted(maps.Keys(fakeClasses)), ", ") + ". Example: set-power=ignored:1. Optional",
		},
		Open: openFake,
	}
}

var fakeOps = []string{"power-state", "set-power", "boot-device", "set-boot-device", "identity", "media"}

var fakeClasses = map[string]error{
	"refused": ErrRefused, "unreachable": ErrUnreachable, "timeout": ErrTimeout,
	"ignored": ErrIgnored, "unsupported": ErrUnsupported, "failed": ErrFailed,
}

// fake is a machine that exists in the conductor's memory only.
type fake struct {
	opt         Options
	name        string
	power, rest time.Duration

	mu       sync.Mutex
	boot     Boot
	media    string
	failures map[string]*fakeFailure
}

type fakeFailure struct {
	class error
	left  int // -1: for ever
}

var (
	_ Power        = (*fake)(nil)
	_ BootDevice   = (*fake)(nil)
	_ Identity     = (*fake)(nil)
	_ VirtualMedia = (*fake)(nil)
)

func openFake(info map[string]any, opt Options) (BMC, error) {
	in := fields{fakeName, info}
	f := &fake{opt: opt, name: orName(opt.name, "fake"), failures: map[string]*fakeFailure{}}
	var err error
	if f.power, err = seconds(in, "fake_power_delay"); err != nil {
		return nil, err
	}
	if f.rest, err = seconds(in, "fake_management_delay"); err != nil {
		return nil, err
	}
	const key = "fake_failures"
	text, err := in.str(key)
	if err != nil {
		return nil, err
	}
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		op, rest, _ := strings.Cut(item, "=")
		class, times, limited := strings.Cut(rest, ":")
		fail := &fakeFailure{class: fakeClasses[class], left: -1}
		if limited {
			if fail.left, err = strconv.Atoi(times); err != nil || fail.left < 1 {
				return nil, in.bad(key, "has %q; the number of times must be 1 or more", item)
			}
		}
		if !slices.Contains(fakeOps, op) || fail.class == nil {
			return nil, in.bad(key, "has %q; write operation=class with an operation of %s and a class of %s", item,
				strings.Join(fakeOps, ", "), strings.Join(slices.Sorted(maps.Keys(fakeClasses)), ", "))
		}
		f.failures[op] = fail
	}
	return f, nil
}

// seconds reads a number, or a string that holds one, as the command line sends it.
func seconds(in fields, key string) (time.Duration, error) {
	var n float64
	switch v := in.info[key].(type) {
	case nil:
	case float64:
		n = v
	case int:
		n = float64(v)
	case string:
		var err error
		if n, err = strconv.ParseFloat(v, 64); err != nil {
			return 0, in.bad(key, "is %q; give a number of seconds", v)
		}
	default:
		return 0, in.bad(key, "must be a number of seconds, not %s", kind(v))
	}
	if !(n >= 0 && n <= 3600) {
		return 0, in.bad(key, "must be from 0 to 3600 seconds")
	}
	return time.Duration(n * float64(time.Second)), nil
}

// Driver implements BMC.
func (f *fake) Driver() string { return fakeName }

// Address implements BMC.
func (f *fake) Address() string { return f.name }

// Close implements BMC.
func (f *fake) Close(context.Context) error { return nil }

// call waits, then fails as driver_info says.
func (f *fake) call(ctx context.Context, op, words string, delay time.Duration) error {
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return &Error{Class: ErrTimeout, Address: f.name, Op: words, Cause: err, Next: "try again"}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fail := f.failures[op]
	if fail == nil || fail.left == 0 {
		return nil
	}
	if fail.left > 0 {
		fail.left--
	}
	return &Error{
		Class: fail.class, Address: f.name, Op: words,
		Cause: errors.New("driver_info/fake_failures says so"), Next: "change driver_info/fake_failures",
	}
}

// PowerState implements Power.
func (f *fake) PowerState(ctx context.Context) (PowerState, error) {
	if err := f.call(ctx, "power-state", "read power state", f.power); err != nil {
		return PowerUnknown, err
	}
	return recorded(ctx, f.opt.Power, f.name)
}

// SetPower implements Power.
func (f *fake) SetPower(ctx context.Context, a Action) error {
	if err := f.call(ctx, "set-power", string(a), f.power); err != nil {
		return err
	}
	if err := record(ctx, f.opt.Power, f.name, a); err != nil {
		return err
	}
	if a.Target() == PowerOn {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.boot.Persistent {
			f.boot = Boot{}
		}
	}
	return nil
}

// BootDevice implements the BootDevice capability.
func (f *fake) BootDevice(ctx context.Context) (Boot, error) {
	if err := f.call(ctx, "boot-device", "read boot device", f.rest); err != nil {
		return Boot{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.boot, nil
}

// SetBootDevice implements the BootDevice capability.
func (f *fake) SetBootDevice(ctx context.Context, dev Device, persistent bool) error {
	b := Boot{dev, persistent && dev != DeviceDefault}
	op := "boot from " + b.String()
	if _, ok := bootSources[dev]; !ok {
		return &Error{Class: ErrInvalid, Address: f.name, Op: op, Cause: fmt.Errorf("no boot device %q", dev)}
	}
	if err := f.call(ctx, "set-boot-device", op, f.rest); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boot = b
	return nil
}

// BootDevices implements the BootDevice capability.
func (f *fake) BootDevices(context.Context) ([]Device, error) {
	return []Device{DeviceBIOS, DeviceCDROM, DeviceDisk, DevicePXE, DeviceUEFIHTTP}, nil
}

// Identity implements the Identity capability.
func (f *fake) Identity(ctx context.Context) (Facts, error) {
	if err := f.call(ctx, "identity", "read identity", f.rest); err != nil {
		return Facts{}, err
	}
	return Facts{Serial: f.name, Manufacturer: "Slipway", Model: fakeName}, nil
}

// Media implements VirtualMedia.
func (f *fake) Media(ctx context.Context) (string, error) {
	if err := f.call(ctx, "media", "read virtual medium", f.rest); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.media, nil
}

// InsertMedia implements VirtualMedia.
func (f *fake) InsertMedia(ctx context.Context, url string) error {
	const op = "insert virtual medium"
	if err := checkImageURL(url); err != nil {
		return &Error{Class: ErrInvalid, Address: f.name, Op: op, Cause: err}
	}
	return f.setMedia(ctx, op, url)
}

// EjectMedia implements VirtualMedia.
func (f *fake) EjectMedia(ctx context.Context) error {
	return f.setMedia(ctx, "eject virtual medium", "")
}

func (f *fake) setMedia(ctx context.Context, op, url string) error {
	if err := f.call(ctx, "media", op, f.rest); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.media = url
	return nil
}
