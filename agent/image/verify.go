package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
)

// sampleCount is how many written pieces, and as many zeroed ones, are read
// back and compared, sampleSize bytes of each. Larger pieces would cost more
// hashing while the image is written than they tell.
const (
	sampleCount = 64
	sampleSize  = 64 << 10
)

// sample is one piece that was written: its digest, or zeros.
type sample struct {
	off  int64
	n    int
	zero bool
	sum  [sha256.Size]byte
}

// samples keeps a random choice of what was written, each piece with the same
// chance however many follow (reservoir sampling); only chosen ones are hashed.
type samples struct {
	mu    sync.Mutex
	rand  *rand.Rand
	kept  [2][]sample // data, zeros
	count [2]int64
}

func newSamples() *samples {
	return &samples{rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
}

// slot says where the next piece goes; -1 when it is not chosen.
func (s *samples) slot(kind int) int {
	s.count[kind]++
	if len(s.kept[kind]) < sampleCount {
		s.kept[kind] = append(s.kept[kind], sample{})
		return len(s.kept[kind]) - 1
	}
	if i := s.rand.Int64N(s.count[kind]); i < sampleCount {
		return int(i)
	}
	return -1
}

func (s *samples) data(off int64, p []byte) {
	s.mu.Lock()
	i := s.slot(0)
	s.mu.Unlock()
	if i < 0 {
		return
	}
	s.mu.Lock()
	at, n := s.within(int64(len(p)))
	s.mu.Unlock()
	sum := sha256.Sum256(p[at : at+int64(n)])
	s.mu.Lock()
	s.kept[0][i] = sample{off: off + at, n: n, sum: sum}
	s.mu.Unlock()
}

func (s *samples) zero(off, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.slot(1)
	if i < 0 {
		return
	}
	at, k := s.within(n)
	s.kept[1][i] = sample{off: off + at, n: k, zero: true}
}

// within chooses an aligned part of a piece of n bytes; mu is held.
func (s *samples) within(n int64) (at int64, k int) {
	if n <= sampleSize {
		return 0, int(n)
	}
	return s.rand.Int64N((n-sampleSize)/Alignment+1) * Alignment, sampleSize
}

// verify reads the samples back; it returns how many were compared.
func (s *samples) verify(dev Device, each func() error) (int, error) {
	all := slices.Concat(s.kept[0], s.kept[1])
	slices.SortFunc(all, func(a, b sample) int { return int(min(max(a.off-b.off, -1), 1)) })
	buf := alignedBuffer(sampleSize)
	for i, x := range all {
		if err := each(); err != nil {
			return i, err
		}
		p := buf[:x.n]
		if err := readAt(dev, p, x.off); err != nil {
			return i, err
		}
		if x.zero && bytes.Equal(p, zeros[:x.n]) || !x.zero && sha256.Sum256(p) == x.sum {
			continue
		}
		return i, mismatch(dev, x.off, x.n)
	}
	return len(all), nil
}

func mismatch(dev Device, off int64, n int) error {
	s := int64(dev.SectorSize())
	return diskFailure{fmt.Errorf("%w: disk%s: LBA %d to %d read back differently: replace the disk",
		ErrVerify, deviceName(dev), off/s, (off+int64(n)-1)/s)}
}

// readAt reads all of p or says at which sector it failed.
func readAt(dev Device, p []byte, off int64) error {
	n, err := dev.ReadAt(p, off)
	if n == len(p) && errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil && n < len(p) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return diskError(dev, "read", off, err)
	}
	return nil
}
