package store

import (
	"strings"
	"unicode"
)

// Masked stands in replies and logs where a secret is (Ironic's spelling).
const Masked = "******"

// secretWords make a key secret wherever they occur in it, case and separators
// aside. They are the ones of oslo.utils' mask_dict_password that BMC drivers use.
var secretWords = []string{"password", "passwd", "passphrase", "pswd", "secret", "token", "credential", "configdrive"}

// IsSecret says whether the value under a key of driver_info, instance_info or
// driver_internal_info is a secret: sealed at rest, masked in replies. A key is
// secret when it contains one of the usual words, or when one of its parts ends
// in "key" (snmp_auth_key, ipmi_hex_kg_key, sslKey) and none says it is public.
func IsSecret(key string) bool {
	joined := strings.ToLower(strings.NewReplacer("_", "", "-", "", ".", "", " ", "").Replace(key))
	for _, w := range secretWords {
		if strings.Contains(joined, w) {
			return true
		}
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

// Mask returns a copy of m with Masked in place of every secret, at any depth.
func Mask(m map[string]any) map[string]any {
	if m == nil {
		return nil
	}
	out := make(map[string]any, len(m))
	for k, v := range m {
		if IsSecret(k) {
			out[k] = Masked
			continue
		}
		out[k] = mask(v)
	}
	return out
}

func mask(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return Mask(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = mask(v[i])
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
