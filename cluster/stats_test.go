package cluster_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

// What a node has done, and what it has seen the others do, is counted where it happened.
func TestStatsOfACluster(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.allRegistered()
	leader := m.leader()
	through := m.nodes[m.other(leader)].node
	before := through.Stats()
	propose(t, through, createTenant("acme"))
	index := propose(t, through, disable("acme"))
	f, pending := through.State().Fence(index)
	if !pending {
		t.Fatal("the disable closed nothing, or its fence was recorded before anybody waited")
	}
	given, up := context.WithCancel(t.Context())
	up()
	if _, err := through.Await(given, f); !errors.Is(err, hierarchy.ErrOutcomeUnknown) {
		t.Errorf("a wait that was given up: %v", err)
	}
	if _, err := through.Await(patience(t), f); err != nil {
		t.Fatal(err)
	}
	s := through.Stats()
	if got := s.Forwarded - before.Forwarded; got != 2 || s.ForwardErrors != 0 {
		t.Errorf("%d were forwarded, and %d had an end that is not known; want 2 and 0", got, s.ForwardErrors)
	}
	if s.Fences.Count != 1 || s.Fences.Sum <= 0 || s.FencesUnfinished != 1 {
		t.Errorf("%d fences in %v, %d unfinished; want one of each", s.Fences.Count, s.Fences.Sum, s.FencesUnfinished)
	}
	if s.Term == 0 || s.Applied < index || s.Last < s.Commit || s.Commit < index {
		t.Errorf("at index %d: %+v", index, s)
	}
	if s.Renewals == 0 || s.LeaderChanges == 0 {
		t.Errorf("%d renewals from %d leaders", s.Renewals, s.LeaderChanges)
	}
	if n := m.nodes[leader].node.Stats(); n.Fences.Count != 0 || n.Forwarded != 0 {
		t.Errorf("the leader was asked for nothing, and counts %d fences and %d forwarded commands", n.Fences.Count, n.Forwarded)
	}

	m.stop(leader)
	m.until("another leads", func() bool { return through.Stats().LeaderChanges > s.LeaderChanges })
	m.until("the lease is renewed", func() bool { return through.Stats().Renewals > s.Renewals })
	m.stop(m.other(m.leader()))
	m.until("renewals fail without a majority", func() bool { return m.nodes[m.other()].node.Stats().RenewalsFailed > 0 })
}

// The last snapshot is known when it was written, and after a restart.
func TestStatsOfSnapshots(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	n := open(t, config(dir))
	if s := n.Stats(); s.Snapshot != 0 || !s.SnapshotAt.IsZero() {
		t.Errorf("there is a snapshot already: %+v", s)
	}
	index := propose(t, n, createTenant("acme"))
	before := time.Now().Truncate(time.Millisecond)
	if err := n.Snapshot(patience(t)); err != nil {
		t.Fatal(err)
	}
	wrote := n.Stats()
	if wrote.Snapshot < index || wrote.SnapshotAt.Before(before) || time.Since(wrote.SnapshotAt) < 0 {
		t.Errorf("written at index %d: %+v", index, wrote)
	}
	shut(t, n)
	if s := open(t, config(dir)).Stats(); s.Snapshot != wrote.Snapshot || !s.SnapshotAt.Equal(wrote.SnapshotAt) {
		t.Errorf("after a restart: %+v, before it: %+v", s, wrote)
	}
}

func TestStatsOfMarks(t *testing.T) {
	t.Parallel()
	cfg, _ := markedConfig(t)
	n := open(t, cfg)
	propose(t, n, createTenant("acme"))
	if s := n.Stats(); s.Marks.Count == 0 {
		t.Error("it leads, and has marked no term")
	}
}
