package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// Node is a running node of a cluster.
type Node struct {
	id      identity
	cfg     Config
	lock    *os.File
	stores  *stores
	raft    *raft.Raft
	fsm     *fsm
	clock   *clusterClock
	keeper  *lease.Keeper
	failure *failure

	leadership signal
	stop       context.CancelFunc
	stopped    <-chan struct{}
	running    sync.WaitGroup
}

// Open starts the node of a directory that [Init] has made. Without one the error is
// [ErrUninitialised], with another process in it [ErrInUse], and if something in it cannot be read
// [ErrDamaged]. If a store fails meanwhile it is [ErrFailed], and the directory stays locked and open
// until the process ends.
//
// The state is at first that of the last snapshot, or empty: what follows in the log is applied once
// there is a leader. A lease says when it is fresh.
func Open(cfg Config) (_ *Node, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if _, err := readIdentity(cfg.Dir); err != nil {
		return nil, err // before the lock, which would make a file in any directory
	}
	n := &Node{cfg: cfg, failure: newFailure()}
	if n.lock, err = lock(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		// While raft is stuck in a store that has failed, neither may be closed under it.
		if err != nil && n.Fault() == nil {
			if n.stores != nil {
				n.stores.close()
			}
			n.lock.Close()
		}
	}()
	if n.id, err = readIdentity(cfg.Dir); err != nil {
		return nil, err
	}
	if n.stores, err = openVerified(filepath.Join(cfg.Dir, raftDir), cfg, n.id.Cluster); err != nil {
		return nil, err
	}
	n.fsm = newFSM(n.id.Cluster, n.failure)
	n.clock = &clusterClock{age: cfg.Clock, wall: cfg.Wall, log: cfg.Logger}

	var logs raft.LogStore = n.stores.log
	if cfg.wrapLog != nil {
		logs = cfg.wrapLog(logs)
	}
	var stable raft.StableStore = n.stores.stable
	if cfg.wrapStable != nil {
		stable = cfg.wrapStable(stable)
	}
	// Raft blocks when nobody reads what it notifies, so it is read at once, whatever else goes on.
	notify := make(chan bool, 16)
	if n.raft, err = n.startRaft(notify, &guardedLog{logs, n.failure}, &guardedStable{stable, n.failure}); err != nil {
		return nil, fmt.Errorf("start raft in %s: %w", cfg.Dir, err)
	}

	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.stopped = stop, ctx.Done()
	n.keeper = lease.NewKeeper(cfg.Clock, n, func() time.Duration { return lease.Interval(n.State().MinStaleness()) }, cfg.Logger)
	n.running.Go(func() { n.watchLeadership(ctx, notify) })
	n.running.Go(func() { n.keeper.Run(ctx) })
	return n, nil
}

// startRaft does not wait for a store that has failed: the guards never return to raft then.
func (n *Node) startRaft(notify chan<- bool, logs raft.LogStore, stable raft.StableStore) (*raft.Raft, error) {
	type started struct {
		raft *raft.Raft
		err  error
	}
	done := make(chan started, 1)
	go func() {
		defer runtime.KeepAlive(n) // also when nobody else has it any more: it has the lock
		r, err := raft.NewRaft(n.cfg.raft(n.id.Node, notify), n.fsm, logs, stable, n.stores.snaps, n.cfg.Transport)
		done <- started{r, err}
	}()
	select {
	case s := <-done:
		return s.raft, s.err
	case <-n.failure.done:
		return nil, n.Fault()
	}
}

// watchLeadership tells of every change, also of those between other nodes, and has the lease renewed
// at once: the next leader may be reached before the lease runs out.
func (n *Node) watchLeadership(ctx context.Context, notify <-chan bool) {
	seen := make(chan raft.Observation, 1) // one that waits stands for all
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(observer)
	defer n.raft.DeregisterObserver(observer)
	for {
		n.leadership.fire()
		n.keeper.Kick()
		select {
		case <-notify:
		case <-seen:
		case <-ctx.Done():
			return
		}
	}
}

