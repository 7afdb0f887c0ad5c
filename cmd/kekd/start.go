package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/view"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/markfile"
)

// startTimeout is how long this machine's own parts may take together. For its peers a node waits as long
// as it takes.
const startTimeout = 45 * time.Second

// errInterrupted means that a node was told to stop before it served.
var errInterrupted = errors.New("interrupted")

// start opens the parts, each on those before it.
func (n *node) start(ctx context.Context, o serveOptions) error {
	opening, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	n.repairs = newRepairs(n.log)
	if err := n.openKeysAndRaft(opening, cancel, o); err != nil {
		return err
	}
	// Early: who looks why a node does not serve yet asks it.
	if err := n.openAdmin(); err != nil {
		return err
	}
	if err := n.awaitLease(ctx); err != nil {
		return err
	}
	if err := n.checkIdentity(); err != nil {
		return err
	}
	opening, cancel = context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// After Raft, which knows where the journal has to be, and anchors its last checkpoint.
	if err := n.startJournal(opening, o); err != nil {
		return err
	}
	n.running.started("the records of repairs", stopRepairs, n.repairs.record(n.journal))
	if n.token != nil {
		if err := n.token.Whole(opening); err != nil {
			return err
		}
		n.startKeys()
	}
	return n.listen()
}

// openKeysAndRaft has Raft read what it has while the workers open the token: with 10,000 keys the one takes a second, the
// other some. Raft does not begin before the mark was looked at, which is in the token.
func (n *node) openKeysAndRaft(ctx context.Context, giveUp func(), o serveOptions) error {
	opened, failed := make(chan struct{}), error(nil)
	go func() {
		defer close(opened)
		failed = n.openKeys(ctx, o)
	}()
	err := n.openRaft(lateMarks{opened, func() (hsm.Marks, error) { return n.marks, failed }})
	if err != nil {
		giveUp()
	}
	<-opened
	if failed != nil && (err == nil || errors.Is(err, failed)) {
		return failed
	}
	return err
}

// openKeys opens the token, or what stands in for it.
func (n *node) openKeys(ctx context.Context, o serveOptions) (err error) {
	if !n.config.hasToken() {
		return n.openFiles()
	}
	if err := repair(ctx, n.config.HSM, n.repairs.report(n.config.HSM.SoftHSM)); err != nil {
		return err
	}
	if n.token, err = openWorkers(ctx, n.config, o.config, n.repairs, n.log); err != nil {
		return err
	}
	n.signer, n.marks, n.health = n.token.Signer(), n.token, watchHealth(n.token, n.log)
	n.running.started("the token's workers", stopToken, func(ctx context.Context) error {
		n.health.quit()
		return n.token.Close(ctx)
	})
	return nil
}

// openFiles opens what a witness has in the place of a token.
func (n *node) openFiles() (err error) {
	if n.signer, err = openFileKey(n.config.Witness.Dir); err != nil {
		return err
	}
	kept, err := markfile.Open(marksDir(n.config.Witness))
	if err != nil {
		return err
	}
	n.marks = kept
	n.running.started("the node's mark", stopMarks, func(context.Context) error { return kept.Close() })
	return nil
}

// openRaft opens this node's part of the cluster. What openKeys opens is there once marks are.
func (n *node) openRaft(marks hsm.Marks) (err error) {
	var opened atomic.Pointer[cluster.Node] // its peers may be quicker than Open returns
	known := func() *state.State {
		if r := opened.Load(); r != nil {
			return r.State()
		}
		return state.New()
	}
	gate := gatekeeper{state: known, journal: n.openedJournal, log: n.log}
	cfg := cluster.Config{Dir: raftDir(n.config.DataDir), Peers: n.config.peers(), Forwarded: gate.admit, Healthy: n.unwell, Marks: marksOf(n.self, marks), Logger: n.log}
	if n.config.hasToken() {
		cfg.TokenHealthy = func() bool { return n.health.ok() }
	}
	cfg.Drained = func(ctx context.Context) error {
		if hot := n.hot.Load(); hot != nil {
			return hot.Drained(ctx)
		}
		return nil // nobody is served yet
	}
	if n.raft, err = cluster.Open(cfg); err != nil {
		return err
	}
	opened.Store(n.raft)
	n.running.started("raft", stopRaft, n.raft.Close)
	n.view = view.New(n.raft, n.self.NodeID)
	return nil
}

