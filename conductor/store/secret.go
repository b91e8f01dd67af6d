package store

import (
	"slices"
	"strings"
	"unicode"

	"github.com/slipway-metal/slipway/proto/ironic"
)

// Masked stands in replies and logs where a secret is (Ironic's spelling).
const Masked = ironic.Mask

// secretWords make a key secret wherever they occur in it, case and separators
// aside. They are wider than those of oslo.utils' mask_dict_password, never
// narrower in what nodes carry.
var secretWords = []string{
	"password", "passwd", "pswd", "passphrase", "adminpass", "secret", "token", "configdrive", "credential", "chap", "community",
	"privatekey", "privkey", "authkey", "sslkey", "sshkeycontents", "encryptedkey",
}

var joiner = strings.NewReplacer("_", "", "-", "", ".", "", " ", "")

// HasSecretWord says whether a key names a secret by one of the usual words. It is
// the rule for dictionaries that are the users' own (extra, properties), where a
// mere "key" is more often a name than a secret.
func HasSecretWord(key string) bool {
	joined := strings.ToLower(joiner.Replace(key))
	return slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(joined, w) })
}

// IsSecret says whether the value under a key of driver_info, instance_info or
// driver_internal_info is a secret: sealed at rest, masked in replies. A key is
// secret when it contains one of the usual words, or when one of its parts ends
// in "key" (snmp_auth_key, ipmi_hex_kg_key, sslKey) and none says it is public.
func IsSecret(key string) bool {
	if HasSecretWord(key) {
		return true
	}
	isKey := false
	for _, part := range parts(key) {
		switch {
		case part == "public" || part == "pub":
			return false
		case strings.HasSuffix(part, "key") || strings.HasSuffix(part, "keys"):
			isKey = true
		}
	}
	return isKey
}

// parts splits snake_case, kebab-case and camelCase into lower-case words.
func parts(key string) []string {
	var out []string
	var word strings.Builder
	flush := func() {
		if word.Len() > 0 {
			out = append(out, strings.ToLower(word.String()))
			word.Reset()
		}
	}
	lower := false
	for _, r := range key {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			flush()
			lower = false
			continue
		case unicode.IsUpper(r) && lower:
			flush()
		}
		lower = unicode.IsLower(r)
		word.WriteRune(r)
	}
	flush()
	return out
}

// Mask returns a copy of m with Masked in place of every secret by the given rule,
// at any depth. An empty secret stays empty: it hides nothing and says that none
// is set.
func Mask(m map[string]any, secret func(key string) bool) map[string]any {
	if m == nil {
		return nil
	}
	out := make(map[string]any, len(m))
	for k, v := range m {
		if secret(k) && v != nil && v != "" {
			out[k] = Masked
			continue
		}
		out[k] = mask(v, secret)
	}
	return out
}

func mask(v any, secret func(string) bool) any {
	switch v := v.(type) {
	case map[string]any:
		return Mask(v, secret)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = mask(v[i], secret)
		}
		return out
	default:
		return v
	}
}

// HasSecret says whether a value has a secret key anywhere in it.
func HasSecret(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			if IsSecret(k) || HasSecret(inner) {
				return true
			}
		}
	case []any:
		for _, inner := range v {
			if HasSecret(inner) {
				return true
			}
		}
	}
	return false
}
