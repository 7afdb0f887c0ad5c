package cluster

import (
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/stats"
)

// Stats is how a node's part in the cluster is at a moment, and what it has done since it was opened.
type Stats struct {
	Term    uint64
	Last    uint64 // index of the log's last entry
	Commit  uint64 // index up to which this node knows the log to be committed
	Applied uint64 // log index of the last command that its state has; raft's own entries are none

	Snapshot   uint64    // index of the last snapshot; 0: there is none
	SnapshotAt time.Time // when it was written here, by the wall clock; zero: there is none

	LeaderChanges uint64 // nodes that this one has seen begin to lead
	Forwarded     uint64 // commands that the leader has decided for this node
	ForwardErrors uint64 // commands that it was asked for, with an end that is not known or that it did not propose

	Renewals       uint64 // of the lease
	RenewalsFailed uint64 // tries

	Fences           stats.Distribution // waits by [Node.Await] that have ended with the fence
	FencesUnfinished uint64             // and those that were given up
	Marks            stats.Distribution // marks set, and tried to
}

// counts are the part of [Stats] that has to be counted.
type counts struct {
	leaders, forwarded, forwardErrors, unfenced atomic.Uint64

	fences, marks stats.Histogram
}

// forwardedAs counts a command that went to the leader, and its end as the leader told it: what the state
// machine refused was decided, too.
func (c *counts) forwardedAs(decided bool) {
	if decided {
		c.forwarded.Add(1)
	} else {
		c.forwardErrors.Add(1)
	}
}

// Stats reads no disk, and asks nobody.
func (n *Node) Stats() Stats {
	s := Stats{
		Term: n.raft.CurrentTerm(), Last: n.raft.LastIndex(), Commit: n.raft.CommitIndex(), Applied: n.State().Index(),
		LeaderChanges: n.counts.leaders.Load(), Forwarded: n.counts.forwarded.Load(), ForwardErrors: n.counts.forwardErrors.Load(),
		Fences: n.counts.fences.Read(), FencesUnfinished: n.counts.unfenced.Load(), Marks: n.counts.marks.Read(),
	}
	s.Snapshot, s.SnapshotAt = n.snapshots.last()
	s.Renewals, s.RenewalsFailed = n.keeper.Renewals()
	return s
}

// snapshots takes note of each snapshot that is written, by raft here or by the leader.
type snapshots struct {
	raft.SnapshotStore
	latest atomic.Pointer[raft.SnapshotMeta]
}

// noteSnapshots begins with the one that there is.
func noteSnapshots(store raft.SnapshotStore) (*snapshots, error) {
	s := &snapshots{SnapshotStore: store}
	list, err := store.List()
	if err == nil && len(list) > 0 {
		s.latest.Store(list[0])
	}
	return s, err
}

func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, at uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, c, at, t)
	if err != nil {
		return nil, err
	}
	return &notedSink{sink, s, &raft.SnapshotMeta{ID: sink.ID(), Index: index, Term: term}}, nil
}

type notedSink struct {
	raft.SnapshotSink
	store *snapshots
	is    *raft.SnapshotMeta
}

func (s *notedSink) Close() error {
	err := s.SnapshotSink.Close()
	if err == nil {
		s.store.latest.Store(s.is)
	}
	return err
}

// last is the latest snapshot. The store names a snapshot TERM-INDEX-MILLISECONDS.
func (s *snapshots) last() (index uint64, at time.Time) {
	m := s.latest.Load()
	if m == nil {
		return 0, time.Time{}
	}
	if ms, err := strconv.ParseInt(m.ID[strings.LastIndexByte(m.ID, '-')+1:], 10, 64); err == nil {
		at = time.UnixMilli(ms)
	}
	return m.Index, at
}

// ledBy is who leads as this node knows it.
type ledBy struct {
	id    hierarchy.NodeID // while nobody is known to lead, who did last
	known bool
}

// noteLeader says in the log who leads when that has changed, and counts those who begin to.
func (n *Node) noteLeader(before ledBy) ledBy {
	id, known := n.Leader()
	switch {
	case known && (id != before.id || !before.known):
		if id != before.id {
			n.counts.leaders.Add(1)
		}
		n.cfg.Logger.Info("a node leads", "of", n.name(id), "id", id, "itself", id == n.id.Node, "term", n.raft.CurrentTerm())
		return ledBy{id, true}
	case !known && before.known:
		n.cfg.Logger.Info("no node leads, as far as this one knows", "before", n.name(before.id))
		return ledBy{before.id, false}
	}
	return before
}
