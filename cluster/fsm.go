package cluster

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// fsm is what raft sees of package state: a pointer to the state of now, which is swapped.
type fsm struct {
	cluster hierarchy.ClusterID
	fail    *failure
	current atomic.Pointer[state.State]
	applied signal // each command
	changed signal // each that moved state.Revision
}

func newFSM(cluster hierarchy.ClusterID, begin *state.State, fail *failure) *fsm {
	f := &fsm{cluster: cluster, fail: fail}
	f.current.Store(begin)
	return f
}

// Apply is called by one goroutine. What cannot be applied ends the node, and the goroutine stays
// here: an entry is never skipped.
func (f *fsm) Apply(log *raft.Log) any {
	before := f.current.Load()
	c, err := state.Decode(log.Data)
	if err != nil {
		f.fail.failForGood(fmt.Errorf("entry %d of the log: %w; start a version of kekd that knows it", log.Index, err))
	}
	next, res := state.Apply(before, state.Meta{Index: log.Index}, c)
	if state.Fatal(res.Err) {
		f.fail.failForGood(fmt.Errorf("entry %d of the log: %w", log.Index, res.Err))
	}
	if next.ClusterID() != f.cluster {
		f.fail.failForGood(fmt.Errorf("%w: entry %d is of cluster %s, this node is of cluster %s", state.ErrDiverged, log.Index, next.ClusterID(), f.cluster))
	}
	f.publish(next, next.Revision() != before.Revision())
	return res
}

// publish swaps first and wakes second, so that who is woken sees what woke him.
func (f *fsm) publish(next *state.State, changed bool) {
	f.current.Store(next)
	f.applied.fire()
	if changed {
		f.changed.fire()
	}
}

// Snapshot takes the state as it is: it never changes.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.current.Load()}, nil }

// Restore replaces the state by a snapshot's that came from the leader, and which may be older than what was
// applied before. At a start it is not called: see [stores.verifySnapshots].
func (f *fsm) Restore(source io.ReadCloser) error {
	next, err := state.Read(source)
	if err != nil {
		return err
	}
	if next.ClusterID() != f.cluster {
		return fmt.Errorf("%w: the snapshot is of cluster %s, this node is of cluster %s", state.ErrDiverged, next.ClusterID(), f.cluster)
	}
	f.publish(next, true)
	return nil
}

type snapshot struct{ s *state.State }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := state.Write(sink, s.s); err != nil {
		sink.Cancel()
		return err
	}
	return sink.Close()
}

func (s snapshot) Release() {}
