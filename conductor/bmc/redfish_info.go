package bmc

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

const redfishName = "redfish"

// redfishProperties are Ironic 39's keys with its meanings, and redfish_quirks, ours.
var redfishProperties = map[string]string{
	"redfish_address": "The URL address to the Redfish controller. It must include the authority portion of the URL. If the scheme is missing, " +
		"https is assumed. For example: https://mgmt.vendor.com. If a path is added, it will be used as the API endpoint root_prefix. Required",
	"redfish_system_id": "The canonical path to the ComputerSystem resource that the driver will interact with, for example: /redfish/v1/Systems/1. " +
		"Only required if the target BMC manages more than one ComputerSystem.",
	"redfish_username": "User account with admin/server-profile access privilege. Although this property is not mandatory it's highly recommended to set a username. Optional",
	"redfish_password": "User account password. Although this property is not mandatory, it's highly recommended to set a password. Optional",
	"redfish_verify_ca": "Either a Boolean value, a path to a CA_BUNDLE file or directory with certificates of trusted CAs. If set to True the driver will verify " +
		"the host certificates; if False the driver will ignore verifying the SSL certificate. Defaults to True. Optional",
	"redfish_auth_type":           "Redfish HTTP client authentication method. Can be \"basic\", \"session\" or \"auto\". Defaults to auto: a session where the BMC offers one, else basic. Optional",
	"redfish_tls_minimum_version": "Minimum TLS protocol version for connections to the Redfish BMC. Can be \"1.1\", \"1.2\", or \"1.3\". Defaults to 1.2. Optional",
	"redfish_quirks": "Known deviations of this BMC that Slipway does not find out by itself, separated by commas: " + strings.Join(quirkNames(), ", ") +
		". Optional, Slipway's own",
}

// redfishInfo is a checked driver_info.
type redfishInfo struct {
	endpoint string // scheme://host[:port]
	address  string // host[:port], for errors
	root     string // path of the service root, with both slashes
	system   string // path of the ComputerSystem, or "" to find the only one
	username string
	password Secret
	auth     string // auto, session, basic
	tls      *tls.Config
	quirks   []string
}

func parseRedfish(info map[string]any) (redfishInfo, error) {
	f := fields{redfishName, info}
	var in redfishInfo
	var password string
	if err := errors.Join(
		in.setAddress(f),
		setString(&in.system, f, "redfish_system_id"),
		setString(&in.username, f, "redfish_username"),
		setString(&password, f, "redfish_password"),
		in.setTLS(f),
		in.setQuirks(f),
	); err != nil {
		return redfishInfo{}, err
	}
	in.password = NewSecret(password)
	var err error
	if in.auth, err = f.oneOf("redfish_auth_type", "auto", "basic", "session", "auto"); err != nil {
		return redfishInfo{}, err
	}
	if in.system != "" && !strings.HasPrefix(in.system, "/") {
		return redfishInfo{}, f.bad("redfish_system_id", "is %q; it must be the path of a ComputerSystem, such as /redfish/v1/Systems/1", in.system)
	}
	if in.system != "" {
		in.system = (&url.URL{Path: strings.TrimSuffix(in.system, "/")}).EscapedPath()
	}
	switch {
	case in.username == "" && password != "":
		return redfishInfo{}, f.bad("redfish_username", "is missing, though redfish_password is set")
	case in.username != "" && password == "":
		return redfishInfo{}, f.bad("redfish_password", "is missing, though redfish_username is set")
	}
	return in, nil
}

func setString(to *string, f fields, key string) (err error) {
	*to, err = f.str(key)
	return err
}

