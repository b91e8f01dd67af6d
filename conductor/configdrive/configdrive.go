// Package configdrive makes the small volume by which a deployed system learns
// who it is (host name, SSH keys, network, user data): OpenStack's config
// drive, an ISO 9660 volume labelled config-2, laid out as Ironic lays it out.
// cloud-init reads it as its ConfigDrive data source. NoCloud's files are not
// on it: cloud-init looks for those on a volume labelled cidata only.
//
// What goes in may be secret: no error of this package quotes it.
package configdrive

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/slipway-metal/slipway/agent/image"
)

// Label is the volume's label, which cloud-init looks for.
const Label = "config-2"

// MaxEncoded is the longest encoded drive, in bytes: it travels in one command
// to the agent, whose body may have 8 MiB.
const MaxEncoded = 6 << 20

// versions are the directories that hold the same files, as Ironic's.
var versions = []string{"openstack/2012-08-10", "openstack/latest"}

// Options say what is on a drive. The zero value of a field leaves it out,
// but UUID (or MetaData's uuid), without which cloud-init refuses the drive.
type Options struct {
	UUID     string // instance id; a new one makes cloud-init run again
	Name     string
	Hostname string
	SSHKeys  []string // authorized_keys lines
	// MetaData are further fields of meta_data.json; they win over those above.
	MetaData map[string]any
	// UserData is handed on as it is: a script or #cloud-config.
	UserData []byte
	// NetworkData is OpenStack's network_data.json: links, networks, services.
	NetworkData map[string]any
	VendorData  map[string]any
}

// metaData is meta_data.json's content.
func (o Options) metaData() (map[string]any, error) {
	m := map[string]any{}
	for k, v := range map[string]string{"uuid": o.UUID, "name": o.Name, "hostname": o.Hostname} {
		if v != "" {
			m[k] = v
		}
	}
	if len(o.SSHKeys) > 0 {
		keys := map[string]string{}
		for i, k := range o.SSHKeys {
			if strings.ContainsAny(k, "\r\n") {
				return nil, fmt.Errorf("config drive: SSH key %d has a line break: give one key an entry", i+1)
			}
			keys[fmt.Sprintf("key-%d", i)] = k
		}
		m["public_keys"] = keys
	}
	maps.Copy(m, o.MetaData)
	if id, _ := m["uuid"].(string); id == "" {
		return nil, errors.New("config drive: meta_data has no uuid, without which cloud-init refuses the drive: give the instance's or node's UUID")
	}
	return m, nil
}

// Build makes the volume. The same options give the same bytes.
func Build(o Options) ([]byte, error) {
	meta, err := o.metaData()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for name, v := range map[string]map[string]any{"meta_data.json": meta, "network_data.json": o.NetworkData, "vendor_data.json": o.VendorData} {
		if v == nil {
			continue
		}
		b, err := json.Marshal(v)
		if err != nil { // the marshaller's error may quote a value
			return nil, fmt.Errorf("config drive: %s holds a value that JSON cannot express", name)
		}
		files[name] = b
	}
	if len(o.UserData) > 0 {
		files["user_data"] = o.UserData
	}
	all := map[string][]byte{}
	total := 0
	for _, dir := range versions {
		for name, data := range files {
			all[dir+"/"+name] = data
		}
	}
	for _, data := range files {
		total += len(data)
	}
	if total > image.MaxConfigDrive-1<<20 {
		return nil, fmt.Errorf("config drive: %d bytes of content, at most %d fit", total, image.MaxConfigDrive-1<<20)
	}
	return writeISO(Label, all)
}

// Drive is a config drive as the agent gets it: a volume, or where to fetch one.
type Drive struct {
	ISO []byte // nil when there is only a URL
	URL string
}

// Encode gives the form in which Ironic hands a drive to its agent: base64 of
// the gzipped volume, or the URL. The same drive gives the same text.
func (d Drive) Encode() (string, error) {
	if d.ISO == nil {
		return d.URL, nil
	}
	return Encode(d.ISO)
}

// Encode is base64 of the gzipped volume.
func Encode(iso []byte) (string, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return "", fmt.Errorf("config drive: %w", err)
	}
	if _, err := z.Write(iso); err != nil {
		return "", fmt.Errorf("config drive: %w", err)
	}
	if err := z.Close(); err != nil {
		return "", fmt.Errorf("config drive: %w", err)
	}
	s := base64.StdEncoding.EncodeToString(b.Bytes())
	if len(s) > MaxEncoded {
		return "", fmt.Errorf("config drive: %d bytes when encoded, at most %d can be sent to the agent: serve it from a URL or shrink user_data", len(s), MaxEncoded)
	}
	return s, nil
}

// Decode is the inverse of Encode, with its checks.
func Decode(s string) ([]byte, error) { return image.DecodeConfigDrive(s) }

// Normalize reads the forms that Ironic's configdrive field has: nil or "",
// an object {meta_data, user_data, network_data, vendor_data}, base64 of a
// gzipped volume, or a URL. An object is completed by the defaults and built;
// a nil value with defaults that name an instance becomes a drive of those.
func Normalize(v any, defaults Options) (Drive, error) {
	switch v := v.(type) {
	case nil:
		return fromDefaults(defaults)
	case string:
		return fromString(v, defaults)
	case map[string]any:
		return fromObject(v, defaults)
	}
	return Drive{}, fmt.Errorf("config drive: a %T: want an object, a URL, or base64 of a gzipped ISO", v)
}

func fromDefaults(o Options) (Drive, error) {
	iso, err := Build(o)
	return Drive{ISO: iso}, err
}

func fromString(s string, defaults Options) (Drive, error) {
	if s == "" {
		return fromDefaults(defaults)
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || scheme != "http" && scheme != "https" {
			return Drive{}, errors.New("config drive: its URL is not http or https")
		}
		return Drive{URL: s}, nil
	}
	if len(s) > MaxEncoded {
		return Drive{}, fmt.Errorf("config drive: %d bytes when encoded, at most %d can be sent to the agent: serve it from a URL", len(s), MaxEncoded)
	}
	iso, err := Decode(s)
	return Drive{ISO: iso}, err
}

func fromObject(v map[string]any, o Options) (Drive, error) {
	known := []string{"meta_data", "network_data", "user_data", "vendor_data"}
	for _, k := range slices.Sorted(maps.Keys(v)) {
		if !slices.Contains(known, k) {
			return Drive{}, fmt.Errorf("config drive: unknown field %.40q: want %s", k, strings.Join(known, ", "))
		}
	}
	var err error
	object := func(key string, into *map[string]any) {
		switch x := v[key].(type) {
		case nil:
		case map[string]any:
			*into = x
		default:
			err = errors.Join(err, fmt.Errorf("config drive: %s is a %T, want an object", key, x))
		}
	}
	object("meta_data", &o.MetaData)
	object("network_data", &o.NetworkData)
	object("vendor_data", &o.VendorData)
	switch x := v["user_data"].(type) {
	case nil:
	case string:
		o.UserData = []byte(x)
	case map[string]any, []any:
		b, e := json.Marshal(x)
		if e != nil {
			err = errors.Join(err, errors.New("config drive: user_data holds a value that JSON cannot express"))
		}
		o.UserData = b
	default:
		err = errors.Join(err, fmt.Errorf("config drive: user_data is a %T, want text, an object or a list", x))
	}
	if err != nil {
		return Drive{}, err
	}
	return fromDefaults(o)
}
