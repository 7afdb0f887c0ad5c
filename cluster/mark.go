package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/kekd/kekd/hierarchy/commandpb"
)

// Mark is what a node keeps of itself outside of its directory, so that a disk which was put back from an older
// day is found out. It only grows: by the term, and by the last entry's term and then its index.
//
// The order is always: the disk synced, then the mark, then the answer. A crash in between leaves the disk ahead of
// the mark, which locks no healthy node out.
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

// ErrUnmarked means that a node has no mark where it keeps it. [Init] and [Join] make one, so that it was lost, or
// the place is another one. Whether the directory is an older one cannot be told without it.
var ErrUnmarked = errors.New("this node's mark is missing")

func (m Mark) String() string {
	return fmt.Sprintf("term %d, last entry %d of term %d", m.Term, m.LastIndex, m.LastTerm)
}

const (
	// markTimeout bounds one mark: a token that hangs must not hang an election for longer than it takes to have
	// another node elected. One that is being replaced by its pool is back before.
	markTimeout = 5 * time.Second
	// markAgain is how soon a mark that failed is tried again.
	markAgain = 50 * time.Millisecond
)

// removeAndRejoin is what is left to do with a directory that cannot be vouched for.
const removeAndRejoin = "else remove this node with `kekctl node remove` on another one, move its data directory away, and let it join again under a new ID; " +
	"where no majority is left to do that, see `kekd recover`"

// checkMark refuses a disk that is behind its mark, before raft sees any of it, and marks where it is.
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
	disk, err := n.stores.position()
	if err != nil {
		return err
	}
	switch {
	case !marked && refusesRolledBack():
		return fmt.Errorf("%w: it is made with the node, and is no longer where the node keeps it: in its token, or in the second path of a witness. "+
			"Nothing was started or changed. If that was put back from a backup, or is another one, give the node its own again; %s", ErrUnmarked, removeAndRejoin)
	case disk.behind(mark) && refusesRolledBack():
		return fmt.Errorf("%w: it is at %s, and the node has answered for %s. Nothing was started or changed. "+
			"If the newer directory is still there, put it back; %s", ErrRolledBack, disk, mark, removeAndRejoin)
	}
	// What a crash has left unmarked may be acknowledged again without being written again.
	if err := n.setMark(disk); err != nil {
		return err
	}
	n.unmarked = disk.LastTerm != disk.Term
	return nil
}

// forgoVote gives away the vote that this node may still have in its term. A term is marked before it is voted in,
// and a vote in it is not: a disk that was put back to between the two would vote twice. It costs nothing, since a
// candidate begins a term of its own.
func (s *stores) forgoVote() error {
	term, err := s.stable.GetUint64([]byte(keyCurrentTerm))
	if err != nil || term == 0 {
		return err
	}
	voted, candidate, err := s.stable.vote()
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if voted == term && len(candidate) > 0 {
		return nil
	}
	if err := s.stable.SetUint64([]byte(keyLastVoteTerm), term); err != nil {
		return err
	}
	return s.stable.Set([]byte(keyLastVoteCand), []byte("nobody"))
}

// position is where a disk stands, while raft does not run: in a snapshot, in the log, or in what a leader has since
// had replaced there.
func (s *stores) position() (Mark, error) {
	var m Mark
	term, err := s.stable.GetUint64([]byte(keyCurrentTerm))
	if err != nil {
		return m, err
	}
	m.Term = term
	snaps, err := s.snaps.List()
	if err != nil {
		return m, err
	}
	if len(snaps) > 0 {
		m.LastTerm, m.LastIndex = snaps[0].Term, snaps[0].Index
	}
	if m, err = s.withLastEntry(m); err != nil {
		return m, err
	}
	replaced, err := s.log.replaced()
	return m.withEntry(replaced.LastTerm, replaced.LastIndex), err
}

// withLastEntry raises a mark to the end of the log.
func (s *stores) withLastEntry(m Mark) (Mark, error) {
	last, err := s.log.LastIndex()
	if err != nil || last == 0 {
		return m, err
	}
	var entry raft.Log
	if err := s.log.GetLog(last, &entry); err != nil {
		return m, err
	}
	return m.withEntry(entry.Term, last), nil
}

// withEntry raises a mark to an entry.
func (m Mark) withEntry(term, index uint64) Mark {
	if term > m.LastTerm || term == m.LastTerm && index > m.LastIndex {
		m.LastTerm, m.LastIndex = term, index
	}
	return m
}

// markTerm is called when the disk has a higher term, and before anybody is answered in it: a vote in it, above all. A
// node that cannot mark it must not answer.
func (n *Node) markTerm(term uint64) error { return n.setMark(Mark{Term: term}) }

// markEntries is called when the disk has more entries, and before anybody hears that it has. What the safety of
// fences rests on is not committed before a majority of the voters have it marked: who may hold a lease, who
// votes, and for how long a lease may last. One that is forgotten would not be waited for.
//
// It counts only with an entry of the present term at the end: one of an older term may yet be replaced, and a
// disk of an earlier day that ends in a higher one would not be told from it. So it may have to wait for the
// next entry; the leader that commits it has one of its own term behind it.
//
// Only raft's one goroutine that writes the log calls it.
func (n *Node) markEntries(logs []*raft.Log) error {
	if n.cfg.Marks == nil || len(logs) == 0 {
		return nil
	}
	for _, log := range logs {
		n.unmarked = n.unmarked || mustBeMarked(log)
	}
	if !n.unmarked {
		return nil
	}
	term, err := n.stores.stable.GetUint64([]byte(keyCurrentTerm))
	if err != nil {
		return err
	}
	last := logs[len(logs)-1]
	if last.Term != term {
		return nil
	}
	if err := n.setMark(Mark{Term: term, LastTerm: last.Term, LastIndex: last.Index}); err != nil {
		return err
	}
	n.unmarked = false
	return nil
}

// mustNotBeForgotten tells whether an entry says who votes, who may hold a lease, or for how long.
func mustNotBeForgotten(log *raft.Log) bool {
	switch log.Type {
	case raft.LogConfiguration:
		return true
	case raft.LogCommand:
	default:
		return false
	}
	c := new(commandpb.Command)
	if c.UnmarshalVT(log.Data) != nil {
		return true // the state machine will say what is wrong with it
	}
	switch b := c.GetBody().(type) {
	case *commandpb.Command_RegisterIncarnation, *commandpb.Command_JoinNode:
		return true
	case *commandpb.Command_SetTenant:
		return b.SetTenant.MaxStaleness != nil // a rise, or not: it is rare either way
	}
	return false
}

// setMark keeps trying for as long as a mark may take. A process that was stopped meanwhile gets a try of
// full length when it goes on.
func (n *Node) setMark(m Mark) error {
	if n.cfg.Marks == nil {
		return nil
	}
	begun := time.Now()
	for tries := 1; ; tries++ {
		ctx, cancel := context.WithTimeout(context.Background(), markTimeout)
		err := n.tryMark(ctx, m)
		cancel()
		if err == nil {
			return nil
		}
		if tries > 1 && time.Since(begun) >= markTimeout {
			return fmt.Errorf("mark %s outside of the disk: %w", m, err)
		}
		time.Sleep(markAgain)
	}
}

// tryMark is for a node that has marks.
func (n *Node) tryMark(ctx context.Context, m Mark) error {
	began := time.Now()
	err := n.cfg.Marks.SetMark(ctx, m)
	n.counts.marks.Observe(time.Since(began))
	return err
}
