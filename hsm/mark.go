package hsm

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/kekd/kekd/hierarchy"
)

// Mark is what a node keeps outside of its data directory, so that a directory that was put back
// from an older copy is found out: how far the node had come when it last told somebody.
//
// It has two halves that grow by themselves: the term, and the last entry by its term, then its
// index.
type Mark struct {
	Term                uint64 // the highest that the node was in
	LastTerm, LastIndex uint64 // of the last entry of its log
}

// Max is the higher of each half.
func (m Mark) Max(o Mark) Mark {
	m.Term = max(m.Term, o.Term)
	if cmp.Or(cmp.Compare(m.LastTerm, o.LastTerm), cmp.Compare(m.LastIndex, o.LastIndex)) < 0 {
		m.LastTerm, m.LastIndex = o.LastTerm, o.LastIndex
	}
	return m
}

// Covers tells whether neither half is behind the other mark's.
func (m Mark) Covers(o Mark) bool { return m.Max(o) == m }

func (m Mark) String() string {
	return fmt.Sprintf("term %d, last entry %d of term %d", m.Term, m.LastIndex, m.LastTerm)
}

// MarkOwner says whose mark it is. Several nodes may keep theirs in one place.
type MarkOwner struct {
	Cluster hierarchy.ClusterID
	Node    hierarchy.NodeID
}

func (o MarkOwner) String() string { return fmt.Sprintf("node %s of cluster %s", o.Node, o.Cluster) }

// Marks keeps marks. It may be used by several goroutines; for one owner, by one process at a time.
type Marks interface {
	// Mark gives the owner's mark; false: there is none. One that cannot be read is
	// ErrMarkUnreadable, and the error names where it is.
	Mark(ctx context.Context, owner MarkOwner) (Mark, bool, error)

	// RaiseMark brings the owner's mark to at least m: a half that is higher already stays. On
	// return it is durable. After an error it may or may not be raised; raising again is the cure,
	// and what was raised before never goes back.
	RaiseMark(ctx context.Context, owner MarkOwner, m Mark) error
}

// How a mark is written: a byte that names the format, cluster, node, the three numbers in big
// endian, and the SHA-256 of all of it. The sum is against damage, not against people.
const (
	markFormat = 1
	markBody   = 1 + 2*hierarchy.IDSize + 3*8
	// MarkSize is the length of a written mark, in bytes.
	MarkSize = markBody + sha256.Size
)

// AppendMark appends a mark as it is written.
func AppendMark(b []byte, owner MarkOwner, m Mark) []byte {
	at := len(b)
	b = append(b, markFormat)
	b = append(b, owner.Cluster.ID[:]...)
	b = append(b, owner.Node.ID[:]...)
	for _, n := range []uint64{m.Term, m.LastTerm, m.LastIndex} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	sum := sha256.Sum256(b[at:])
	return append(b, sum[:]...)
}

// ParseMark reads what [AppendMark] wrote for this owner. Anything else, another owner's mark above
// all, is ErrMarkUnreadable.
func ParseMark(b []byte, owner MarkOwner) (Mark, error) {
	if len(b) != MarkSize {
		return Mark{}, fmt.Errorf("%w: it has %d bytes, not %d", ErrMarkUnreadable, len(b), MarkSize)
	}
	if sum := sha256.Sum256(b[:markBody]); !bytes.Equal(sum[:], b[markBody:]) {
		return Mark{}, fmt.Errorf("%w: its checksum does not fit", ErrMarkUnreadable)
	}
	if b[0] != markFormat {
		return Mark{}, fmt.Errorf("%w: its format is %d, this version knows %d", ErrMarkUnreadable, b[0], markFormat)
	}
	var found MarkOwner
	rest := b[1:]
	rest = rest[copy(found.Cluster.ID[:], rest):]
	rest = rest[copy(found.Node.ID[:], rest):]
	if found != owner {
		return Mark{}, fmt.Errorf("%w: it is that of %s, not of %s", ErrMarkUnreadable, found, owner)
	}
	return Mark{
		Term:      binary.BigEndian.Uint64(rest),
		LastTerm:  binary.BigEndian.Uint64(rest[8:]),
		LastIndex: binary.BigEndian.Uint64(rest[16:]),
	}, nil
}
