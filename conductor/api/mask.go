package api

import (
	"strings"

	"github.com/slipway-metal/slipway/proto/ironic"
)

// secretWords: a key that contains one of these holds a secret. The list is
// wider than oslo's strutils.mask_dict_password, never narrower in what nodes carry.
var secretWords = []string{
	"password", "passwd", "pswd", "passphrase", "adminpass", "admin_pass", "secret", "token", "configdrive",
	"private_key", "privatekey", "sslkey", "ssh_key_contents", "auth_key", "priv_key", "encrypted_key", "chap", "community", "credential",
}

func secretKey(key string) bool {
	k := strings.ToLower(key)
	for _, w := range secretWords {
		if strings.Contains(k, w) {
			return true
		}
	}
	return false
}

// maskSecrets copies m with every secret, at any depth, replaced. An empty
// secret stays empty: it hides nothing and says that none is set.
func maskSecrets(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		if secretKey(k) && v != nil && v != "" {
			out[k] = ironic.Mask
			continue
		}
		out[k] = maskValue(v)
	}
	return out
}

func maskValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return maskSecrets(v)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = maskValue(e)
		}
		return out
	}
	return v
}

// maskInstance also hides image_url, which may be a temporary URL with its
// signature (Ironic hides it for the same reason).
func maskInstance(m map[string]any) map[string]any {
	out := maskSecrets(m)
	if url, ok := out["image_url"]; ok && url != nil && url != "" {
		out["image_url"] = ironic.Mask
	}
	return out
}

// unmask puts the old secrets back where a client returned the mask it was
// shown, so that read-change-write never destroys a password.
func unmask(now, old map[string]any) {
	for k, v := range now {
		switch v := v.(type) {
		case string:
			if v == ironic.Mask && (secretKey(k) || k == "image_url") {
				if was, ok := old[k]; ok {
					now[k] = was
				}
			}
		case map[string]any:
			if was, ok := old[k].(map[string]any); ok {
				unmask(v, was)
			}
		}
	}
}
