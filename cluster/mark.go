package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Mark is what a node keeps of itself outside of its directory, so that a disk which was put back from an older
// day is found out. It only grows: by the term, and by the last entry's term and then its index.
type Mark struct {
	Term      uint64 // the node's current term
	LastTerm  uint64 // of the last entry of its log, or of its snapshot
	LastIndex uint64
}

// Marks keeps marks. What SetMark returns for is durable, and a part of it that is below what is kept changes nothing.
type Marks interface {
	Mark(ctx context.Context) (m Mark, marked bool, err error)
	SetMark(ctx context.Context, m Mark) error
}

// ErrRolledBack means that a node's directory is older than what the node has answered for: it was put back from a
// backup, or copied. It must not take part: a voter that has forgotten its vote or an entry lets others
// commit as if it had not been.
var ErrRolledBack = errors.New("the directory is older than what this node has answered for")

// behind tells whether the disk is behind a mark: entries are compared by term, then index, since an index alone says
// nothing of an entry that another leader has replaced.
func (m Mark) behind(mark Mark) bool {
	return m.Term < mark.Term || m.LastTerm < mark.LastTerm || m.LastTerm == mark.LastTerm && m.LastIndex < mark.LastIndex
}

func (m Mark) String() string {
	return fmt.Sprintf("term %d, last entry %d of term %d", m.Term, m.LastIndex, m.LastTerm)
}

// markTimeout bounds one mark: a token that hangs must not hang an election for longer than it takes to have another
// node elected.
const markTimeout = 5 * time.Second

// checkMark refuses a disk that is behind its mark, before raft sees any of it.
func (n *Node) checkMark() error {
	if n.cfg.Marks == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), markTimeout)
	defer cancel()
	mark, marked, err := n.cfg.Marks.Mark(ctx)
	if err != nil {
		return fmt.Errorf("this node's mark cannot be read: %w", err)
	}
	disk, err := n.onDisk()
	if err != nil {
		return err
	}
	if marked && disk.behind(mark) {
		return fmt.Errorf("%w: it is at %s, and the node has answered for %s. Nothing was started or changed. "+
			"If the newer directory is still there, put it back; else remove this node with `kekctl node remove` on another one, and let it join again under a new ID",
			ErrRolledBack, disk, mark)
	}
	return nil
}

// onDisk is where this node's disk stands, before raft runs.
func (n *Node) onDisk() (Mark, error) {
	var m Mark
	term, err := n.stores.stable.GetUint64([]byte(keyCurrentTerm))
	if err != nil {
		return m, err
	}
	m.Term = term
	snaps, err := n.stores.snaps.List()
	if err != nil {
		return m, err
	}
	if len(snaps) > 0 {
		m.LastTerm, m.LastIndex = snaps[0].Term, snaps[0].Index
	}
	return n.withLastEntry(m)
}

// withLastEntry raises a mark to the end of the log.
func (n *Node) withLastEntry(m Mark) (Mark, error) {
	last, err := n.stores.log.LastIndex()
	if err != nil || last == 0 {
		return m, err
	}
	var entry raft.Log
	if err := n.stores.log.GetLog(last, &entry); err != nil {
		return m, err
	}
	if entry.Term > m.LastTerm || entry.Term == m.LastTerm && last > m.LastIndex {
		m.LastIndex, m.LastTerm = last, entry.Term
	}
	return m, nil
}

// setMark is for a node that has marks.
func (n *Node) setMark(ctx context.Context, m Mark) error {
	began := time.Now()
	err := n.cfg.Marks.SetMark(ctx, m)
	n.counts.marks.Observe(time.Since(began))
	return err
}

// markTerm is called when the disk has a higher term, and before anybody is answered in it: a vote in it, above all. A
// node that cannot mark it must not answer.
func (n *Node) markTerm(term uint64) error {
	if n.cfg.Marks == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), markTimeout)
	defer cancel()
	if err := n.setMark(ctx, Mark{Term: term}); err != nil {
		return fmt.Errorf("mark term %d outside of the disk: %w", term, err)
	}
	return nil
}
