package serve

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lockData keeps a second conductor off the same SQLite data directory: two
// would answer DHCP twice. The kernel drops the lock with the process.
func lockData(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, &RefusedError{"another conductor uses the data directory " + dir, "stop it, or give this one another --data"}
	}
	return func() { f.Close() }, nil
}
