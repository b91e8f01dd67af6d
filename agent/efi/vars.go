// Package efi reads and writes UEFI boot entries. It knows bytes and variables,
// not where they are kept.
package efi

import "errors"

// ErrNotFound is what Vars.Get wraps for a variable that isn't there.
var ErrNotFound = errors.New("no such EFI variable")

// Attributes of a boot variable (UEFI 2.10, section 8.2): non-volatile, boot
// service access, runtime access.
const Attributes uint32 = 7

// Vars are the variables of the global vendor GUID, by name.
type Vars interface {
	// Get returns a variable's value, without its attributes.
	Get(name string) ([]byte, error)
	// Set writes a variable with Attributes.
	Set(name string, value []byte) error
	Delete(name string) error
	// List gives all names of the global vendor GUID.
	List() ([]string, error)
}

// Memory is Vars in memory, for tests and recorded machines.
type Memory map[string][]byte

// Get implements Vars.
func (m Memory) Get(name string) ([]byte, error) {
	v, ok := m[name]
	if !ok {
		return nil, ErrNotFound
	}
	return v, nil
}

// Set implements Vars.
func (m Memory) Set(name string, value []byte) error {
	m[name] = append([]byte(nil), value...)
	return nil
}

// Delete implements Vars.
func (m Memory) Delete(name string) error {
	delete(m, name)
	return nil
}

// List implements Vars.
func (m Memory) List() ([]string, error) {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out, nil
}
