package audit

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sort"

	"github.com/kekd/kekd/hierarchy"
)

// checkAnchor holds the journal, as it was read, against the checkpoint that was kept elsewhere.
// Its error wraps [ErrCorrupt] if the journal does not have the record, or has another one in its
// place: it was cut off, rolled back with its disk, or forked. A checkpoint from before the oldest
// of the segments says nothing.
func (j *Journal) checkAnchor(firsts []uint64) error {
	a := j.opts.Anchor
	if a == nil {
		return nil
	}
	if a.Node != j.opts.Node || a.Cluster != j.opts.Cluster {
		return fmt.Errorf("%w: the checkpoint is of node %s in cluster %s", hierarchy.ErrInvalidArgument, a.Node, a.Cluster)
	}
	if err := a.Verify(j.key); err != nil {
		return err
	}
	if a.Sequence > j.chain.seq {
		return fmt.Errorf("%w: it ends with record %d, and record %d was signed and anchored: it was cut off or rolled back", ErrCorrupt, j.chain.seq, a.Sequence)
	}
	i := sort.Search(len(firsts), func(i int) bool { return firsts[i] > a.Sequence }) - 1
	if i < 0 {
		return nil
	}
	hash, err := j.hashOf(a.Sequence, firsts[i])
	if err != nil {
		return fmt.Errorf("%w: record %d was signed and anchored, and is not there: %w", ErrCorrupt, a.Sequence, err)
	}
	if hash != a.Head {
		return fmt.Errorf("%w: record %d is another than the one that was signed and anchored", ErrCorrupt, a.Sequence)
	}
	return nil
}

// hashOf a record that stands in the segment that begins with first.
func (j *Journal) hashOf(sequence, first uint64) (Hash, error) {
	f, err := j.dir.open(segmentName(first), os.O_RDONLY)
	if err != nil {
		return Hash{}, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return Hash{}, err
	}
	lines := newLineReader(io.NewSectionReader(f, 0, size))
	for seq := first; ; seq++ {
		line, err := lines.next()
		if err != nil {
			return Hash{}, err
		}
		if seq == sequence {
			return sha256.Sum256(line), nil
		}
	}
}
