package dhcp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Lease is an address given to a MAC. A lease that has expired is kept: the
// machine gets the same address again as long as nobody else needed it.
type Lease struct {
	MAC      string     `json:"mac"`
	IP       netip.Addr `json:"ip"`
	Expires  time.Time  `json:"expires"`
	Hostname string     `json:"hostname,omitempty"`
}

// Leases keeps leases over restarts. A lease is put before it is acknowledged
// to the client. There is one lease for an address: Put replaces.
type Leases interface {
	All() ([]Lease, error)
	Put(Lease) error
	// Delete forgets an address; it is no error when there is none.
	Delete(netip.Addr) error
}

// MemoryLeases forgets at the end of the process.
type MemoryLeases struct {
	mu sync.Mutex
	m  map[netip.Addr]Lease
}

// NewMemoryLeases returns an empty store.
func NewMemoryLeases() *MemoryLeases { return &MemoryLeases{m: map[netip.Addr]Lease{}} }

// All returns the leases by address.
func (l *MemoryLeases) All() ([]Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return sorted(l.m), nil
}

// Put stores one lease.
func (l *MemoryLeases) Put(one Lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m[one.IP] = one
	return nil
}

// Delete forgets an address.
func (l *MemoryLeases) Delete(ip netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.m, ip)
	return nil
}

func sorted(m map[netip.Addr]Lease) []Lease {
	all := make([]Lease, 0, len(m))
	for _, one := range m {
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b Lease) int { return a.IP.Compare(b.IP) })
	return all
}

// FileLeases keeps leases in a file of JSON lines that is only appended to, the
// last line of an address counting, and rewritten when it has grown to several
// times its content. A renewal so costs one short write, also with ten thousand
// leases. Lines are not synced to the disk one by one: a killed process loses
// nothing, a host that loses power may lose the last seconds, and the conflict
// check covers those.
type FileLeases struct {
	mu    sync.Mutex
	path  string
	f     *os.File
	m     map[netip.Addr]Lease
	lines int
}

// fileLine is a Lease, or the end of one.
type fileLine struct {
	Lease
	Deleted bool `json:"deleted,omitempty"`
}

// OpenFileLeases reads path, creating it when it is not there. A line cut short by
// a crash is dropped when it is the last; any other damage is an error, since a
// forgotten lease could be given twice.
func OpenFileLeases(path string) (*FileLeases, error) {
	l := &FileLeases{path: path, m: map[netip.Addr]Lease{}}
	if err := l.read(); err != nil {
		return nil, err
	}
	if err := l.compact(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *FileLeases) read() error {
	f, err := os.Open(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("DHCP leases: %w", err)
	}
	defer func() { _ = f.Close() }()
	var bad error
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		if bad != nil {
			return bad
		}
		var line fileLine
		if err := json.Unmarshal(s.Bytes(), &line); err != nil || !line.IP.Is4() {
			bad = fmt.Errorf("DHCP leases: %s line %d is damaged; repair it, or move the file away (machines keep their addresses by renewing): %w",
				l.path, n, errors.Join(err, errors.New("not a lease")))
			continue
		}
		if line.Deleted {
			delete(l.m, line.IP)
		} else {
			l.m[line.IP] = line.Lease
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("DHCP leases: read %s: %w", l.path, err)
	}
	return nil
}

// compact writes the leases to a new file that replaces the old one.
func (l *FileLeases) compact() error {
	f, err := os.CreateTemp(filepath.Dir(l.path), filepath.Base(l.path)+".*")
	if err != nil {
		return fmt.Errorf("DHCP leases: %w", err)
	}
	defer func() {
		if l.f != f { // failed on the way
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for _, one := range sorted(l.m) {
		if err := enc.Encode(fileLine{Lease: one}); err != nil {
			return fmt.Errorf("DHCP leases: write %s: %w", l.path, err)
		}
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return fmt.Errorf("DHCP leases: write %s: %w", l.path, err)
	}
	if err := os.Rename(f.Name(), l.path); err != nil {
		return fmt.Errorf("DHCP leases: %w", err)
	}
	if l.f != nil {
		_ = l.f.Close() // the replaced file, already on its way out
	}
	l.f, l.lines = f, len(l.m)
	return nil
}

// All returns the leases by address.
func (l *FileLeases) All() ([]Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return sorted(l.m), nil
}

// Put appends one lease.
func (l *FileLeases) Put(one Lease) error { return l.append(fileLine{Lease: one}) }

// Delete appends the end of an address's lease.
func (l *FileLeases) Delete(ip netip.Addr) error {
	return l.append(fileLine{Lease: Lease{IP: ip}, Deleted: true})
}

func (l *FileLeases) append(line fileLine) error {
	raw, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("DHCP leases: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.f.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("DHCP leases: write %s: %w", l.path, err)
	}
	if line.Deleted {
		delete(l.m, line.IP)
	} else {
		l.m[line.IP] = line.Lease
	}
	if l.lines++; l.lines > 1000+4*len(l.m) {
		return l.compact()
	}
	return nil
}

// Close ends the file's use.
func (l *FileLeases) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
