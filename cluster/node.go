package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
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

	started   atomic.Pointer[raft.Raft] // raft, for those who may ask before it runs
	network   *network                  // nil: no port
	calls     calls                     // nil: no peers
	directory *directory
	ticks     *ticks
	roll      *roll
	driver    driver
	run       hierarchy.ID // this run of the process: its incarnation
	dead      hierarchy.ID // the run before, if that is proved to be over
	acked     acknowledged
	unmarked  bool // the log may have an entry that has to be marked and is not; see markEntries
	shunned   atomic.Pointer[shunned]
	snapshots *snapshots
	counts    counts

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
	n := &Node{cfg: cfg, failure: newFailure(cfg.diskPatience), driver: newDriver(), run: hierarchy.NewID()}
	n.failure.release = cfg.release
	if n.lock, err = lock(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		// While raft is stuck in a store that has failed, neither may be closed under it.
		if err != nil && n.Fault() == nil {
			if n.network != nil {
				_ = n.network.close(context.Background())
			}
			if n.stores != nil {
				n.stores.close()
			}
			n.lock.Close()
		}
	}()
	if n.id, err = readIdentity(cfg.Dir); err != nil {
		return nil, err
	}
	if err := n.thisRun(); err != nil {
		return nil, fmt.Errorf("note that this run has begun: %w", err)
	}
	dir := filepath.Join(cfg.Dir, raftDir)
	told, err := readIntroductions(dir)
	if err != nil {
		return nil, err
	}
	if n.stores, err = n.openStores(dir); err != nil {
		return nil, err
	}
	if err := n.checkMark(); err != nil {
		return nil, err
	}
	if err := n.stores.forgoVote(); err != nil {
		return nil, err
	}
	n.fsm = newFSM(n.id.Cluster, n.stores.begin, n.failure)
	n.clock = newClusterClock(n.id.Node, cfg.Clock, cfg.Wall, cfg.Logger)
	n.roll = newRoll(cfg.Clock)
	n.ticks = &ticks{propose: n.proveLead, spacing: func() time.Duration { return n.renewalInterval() / 2 }}
	n.directory = &directory{n: n, told: told}
	transport, err := n.connect()
	if err != nil {
		return nil, err
	}

	var logs raft.LogStore = n.stores.log
	if cfg.wrapLog != nil {
		logs = cfg.wrapLog(logs)
	}
	var stable raft.StableStore = n.stores.stable
	if cfg.wrapStable != nil {
		stable = cfg.wrapStable(stable)
	}
	if n.snapshots, err = noteSnapshots(n.stores.snaps); err != nil {
		return nil, err
	}
	// Raft blocks when nobody reads what it notifies, so it is read at once, whatever else goes on.
	notify := make(chan bool, 16)
	if n.raft, err = n.startRaft(notify, &guardedLog{logs, n.failure, n.markEntries}, &guardedStable{stable, n.failure, n.markTerm}, transport); err != nil {
		return nil, fmt.Errorf("start raft in %s: %w", cfg.Dir, err)
	}
	n.started.Store(n.raft)

	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.stopped = stop, ctx.Done()
	n.keeper = lease.NewKeeper(cfg.Clock, n, n.renewalInterval, cfg.Logger)
	n.running.Go(func() { n.watchLeadership(ctx, notify) })
	n.running.Go(func() { n.keeper.Run(ctx) })
	if n.calls != nil {
		n.running.Go(func() { n.drive(ctx) })
		n.running.Go(func() { n.keepInTouch(ctx) })
		n.running.Go(func() { n.remember(ctx) })
	}
	n.running.Go(func() { n.finishFences(ctx) })
	if n.network != nil {
		n.network.serve(n)
		n.running.Go(func() { n.leaveTheOthers(ctx) })
	}
	return n, nil
}

// openStores does not wait for a disk that hangs.
func (n *Node) openStores(dir string) (*stores, error) {
	type opened struct {
		stores *stores
		err    error
	}
	done := make(chan opened, 1)
	go func() {
		defer runtime.KeepAlive(n)
		s, err := openVerified(dir, n.cfg, n.id)
		done <- opened{s, err}
	}()
	// Reading a log of some megabytes takes less than a second; that of a disk that is only slow, some.
	timer := time.NewTimer(openPatience)
	defer timer.Stop()
	select {
	case o := <-done:
		return o.stores, o.err
	case <-timer.C:
		n.failure.fail(fmt.Errorf("the stores in %s are not open after %v: the disk hangs", dir, openPatience))
		return nil, n.Fault()
	}
}