func (in *redfishInfo) setAddress(f fields) error {
	const key = "redfish_address"
	raw, err := f.str(key)
	if err != nil {
		return err
	}
	if raw == "" {
		return f.bad(key, "is missing; give the BMC's URL, such as https://bmc.example.com")
	}
	// A bare IPv6 address is accepted, as Ironic does.
	if a, err := netip.ParseAddr(raw); err == nil && a.Is6() {
		raw = "[" + raw + "]"
	}
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil: // not shown: it quotes the URL, which may hold a password
		return f.bad(key, "is not a URL; give something like https://bmc.example.com")
	case u.User != nil:
		return f.bad(key, "holds a user name or password; put them into redfish_username and redfish_password")
	case u.Scheme != "http" && u.Scheme != "https":
		return f.bad(key, "has the scheme %q; use https or http", u.Scheme)
	case u.Hostname() == "":
		return f.bad(key, "has no host; give something like https://bmc.example.com")
	case u.RawQuery != "" || u.Fragment != "":
		return f.bad(key, "has a query or a fragment; give scheme, host and port only")
	}
	in.address = strings.ToLower(u.Host)
	if u.Port() == "" {
		in.address = strings.Trim(in.address, "[]")
	}
	in.endpoint = u.Scheme + "://" + strings.ToLower(u.Host)
	in.root = "/redfish/v1/"
	if p := strings.Trim(u.Path, "/"); p != "" {
		in.root = "/" + p + "/"
	}
	return nil
}

// key is what shared guards go by: the same controller has the same key.
func (in *redfishInfo) key() string {
	host, port, err := net.SplitHostPort(strings.SplitN(in.endpoint, "://", 2)[1])
	if err != nil {
		host, port = in.address, "443"
		if strings.HasPrefix(in.endpoint, "http://") {
			port = "80"
		}
	}
	return net.JoinHostPort(host, port)
}

func (in *redfishInfo) setTLS(f fields) error {
	version, err := f.oneOf("redfish_tls_minimum_version", "1.2", "1.1", "1.2", "1.3")
	if err != nil {
		return err
	}
	if f.info["redfish_tls_ciphers"] != nil {
		return f.bad("redfish_tls_ciphers", "is not supported: cipher suites are Go's; set redfish_tls_minimum_version instead")
	}
	in.tls = &tls.Config{MinVersion: map[string]uint16{"1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[version]}
	const key = "redfish_verify_ca"
	switch v := f.info[key].(type) {
	case nil:
	case bool:
		in.tls.InsecureSkipVerify = !v
	case string:
		switch strings.ToLower(v) { // what oslo's bool_from_string accepts
		case "true", "t", "yes", "y", "on", "1":
		case "false", "f", "no", "n", "off", "0":
			in.tls.InsecureSkipVerify = true
		default:
			in.tls.RootCAs, err = loadCAs(v)
			if err != nil {
				return f.bad(key, "%v", err)
			}
		}
	default:
		return f.bad(key, "must be a boolean or the path of a CA file or directory, not %s", kind(v))
	}
	return nil
}

// loadCAs reads a PEM file, or every file of a directory. Errors never quote contents.
func loadCAs(path string) (*x509.CertPool, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, errors.New("is neither a boolean nor a readable file or directory of CA certificates")
	}
	files := []string{path}
	if st.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "*")); err != nil {
			return nil, err
		}
	}
	pool, found := x509.NewCertPool(), false
	for _, file := range files {
		if st, err := os.Stat(file); err != nil || !st.Mode().IsRegular() || st.Size() > 4<<20 {
			continue
		}
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, errors.New("cannot be read")
		}
		found = pool.AppendCertsFromPEM(pem) || found
	}
	if !found {
		return nil, errors.New("has no PEM certificates")
	}
	return pool, nil
}

func (in *redfishInfo) setQuirks(f fields) error {
	raw, err := f.str("redfish_quirks")
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(raw, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if _, ok := quirkNamed(name); !ok {
			return f.bad("redfish_quirks", "has %q; use some of %s", name, strings.Join(quirkNames(), ", "))
		}
		in.quirks = append(in.quirks, name)
	}
	return nil
}
