package qcow2

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// batchSize is how many bytes of the disk one Batch covers, or one cluster if
// that is larger.
const batchSize = 1 << 20

// Batch is a contiguous part of the disk whose clusters have passed.
type Batch struct {
	Off int64 // bytes into the disk
	Len int64 // bytes

	buf    []byte
	pieces []piece
}

// piece is a part of a batch as it lies in buf.
type piece struct {
	data       []byte
	compressed bool
	size       int64 // bytes of the disk
}

type streamer struct {
	m    *Image
	r    *bufio.Reader
	pos  int64
	cur  *Batch
	get  func() (*Batch, error)
	emit func(*Batch) error
}

// Stream reads the whole file from r, in order, and hands on every batch when
// it is complete. get returns an empty batch to fill, which may be one that
// was emitted and used before.
func (m *Image) Stream(r io.Reader, get func() (*Batch, error), emit func(*Batch) error) error {
	s := &streamer{m: m, r: bufio.NewReaderSize(r, int(m.maxCompressed()+256<<10)), get: get, emit: emit}
	for _, e := range m.extents {
		if err := s.skipTo(e.host); err != nil {
			return err
		}
		var err error
		switch e.kind() {
		case plain:
			err = s.plain(e)
		case compressed:
			err = s.compressed(e)
		case meta:
			err = s.meta(e)
		}
		if err != nil {
			return err
		}
	}
	if err := s.flush(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, s.r)
	return err
}

func (s *streamer) skipTo(host int64) error {
	for s.pos < host {
		n, err := s.r.Discard(int(min(host-s.pos, 1<<20)))
		s.pos += int64(n)
		if err != nil {
			return s.short(err)
		}
	}
	return nil
}

// short turns an end of the file in the middle of a piece into an error.
func (s *streamer) short(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: the file ends at byte %d in the middle of a cluster", ErrCorrupt, s.pos)
	}
	return err
}

func (s *streamer) meta(e extent) error {
	h := sha256.New()
	n, err := io.CopyN(h, s.r, e.n())
	s.pos += n
	if err != nil {
		return s.short(err)
	}
	if want := s.m.sums[e.guest]; !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("%w: its tables changed between two reads", ErrCorrupt)
	}
	return nil
}

func (s *streamer) plain(e extent) error {
	for i := range e.n() {
		guest := int64(e.guest) + i
		size := s.m.tailOf(guest)
		if err := s.room(guest*s.m.ClusterSize, size, size); err != nil {
			return err
		}
		p := s.cur.grow(size)
		inFile := p[:min(size, s.m.fileSize-s.pos)]
		clear(p[len(inFile):])
		for n := 0; n < len(inFile); {
			k, err := s.r.Read(inFile[n:])
			n += k
			s.pos += int64(k)
			if err != nil && n < len(inFile) {
				return s.short(err)
			}
		}
		if allocated, ok := s.m.partial[uint32(guest)]; ok {
			clearSubclusters(p, allocated, s.m.ClusterSize/32)
		}
		s.cur.append(piece{data: p, size: size})
	}
	return nil
}

// clearSubclusters zeroes the 32nds of a cluster that hold no data.
func clearSubclusters(p []byte, allocated uint32, size int64) {
	for i := range int64(32) {
		if allocated&(1<<i) == 0 && i*size < int64(len(p)) {
			clear(p[i*size : min((i+1)*size, int64(len(p)))])
		}
	}
}

func (s *streamer) compressed(e extent) error {
	data, err := s.r.Peek(int(e.n())) // not consumed: the next may share its last sector
	if err != nil {
		return s.short(err)
	}
	size := s.m.tailOf(int64(e.guest))
	if err := s.room(int64(e.guest)*s.m.ClusterSize, size, e.n()); err != nil {
		return err
	}
	p := s.cur.grow(e.n())
	copy(p, data)
	s.cur.append(piece{data: p, compressed: true, size: size})
	return nil
}