const openPatience = 30 * time.Second

// connect opens what reaches the others, if there may be any.
func (n *Node) connect() (raft.Transport, error) {
	var t raft.Transport
	switch {
	case n.cfg.transport != nil:
		t, n.calls = n.cfg.transport, n.cfg.calls
	case n.cfg.Peers != nil:
		w, err := n.listen(n.cfg.Peers)
		if err != nil {
			return nil, err
		}
		n.network, n.calls = w, w
		t = w.port.Transport()
	default:
		_, t = raft.NewInmemTransport(serverAddress(n.id.Node))
	}
	asking, err := mustPreVote(t)
	return quiet{asking, n.failure}, err
}

// leaveTheOthers closes the port as soon as this node has failed: raft's heartbeats go on while its stores
// are stuck, and the others would keep a leader that commits nothing.
func (n *Node) leaveTheOthers(ctx context.Context) {
	select {
	case <-n.failure.done:
		_ = n.network.close(context.Background())
	case <-ctx.Done():
	}
}

// startRaft does not wait for a store that has failed: the guards never return to raft then.
func (n *Node) startRaft(notify chan<- bool, logs raft.LogStore, stable raft.StableStore, transport raft.Transport) (*raft.Raft, error) {
	type started struct {
		raft *raft.Raft
		err  error
	}
	done := make(chan started, 1)
	go func() {
		defer runtime.KeepAlive(n) // also when nobody else has it any more: it has the lock
		r, err := raft.NewRaft(n.cfg.raft(n.id.Node, notify), n.fsm, logs, stable, n.snapshots, transport)
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
	var before ledBy
	for {
		before = n.noteLeader(before)
		n.leadership.fire()
		n.keeper.Kick()
		select {
		case leads := <-notify:
			if leads {
				n.roll.begin()
			}
			n.leads(leads)
		case <-seen:
		case <-ctx.Done():
			return
		}
	}
}

// leaveTimeout is how long a leader that stops waits for another to take over: that is one message, and the others
// would find out by themselves within an election.
const leaveTimeout = 500 * time.Millisecond

// leave hands leadership on, if there is somebody to take it.
func (n *Node) leave(ctx context.Context) {
	if n.calls == nil || n.Fault() != nil || !n.IsLeader() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	if _, err := n.handOn(ctx, n.State(), n.roll.call(), "it stops"); err != nil {
		n.cfg.Logger.Warn("leadership was not handed on; the others elect a leader", "error", err)
	}
}

// leads tells the port whether this node leads.
func (n *Node) leads(is bool) {
	if n.network != nil {
		n.network.port.Lead(is)
	}
}

// ID is this node's.
func (n *Node) ID() hierarchy.NodeID { return n.id.Node }

// ClusterID is that of the cluster that the node is of, also before its state is there.
func (n *Node) ClusterID() hierarchy.ClusterID { return n.id.Cluster }

// State is this node's copy of the hierarchy. Whether it may be served from says the lease, which
// has to be read first.
func (n *Node) State() *state.State { return n.fsm.current.Load() }

// CertificateExpires is when this node needs another certificate to be talked to by its peers; zero where there is no
// port. It looks whether the file has changed.
func (n *Node) CertificateExpires() time.Time {
	if n.network == nil {
		return time.Time{}
	}
	return n.network.port.CertificateExpires()
}

// Lease is the proof that this node had last.
func (n *Node) Lease() lease.Lease { return n.keeper.Current() }

// Now reads the clock that leases are measured by.
func (n *Node) Now() time.Duration { return n.readClock() }

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
	n.leave(ctx)
	n.stop() // no more renewals, and who waits is told
	done := make(chan error, 1)
	go func() {
		n.running.Wait()
		n.leads(false)
		err := n.raft.Shutdown().Error()
		if n.network != nil {
			err = errors.Join(err, n.network.close(ctx))
		}
		done <- err
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
