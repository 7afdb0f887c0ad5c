package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// A snapshot is
//
//	"kekd snapshot 1\n"
//	header, then records: each a message of package commandpb after its length (uvarint)
//	SHA-256 of all that, 32 bytes
//
// Records stand in the order of their kinds, and within a kind in that of their keys. There is one
// encoding of a state: what reads differently when it is written again is refused.
const (
	snapshotMagic = "kekd snapshot 1\n"
	maxRecord     = 32 << 20 // bytes; a key with MaxVersions versions in two regions has some 4 MiB
)

// ErrSnapshot is wrapped by what is wrong with a snapshot.
var ErrSnapshot = errors.New("the snapshot cannot be used")

// Write writes a snapshot of the state.
func Write(w io.Writer, s *State) error {
	digest := sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(w, digest), 64<<10)
	out := recordWriter{w: buf}
	out.write([]byte(snapshotMagic))

	hash := s.Hash()
	header := &commandpb.SnapshotHeader{
		Format: Format, ClusterId: s.cluster.ID[:], Index: s.index, Stamp: s.stamp, Epoch: s.epoch, StateHash: hash[:], Records: s.records(),
		FeatureLevel: s.level,
	}
	if s.epoch > 0 {
		header.EpochStatement = s.raisedBy[:]
	}
	out.message(header)
	for rec := range s.snapshotRecords {
		out.message(rec)
	}
	if out.err == nil {
		out.err = buf.Flush()
	}
	if out.err == nil {
		_, out.err = w.Write(digest.Sum(nil))
	}
	if out.err != nil {
		return fmt.Errorf("write a snapshot: %w", out.err)
	}
	return nil
}

func (s *State) records() uint64 {
	return uint64(s.regions.Len() + s.nodes.Len() + s.tenants.Len() + s.keys.Len() +
		s.services.Len() + s.rules.Len() + s.anchors.Len() + s.outcomes.Len() + s.uses.Len() +
		s.removed.Len() + s.invited.Len() + s.tombs.Len() + s.fences.Len())
}

// snapshotRecords iterates over all records in the order of a snapshot.
func (s *State) snapshotRecords(yield func(*commandpb.SnapshotRecord) bool) {
	_ = each(s.regions, regionRecord, yield) &&
		each(s.nodes, nodeRecord, yield) &&
		each(s.tenants, tenantRecord, yield) &&
		each(s.keys, keyRecord, yield) &&
		each(s.services, serviceRecord, yield) &&
		each(s.rules, ruleRecord, yield) &&
		each(s.anchors, anchorRecord, yield) &&
		each(s.outcomes, outcomeRecord, yield) &&
		each(s.uses, usesRecord, yield) &&
		each(s.removed, removedRecord, yield) &&
		each(s.invited, invitationRecord, yield) &&
		each(s.tombs, tombstoneRecord, yield) &&
		each(s.fences, fenceRecord, yield)
}

func each[T any](t *iradix.Tree[T], rec func(T) *commandpb.SnapshotRecord, yield func(*commandpb.SnapshotRecord) bool) bool {
	for v := range all(t, nil) {
		if !yield(rec(v)) {
			return false
		}
	}
	return true
}

// recordWriter remembers the first error.
type recordWriter struct {
	w   io.Writer
	err error
}

func (w *recordWriter) write(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
}

func (w *recordWriter) message(m marshaler) {
	b := encode(m)
	if len(b) > maxRecord && w.err == nil {
		w.err = fmt.Errorf("%w: a record has %d bytes, at most %d are allowed", ErrSnapshot, len(b), maxRecord)
	}
	w.write(binary.AppendUvarint(nil, uint64(len(b))))
	w.write(b)
}

