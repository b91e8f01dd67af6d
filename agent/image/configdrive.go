package image

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// MaxConfigDrive is the largest config drive, in bytes: Ironic's limit.
const MaxConfigDrive = 64 << 20

// DecodeConfigDrive unpacks the form in which Ironic sends a config drive:
// base64 of a gzipped volume. Errors never quote the text: it holds secrets.
func DecodeConfigDrive(s string) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		return nil, errors.New("config drive: not base64")
	}
	drive, err := UnzipConfigDrive(raw)
	if err != nil {
		return nil, err
	}
	return drive, checkConfigDrive(drive)
}

// UnzipConfigDrive unpacks a gzipped volume of at most MaxConfigDrive bytes.
func UnzipConfigDrive(zipped []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(zipped))
	if err != nil {
		return nil, errors.New("config drive: not gzip inside base64")
	}
	drive, err := io.ReadAll(io.LimitReader(z, MaxConfigDrive+1))
	if err != nil {
		return nil, errors.New("config drive: its gzip data is damaged or truncated")
	}
	if len(drive) > MaxConfigDrive {
		return nil, fmt.Errorf("config drive: larger than %d MiB", MaxConfigDrive>>20)
	}
	return drive, nil
}

// checkConfigDrive accepts what a config drive may be: ISO 9660 or FAT with a
// label that first-boot software looks for.
func checkConfigDrive(drive []byte) error {
	if len(drive) > MaxConfigDrive {
		return fmt.Errorf("config drive: larger than %d MiB", MaxConfigDrive>>20)
	}
	switch label := volumeLabel(drive); strings.ToLower(label) {
	case "":
		return errors.New("config drive: neither an ISO 9660 nor a FAT volume with a label")
	case configDriveName, "cidata":
		return nil
	default:
		return fmt.Errorf("config drive: the volume's label is %q, want config-2", label)
	}
}

// volumeLabel reads the label of an ISO 9660 (ECMA-119, 8.4) or FAT volume;
// "" when it is neither.
func volumeLabel(v []byte) string {
	const pvd = 16 * 2048
	var label []byte
	switch {
	case len(v) >= pvd+2048 && v[pvd] == 1 && string(v[pvd+1:pvd+6]) == "CD001":
		label = v[pvd+40 : pvd+72]
	case len(v) >= 512 && v[510] == 0x55 && v[511] == 0xaa && string(v[54:57]) == "FAT":
		label = v[43:54]
	case len(v) >= 512 && v[510] == 0x55 && v[511] == 0xaa && string(v[82:87]) == "FAT32":
		label = v[71:82]
	}
	return strings.TrimRight(string(label), " \x00")
}
