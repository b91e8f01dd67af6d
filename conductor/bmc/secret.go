package bmc

import (
	"log/slog"
)

// Secret is a password. Every way of printing it gives ***.
type Secret struct{ value string }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{s} }

// Reveal returns the password itself, for the wire only.
func (s Secret) Reveal() string { return s.value }

// String implements fmt.Stringer.
func (s Secret) String() string { return "***" }

// GoString implements fmt.GoStringer, for %#v.
func (s Secret) GoString() string { return "***" }

// MarshalText implements encoding.TextMarshaler, for JSON.
func (s Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue("***") }