// Read reads a snapshot to its end and verifies all of it: hashes, counts, order, and that what a
// record refers to is there. What it returns is the very state that was written, or an error that
// wraps [ErrSnapshot].
func Read(r io.Reader) (*State, error) {
	in := &recordReader{r: bufio.NewReaderSize(r, 64<<10), digest: sha256.New()}
	s, err := in.state()
	if err != nil {
		if errors.Is(err, ErrSnapshot) {
			return nil, err
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	return s, nil
}

type recordReader struct {
	r      *bufio.Reader
	digest hash.Hash
	buf    []byte
}

func (in *recordReader) full(b []byte) error {
	if _, err := io.ReadFull(in.r, b); err != nil {
		return err
	}
	in.digest.Write(b)
	return nil
}

// ReadByte serves the reading of lengths.
func (in *recordReader) ReadByte() (byte, error) {
	c, err := in.r.ReadByte()
	if err == nil {
		in.digest.Write([]byte{c})
	}
	return c, err
}

// message reads one message, whose bytes must be those that it is written with. The bytes that a
// length promises are read in pieces, so that a lie about it costs no memory.
func (in *recordReader) message(m interface {
	marshaler
	UnmarshalVT([]byte) error
}) error {
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return err
	}
	if size > maxRecord {
		return fmt.Errorf("a record has %d bytes, at most %d are allowed", size, maxRecord)
	}
	in.buf = in.buf[:0]
	for left := int(size); left > 0; {
		piece := min(left, 64<<10)
		at := len(in.buf)
		in.buf = append(in.buf, make([]byte, piece)...)
		if err := in.full(in.buf[at:]); err != nil {
			return err
		}
		left -= piece
	}
	return m.UnmarshalVT(in.buf)
}

func (in *recordReader) state() (*State, error) {
	magic := make([]byte, len(snapshotMagic))
	if err := in.full(magic); err != nil {
		return nil, err
	}
	if string(magic) != snapshotMagic {
		return nil, errors.New("it does not begin as a snapshot of kekd does")
	}
	header := new(commandpb.SnapshotHeader)
	if err := in.message(header); err != nil {
		return nil, err
	}
	if header.GetFormat() != Format {
		return nil, fmt.Errorf("it has format %d, this version reads %d", header.GetFormat(), Format)
	}
	if !bytes.Equal(encode(header), in.buf) {
		return nil, errors.New("its header is not encoded as it is to be")
	}

	if level := header.GetFeatureLevel(); level > Level {
		return nil, fmt.Errorf("%w: it is of feature level %d, this version knows %d: use the version that wrote it or a newer one", ErrUnknownCommand, level, uint32(Level))
	}
	d := New().draft()
	d.level = header.GetFeatureLevel()
	d.index, d.stamp, d.epoch, d.revision = header.GetIndex(), header.GetStamp(), header.GetEpoch(), header.GetIndex()
	if by := header.GetEpochStatement(); copy(d.raisedBy[:], by) != len(by) || (len(by) == len(d.raisedBy)) != (d.epoch > 0) {
		return nil, fmt.Errorf("it is of epoch %d, and a statement of %d bytes has raised it", d.epoch, len(by))
	}
	id, err := hierarchy.IDFromBytes(header.GetClusterId())
	if err != nil {
		return nil, err
	}
	d.cluster = hierarchy.ClusterID{ID: id}
	if d.Initialised() != (d.level > 0) {
		return nil, fmt.Errorf("it is of cluster %s and feature level %d", d.cluster, d.level)
	}

	d.beginBulk()
	last := position{}
	for i := range header.GetRecords() {
		rec := new(commandpb.SnapshotRecord)
		if err := in.message(rec); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		at, canonical, err := d.load(rec)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		if !last.before(at) {
			return nil, fmt.Errorf("record %d stands out of order, or twice", i)
		}
		if !bytes.Equal(encode(canonical), in.buf) {
			return nil, fmt.Errorf("record %d is not encoded as it is to be", i)
		}
		last = at
	}
	d.endBulk()
	if err := d.checkWhole(); err != nil {
		return nil, err
	}
	for svc := range d.Services() {
		d.compilePolicy(svc.Name)
	}

	sum := in.digest.Sum(nil)
	trailer := make([]byte, len(sum))
	if _, err := io.ReadFull(in.r, trailer); err != nil {
		return nil, err
	}
	if !bytes.Equal(trailer, sum) {
		return nil, errors.New("its bytes do not fit its hash: it was damaged or altered")
	}
	if _, err := in.r.ReadByte(); err != io.EOF {
		return nil, errors.New("something follows its end")
	}
	if hash := d.Hash(); !bytes.Equal(hash[:], header.GetStateHash()) {
		return nil, errors.New("its records do not fit the state's hash")
	}
	return d.State, nil
}
