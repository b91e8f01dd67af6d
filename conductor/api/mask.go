package api

import (
	"github.com/slipway-metal/slipway/conductor/store"
)

// masked copies m with its secrets hidden; a dictionary is never null in a reply.
func masked(m map[string]any, secret func(key string) bool) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return store.Mask(m, secret)
}

// maskSecrets is for dictionaries that are the user's own: extra, properties.
func maskSecrets(m map[string]any) map[string]any { return masked(m, store.HasSecretWord) }

// maskInfo is for driver_info and its like: it hides what the store seals.
func maskInfo(m map[string]any) map[string]any { return masked(m, store.IsSecret) }

// maskInstance also hides image_url, which may be a temporary URL with its
// signature (Ironic hides it for the same reason).
func maskInstance(m map[string]any) map[string]any {
	out := maskInfo(m)
	if url, ok := out["image_url"]; ok && url != nil && url != "" {
		out["image_url"] = store.Masked
	}
	return out
}

// unmask puts the old secrets back where a client returned the mask it was
// shown, so that read-change-write never destroys a password.
func unmask(now, old map[string]any) {
	for k, v := range now {
		switch v := v.(type) {
		case string:
			if v == store.Masked && (store.IsSecret(k) || k == "image_url") {
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