// startKeys begins to look after the token.
func (n *node) startKeys() {
	n.wraps = quota.NewWraps(n.self.NodeID, n.self.RegionID, proposer{n.raft})
	n.running.started("the share of seals", stopWraps, n.returnWraps)
	n.reconciler = reconcile.New(reconcile.Self{Region: n.self.RegionID, Node: n.self.NodeID, MaxObjects: n.config.HSM.MaxObjects}, ledger{proposer{n.raft}, n.view}, n.token, n.token, n.log)
	running, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.reconciler.Run(running)
	}()
	n.running.started("the reconciler", stopReconciler, func(ctx context.Context) error {
		stop() // a step that is cut off is taken up at the next start
		return await(ctx, ended)
	})
}

// returnWraps gives back what is left of the reservations, once no seal can be done any more.
func (n *node) returnWraps(ctx context.Context) error {
	if err := n.wraps.Return(ctx); err != nil {
		n.log.Warn("reserved seals were not all given back", "error", err)
	}
	return nil
}

// handOn has another node lead, if this one does, while it can still answer what the others bring.
func (n *node) handOn(ctx context.Context) error {
	if n.config.Peers == nil || !n.raft.IsLeader() || n.raft.Fault() != nil {
		return nil
	}
	if err := n.raft.TransferLeadership(ctx, hierarchy.NodeID{}); err != nil {
		n.log.Warn("leadership was not handed on; the others elect a leader", "error", err)
	}
	return nil
}

// await returns when what closes done has happened.
func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leasePatience is how long a lease may take that nothing stands in the way of: an election and a Tick. Then
// the log says what is waited for. A node that is alone gives up after startTimeout, since nobody will
// come to its help.
const leasePatience = 3 * time.Second

// awaitLease waits until this node's copy of the hierarchy is proved current for the first time.
func (n *node) awaitLease(ctx context.Context) error {
	var giveUp <-chan time.Time
	if n.config.Peers == nil {
		giveUp = time.After(startTimeout)
	}
	look := time.NewTicker(leasePatience)
	defer look.Stop()
	for {
		renewed := n.raft.Renewed()
		fault := n.view.Look().Fault
		if fault == nil {
			n.waits.Store(nil)
			return nil
		}
		select {
		case <-renewed:
		case <-look.C:
			n.waitsFor(fault)
		case err := <-n.raft.Failed():
			return fmt.Errorf("the cluster: %w", err)
		case err := <-n.sockets.failed:
			return err
		case <-giveUp:
			return fmt.Errorf("%w: no leader has confirmed this node's copy of the hierarchy in %v", hierarchy.ErrStale, startTimeout)
		case <-ctx.Done():
			return errInterrupted
		}
	}
}

// waitsFor says for what, to who asks for the status, and when that changes in the log and to systemd.
func (n *node) waitsFor(fault error) {
	what := fmt.Sprintf("a leader to confirm its copy of the hierarchy: %v", fault)
	if refused := n.raft.Refused(); refused != nil {
		what = fmt.Sprintf("its peers to talk to it: %v", refused)
	} else if _, ok := n.raft.Leader(); !ok {
		what = "a leader: none is known, and to elect one a majority of the voters has to run and to reach each other" + n.voters()
	}
	if said := n.waits.Swap(&what); said != nil && *said == what {
		return
	}
	n.log.Warn("this node does not serve yet: it waits for " + what)
	if _, err := daemon.SdNotify(false, "STATUS=waits for "+what); err != nil {
		n.log.Warn("systemd was not told what this node waits for", "error", err)
	}
}

// voters names those that this node knows, itself apart.
func (n *node) voters() string {
	var names []string
	for m := range n.raft.State().Nodes() {
		if m.Voter && m.ID != n.self.NodeID {
			names = append(names, fmt.Sprintf("%s at %s", m.Name, m.Address))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "; the others are " + strings.Join(names, ", ")
}
