package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	guid "github.com/google/uuid"
	"github.com/u-root/u-root/pkg/efivarfs"
	"golang.org/x/sys/unix"

	"github.com/slipway-metal/slipway/agent/efi"
)

// globalVariable is EFI_GLOBAL_VARIABLE (UEFI 2.10, section 3.3).
var globalVariable = guid.MustParse("8be4df61-93ca-11d2-aa0d-00e098032b8c")

// vars are the firmware's variables through efivarfs.
type vars struct{ fs *efivarfs.EFIVarFS }

func openVars() (efi.Vars, error) {
	fsys, err := efivarfs.New()
	if errors.Is(err, efivarfs.ErrNoFS) {
		if err := unix.Mount("efivarfs", efivarfs.DefaultVarFS, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return nil, fmt.Errorf("mount efivarfs: %w", err)
		}
		fsys, err = efivarfs.New()
	}
	if err != nil {
		return nil, fmt.Errorf("EFI variables: %w", err)
	}
	return vars{fsys}, nil
}

func describe(name string) efivarfs.VariableDescriptor {
	return efivarfs.VariableDescriptor{Name: name, GUID: globalVariable}
}

// Get implements efi.Vars.
func (v vars) Get(name string) ([]byte, error) {
	_, value, err := v.fs.Get(describe(name))
	if errors.Is(err, efivarfs.ErrVarNotExist) {
		return nil, fmt.Errorf("EFI variable %s: %w", name, efi.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("EFI variable %s: %w", name, err)
	}
	return value, nil
}

// Set implements efi.Vars.
func (v vars) Set(name string, value []byte) error {
	if err := v.fs.Set(describe(name), efivarfs.VariableAttributes(efi.Attributes), value); err != nil {
		return fmt.Errorf("EFI variable %s: write %d bytes: %w", name, len(value), err)
	}
	return nil
}

// Delete implements efi.Vars. efivarfs marks its files immutable, and an
// immutable file can be opened for reading only.
func (v vars) Delete(name string) error {
	path := efivarfs.DefaultVarFS + name + "-" + globalVariable.String()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("EFI variable %s: %w", name, err)
	}
	err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("EFI variable %s: make it mutable: %w", name, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("EFI variable %s: %w", name, err)
	}
	return nil
}

// List implements efi.Vars.
func (v vars) List() ([]string, error) {
	all, err := v.fs.List()
	if err != nil {
		return nil, fmt.Errorf("EFI variables: %w", err)
	}
	var out []string
	for _, d := range all {
		if d.GUID == globalVariable {
			out = append(out, d.Name)
		}
	}
	return out, nil
}