// room makes sure that the current batch goes on at off and has space for
// size bytes of the disk held in n bytes.
func (s *streamer) room(off, size, n int64) error {
	if s.cur != nil && (s.cur.Off+s.cur.Len != off || s.cur.Len+size > batchSize || int64(len(s.cur.buf))+n > int64(cap(s.cur.buf))) {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if s.cur != nil {
		return nil
	}
	b, err := s.get()
	if err != nil {
		return err
	}
	if want := max(batchSize, s.m.maxCompressed()); int64(cap(b.buf)) < want {
		b.buf = make([]byte, 0, want)
	}
	b.Off, b.Len, b.buf, b.pieces = off, 0, b.buf[:0], b.pieces[:0]
	s.cur = b
	return nil
}

func (s *streamer) flush() error {
	b := s.cur
	s.cur = nil
	if b == nil {
		return nil
	}
	return s.emit(b)
}

func (b *Batch) grow(n int64) []byte {
	k := int64(len(b.buf))
	b.buf = b.buf[:k+n]
	return b.buf[k : k+n]
}

func (b *Batch) append(p piece) {
	b.pieces = append(b.pieces, p)
	b.Len += p.size
}

// Decoder turns batches into the disk's bytes. One serves one goroutine.
type Decoder struct {
	zstd    *zstd.Decoder // nil for deflate
	inflate io.ReadCloser

	batch *Batch
	next  int       // index of the next piece
	left  int64     // bytes of the current piece
	cur   io.Reader // of the current piece
	data  bytes.Reader
}

// NewDecoder makes a decoder for an image's batches.
func (m *Image) NewDecoder() (*Decoder, error) {
	if !m.ZstdCluster {
		return &Decoder{inflate: flate.NewReader(nil)}, nil
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, fmt.Errorf("qcow2: zstd decoder: %w", err)
	}
	return &Decoder{zstd: z}, nil
}

// Close frees the decoder.
func (d *Decoder) Close() {
	if d.zstd != nil {
		d.zstd.Close()
	}
}

// Reset makes Read begin with b.
func (d *Decoder) Reset(b *Batch) { d.batch, d.next, d.left = b, 0, 0 }

// Read gives the batch's bytes of the disk, io.EOF after Len.
func (d *Decoder) Read(p []byte) (int, error) {
	if d.left == 0 {
		if d.next == len(d.batch.pieces) {
			return 0, io.EOF
		}
		if err := d.begin(d.batch.pieces[d.next]); err != nil {
			return 0, d.corrupt(err)
		}
		d.next++
	}
	n, err := d.cur.Read(p[:min(int64(len(p)), d.left)])
	d.left -= int64(n)
	if d.left == 0 || err == nil {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, d.corrupt(err)
}

func (d *Decoder) corrupt(err error) error {
	return fmt.Errorf("%w: a compressed cluster near byte %d of the disk: %w", ErrCorrupt, d.batch.Off, err)
}

func (d *Decoder) begin(p piece) error {
	d.left = p.size
	d.data.Reset(p.data)
	switch {
	case !p.compressed:
		d.cur = &d.data
		return nil
	case d.zstd != nil:
		d.cur = d.zstd
		return d.zstd.Reset(&d.data)
	}
	d.cur = d.inflate
	return d.inflate.(flate.Resetter).Reset(&d.data, nil)
}

// ReadHead fills head with the disk's first bytes by range reads.
func (m *Image) ReadHead(ra io.ReaderAt, head []byte) error {
	clear(head)
	d, err := m.NewDecoder()
	if err != nil {
		return err
	}
	defer d.Close()
	for _, e := range m.extents {
		off := int64(e.guest) * m.ClusterSize
		if e.kind() == meta || off >= int64(len(head)) {
			continue
		}
		n := e.n()
		size := m.tailOf(int64(e.guest))
		if e.kind() == plain {
			n = min(n*m.ClusterSize, int64(len(head))-off, m.Size-off)
			size = n
		}
		data := make([]byte, n)
		if k, err := ra.ReadAt(data[:min(n, m.fileSize-e.host)], e.host); int64(k) < min(n, m.fileSize-e.host) {
			return fmt.Errorf("qcow2: first clusters: %w", err)
		}
		if e.kind() == plain {
			for at := int64(0); at < n; at += m.ClusterSize {
				if allocated, ok := m.partial[uint32(int64(e.guest)+at/m.ClusterSize)]; ok {
					clearSubclusters(data[at:min(at+m.ClusterSize, n)], allocated, m.ClusterSize/32)
				}
			}
		}
		d.Reset(&Batch{Off: off, pieces: []piece{{data: data, compressed: e.kind() == compressed, size: size}}})
		for at := off; at < int64(len(head)); {
			k, err := d.Read(head[at:])
			at += int64(k)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
