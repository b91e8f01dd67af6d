package dhcp

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"sync"
	"time"
)

// Times of the pool.
const (
	// offerTTL is how long an offered address is kept for its client: RFC 2131
	// leaves it to the server; clients ask back within seconds.
	offerTTL = 30 * time.Second
	// conflictTTL is how long an address that something else uses is left alone.
	conflictTTL = 10 * time.Minute
)

var (
	errExhausted = errors.New("no free address")
	// errNotYours is answered with a NAK.
	errNotYours = errors.New("not this client's address")
)

// Subnet is one network that addresses are given for.
type Subnet struct {
	Prefix      netip.Prefix
	First, Last netip.Addr   // the dynamic range, both included; invalid for none (reservations only)
	Router      netip.Addr   // invalid for none
	DNS         []netip.Addr // may be empty
	Domain      string
}

func (s *Subnet) contains(ip netip.Addr) bool { return s.Prefix.Contains(ip) }

func (s *Subnet) dynamic(ip netip.Addr) bool {
	return s.First.IsValid() && ip.Compare(s.First) >= 0 && ip.Compare(s.Last) <= 0
}

// size is the number of addresses in the dynamic range.
func (s *Subnet) size() uint32 {
	if !s.First.IsValid() {
		return 0
	}
	return number(s.Last) - number(s.First) + 1
}

func (s *Subnet) at(i uint32) netip.Addr { return address(number(s.First) + i) }

func number(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// binding is an address that a MAC has, had, or was offered.
type binding struct {
	Lease
	offer bool // offered, not asked for yet
}

// pool decides who has which address. A client is known by its MAC and not by
// its client id: firmware, iPXE and the installed OS send different ids and
// must all get the same address.
type pool struct {
	leaseTime time.Duration
	reserved  map[string]netip.Addr // MAC → address
	held      map[netip.Addr]string // address → MAC it is reserved for; ours and routers: ""
	store     Leases

	mu       sync.Mutex
	byMAC    map[string]*binding
	byIP     map[netip.Addr]*binding
	conflict map[netip.Addr]time.Time // used by something unknown until
}

func newPool(store Leases, leaseTime time.Duration, reserved map[string]netip.Addr, own []netip.Addr) (*pool, error) {
	p := &pool{
		leaseTime: leaseTime, reserved: reserved, store: store, held: map[netip.Addr]string{},
		byMAC: map[string]*binding{}, byIP: map[netip.Addr]*binding{}, conflict: map[netip.Addr]time.Time{},
	}
	for mac, ip := range reserved {
		if other, taken := p.held[ip]; taken {
			return nil, fmt.Errorf("DHCP: address %s is reserved for both %s and %s", ip, other, mac)
		}
		p.held[ip] = mac
	}
	for _, ip := range own {
		if mac, taken := p.held[ip]; taken && mac != "" {
			return nil, fmt.Errorf("DHCP: %s can't be reserved for %s: it is the server's or a router's", ip, mac)
		}
		p.held[ip] = ""
	}
	all, err := store.All()
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		if old := p.byMAC[one.MAC]; old != nil && old.Expires.After(one.Expires) {
			continue
		}
		p.bind(&binding{Lease: one})
	}
	return p, nil
}

// bind makes b the only binding of its MAC and its address.
func (p *pool) bind(b *binding) {
	if old := p.byMAC[b.MAC]; old != nil && old.IP != b.IP {
		delete(p.byIP, old.IP)
	}
	if old := p.byIP[b.IP]; old != nil && old.MAC != b.MAC {
		delete(p.byMAC, old.MAC)
	}
	p.byMAC[b.MAC], p.byIP[b.IP] = b, b
}

// allowed says whether mac may have ip now.
func (p *pool) allowed(mac string, net *Subnet, ip, fixed netip.Addr, now time.Time) bool {
	if !ip.IsValid() || !net.contains(ip) || p.conflict[ip].After(now) {
		return false
	}
	if b := p.byIP[ip]; b != nil && b.MAC != mac && b.Expires.After(now) {
		return false
	}
	if owner, held := p.held[ip]; held {
		return owner == mac
	}
	return ip == fixed || net.dynamic(ip)
}