// ID is this node's.
func (n *Node) ID() hierarchy.NodeID { return n.id.Node }

// ClusterID is that of the cluster that the node is of, also before its state is there.
func (n *Node) ClusterID() hierarchy.ClusterID { return n.id.Cluster }

// State is this node's copy of the hierarchy. Whether it may be served from says the lease, which
// has to be read first.
func (n *Node) State() *state.State { return n.fsm.current.Load() }

// Lease is the proof that this node had last.
func (n *Node) Lease() lease.Lease { return n.keeper.Current() }

// Now reads the clock that leases are measured by.
func (n *Node) Now() time.Duration { return n.cfg.Clock.Now() }

// Renewed is closed when the lease is next renewed. It has a renewal tried at once.
func (n *Node) Renewed() <-chan struct{} {
	defer n.keeper.Kick()
	return n.keeper.Renewed()
}

// Changed is closed at the next command that changes more than the clock, a reservation or an
// anchor. Who waits for something to do takes it first and looks at the state second.
func (n *Node) Changed() <-chan struct{} { return n.fsm.changed.next() }

// WaitFor returns when this node's state is at the index, or later.
func (n *Node) WaitFor(ctx context.Context, index uint64) error {
	for {
		next := n.fsm.applied.next()
		if n.State().Index() >= index {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return fmt.Errorf("%w: it is at index %d, not yet at %d: %w", hierarchy.ErrStale, n.State().Index(), index, ctx.Err())
		case <-n.failure.done:
			return fmt.Errorf("%w: %w", hierarchy.ErrStale, n.Fault())
		case <-n.stopped:
			return fmt.Errorf("%w: it is stopping", hierarchy.ErrStale)
		}
	}
}

// IsLeader tells whether this node leads as far as it knows. It proves nothing.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader }

// Leader is the node that leads as far as this one knows; false if it knows of none.
func (n *Node) Leader() (hierarchy.NodeID, bool) {
	_, server := n.raft.LeaderWithID()
	id, err := hierarchy.ParseID(string(server))
	return hierarchy.NodeID{ID: id}, err == nil
}

// LeadershipChanges is closed when the leader next changes as far as this node knows.
func (n *Node) LeadershipChanges() <-chan struct{} { return n.leadership.next() }

// Failed receives the error that ended this node's part in the cluster: a store that failed, a
// command that it does not know, a state that is not the leader's. The process has to end then; what
// it must not do is go on serving. It is for one reader.
func (n *Node) Failed() <-chan error { return n.failure.report }

// Fault is what Failed reports, for everybody and from the moment on at which it happened; nil
// before. It wraps [ErrFailed]. Nothing may be served from this node's state any more, whatever its
// lease says.
func (n *Node) Fault() error { return n.failure.fault() }

// Snapshot writes a snapshot now, and lets the log be compacted.
func (n *Node) Snapshot(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- n.raft.Snapshot().Error() }()
	select {
	case err := <-done:
		if errors.Is(err, raft.ErrNothingNewToSnapshot) {
			return nil
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.failure.done:
		return n.Fault()
	}
}

// Close stops the node. If raft does not stop before ctx ends, because a store hangs or has failed,
// the directory stays locked and open until the process ends, which then is the only way out.
func (n *Node) Close(ctx context.Context) error {
	n.stop() // no more renewals, and who waits is told
	done := make(chan error, 1)
	go func() {
		n.running.Wait()
		done <- n.raft.Shutdown().Error()
	}()
	select {
	case err := <-done:
		return errors.Join(err, n.stores.close(), n.lock.Close())
	case <-ctx.Done():
		return fmt.Errorf("raft does not stop: %w", ctx.Err())
	case <-n.failure.done:
		return fmt.Errorf("%w: its stores stay open until the process ends", ErrFailed)
	}
}
