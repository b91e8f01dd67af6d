package store_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-metal/slipway/conductor/store"
)

func TestSecretKeys(t *testing.T) {
	for key, want := range map[string]bool{
		"redfish_password": true, "ipmi_password": true, "RedfishPassword": true, "bmc-passwd": true,
		"agent_secret_token": true, "auth_token": true, "snmp_auth_key": true, "ipmi_hex_kg_key": true,
		"sslKey": true, "sslkey": true, "ssh_key_contents": true, "cephadminkey": true, "credentials": true,
		"rescue_password": true, "configdrive": true, "client_secret": true, "hashed_rescue_password": true,
		"redfish_username": false, "redfish_address": false, "deploy_kernel": false, "kernel_append_params": false,
		"ssh_public_key": false, "redfish_verify_ca": false, "keyboard": false, "redfish_auth_type": false,
		"image_checksum": false, "": false,
	} {
		if got := store.IsSecret(key); got != want {
			t.Errorf("IsSecret(%q) = %v, want %v", key, got, want)
		}
	}
}

func TestMaskHidesSecretsAtAnyDepthAndLeavesTheOriginalAlone(t *testing.T) {
	in := map[string]any{"redfish_password": "s3", "redfish_address": "a", "nested": []any{map[string]any{"token": "t", "n": 1.0}}}
	want := map[string]any{"redfish_password": store.Masked, "redfish_address": "a", "nested": []any{map[string]any{"token": store.Masked, "n": 1.0}}}
	if d := cmp.Diff(want, store.Mask(in, store.IsSecret)); d != "" {
		t.Error(d)
	}
	if in["redfish_password"] != "s3" {
		t.Error("Mask changed its argument")
	}
	if store.Mask(nil, store.IsSecret) != nil {
		t.Error("Mask(nil) is not nil")
	}
}