// choose picks the address for mac: the fixed one (by the caller, else
// reserved), the one it has or had, the one it asks for, a free one, one whose
// lease has expired longest ago. fresh says that the client did not hold it, so
// that the caller must check that nothing else answers there.
func (p *pool) choose(mac string, net *Subnet, fixed, wanted netip.Addr) (ip netip.Addr, fresh bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !fixed.IsValid() {
		fixed = p.reserved[mac]
	}
	old := p.byMAC[mac]
	switch {
	case p.allowed(mac, net, fixed, fixed, now):
		ip = fixed
	case old != nil && p.allowed(mac, net, old.IP, fixed, now):
		ip = old.IP
	case p.allowed(mac, net, wanted, fixed, now):
		ip = wanted
	default:
		if ip = p.free(mac, net, now); !ip.IsValid() {
			return ip, false, fmt.Errorf("DHCP %s: %w for %s: all %d addresses from %s to %s are in use; widen the range or shorten the lease time",
				net.Prefix, errExhausted, mac, net.size(), net.First, net.Last)
		}
	}
	if old != nil && old.IP == ip && old.Expires.After(now) {
		return ip, false, nil // a live lease or offer: keep it as it is
	}
	// An expired lease's row stays in the store until somebody else commits the address.
	p.bind(&binding{Lease: Lease{MAC: mac, IP: ip, Expires: now.Add(offerTTL)}, offer: true})
	return ip, true, nil
}

// free searches from a place given by the MAC, so that a machine tends to get
// the same address even from an empty pool.
func (p *pool) free(mac string, net *Subnet, now time.Time) netip.Addr {
	size := net.size()
	if size == 0 {
		return netip.Addr{}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(mac)) // a hash never fails
	start := h.Sum32() % size
	var oldest *binding
	for i := range size {
		ip := net.at((start + i) % size)
		if !p.allowed(mac, net, ip, netip.Addr{}, now) {
			continue
		}
		b := p.byIP[ip]
		if b == nil {
			return ip
		}
		if oldest == nil || b.Expires.Before(oldest.Expires) {
			oldest = b
		}
	}
	if oldest == nil {
		return netip.Addr{}
	}
	return oldest.IP
}

// commit leases ip to mac. It fails with errNotYours when mac may not have it.
func (p *pool) commit(mac string, net *Subnet, ip, fixed netip.Addr, hostname string) (Lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !fixed.IsValid() {
		fixed = p.reserved[mac]
	}
	if !p.allowed(mac, net, ip, fixed, now) {
		return Lease{}, fmt.Errorf("DHCP: %s for %s: %w", ip, mac, errNotYours)
	}
	if fixed.IsValid() && ip != fixed && p.allowed(mac, net, fixed, fixed, now) {
		return Lease{}, fmt.Errorf("DHCP: %s for %s, which has the fixed address %s: %w", ip, mac, fixed, errNotYours)
	}
	old := p.byMAC[mac]
	one := Lease{MAC: mac, IP: ip, Expires: now.Add(p.leaseTime).UTC().Truncate(time.Second), Hostname: hostname}
	if err := p.store.Put(one); err != nil {
		return Lease{}, err
	}
	if old != nil && old.IP != ip && !old.offer {
		if err := p.store.Delete(old.IP); err != nil {
			return Lease{}, err
		}
	}
	p.bind(&binding{Lease: one})
	return one, nil
}

// release ends a lease early. The binding stays, expired, so that the machine
// comes back to its address.
func (p *pool) release(mac string, ip netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.byIP[ip]
	if b == nil || b.MAC != mac || b.offer {
		return nil
	}
	b.Expires = time.Now().UTC().Truncate(time.Second)
	return p.store.Put(b.Lease)
}

// forgetOffer frees an address that the client turned down for another server's.
func (p *pool) forgetOffer(mac string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b := p.byMAC[mac]; b != nil && b.offer {
		delete(p.byMAC, mac)
		delete(p.byIP, b.IP)
	}
}

// inUse marks ip as used by something we did not give it to.
func (p *pool) inUse(ip netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conflict[ip] = time.Now().Add(conflictTTL)
	b := p.byIP[ip]
	if b == nil {
		return nil
	}
	delete(p.byIP, ip)
	delete(p.byMAC, b.MAC)
	if b.offer {
		return nil
	}
	return p.store.Delete(ip)
}

// macOf says who has ip now, "" when nobody.
func (p *pool) macOf(ip netip.Addr) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b := p.byIP[ip]; b != nil && b.Expires.After(time.Now()) {
		return b.MAC
	}
	return ""
}
