package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// How says how a node came to be no danger to a fence.
type How string

const (
	// Acknowledged means that the node has applied the closing, and has nothing in flight from before.
	Acknowledged How = "acknowledged"
	// LeaseExpired means that whatever lease it had has run out.
	LeaseExpired How = "lease-expired"
)

// FencedNode is one of those that a fence waited for.
type FencedNode struct {
	Node hierarchy.NodeID
	How  How
}

// FenceReport is what became of a fence.
type FenceReport struct {
	Index uint64 // of the closing
	// Fenced means that no node can act on a state from before the closing, and that a majority of the voters
	// holds it outside of its disk as well.
	Fenced  bool
	Elapsed time.Duration
	Nodes   []FencedNode // those that are known to be no danger, sorted
	Waiting []hierarchy.NodeID
}

// waitedOut are the nodes that have not acknowledged.
func (r FenceReport) waitedOut() (ids []hierarchy.NodeID) {
	for _, is := range r.Nodes {
		if is.How == LeaseExpired {
			ids = append(ids, is.Node)
		}
	}
	return ids
}

const (
	// fenceCall is how long one request for an acknowledgement may take before it is sent anew.
	fenceCall = 2 * time.Second
	// fenceAgain is how soon a node that did not answer is asked again.
	fenceAgain = 20 * time.Millisecond
)

// Fence waits until no node can act any more on a state from before the closing at an index that this node has
// applied, and records that. Any node may wait, also several at once, and for a closing that another node has proposed.
func (n *Node) Fence(ctx context.Context, index uint64) (FenceReport, error) {
	s := n.State()
	if s.Index() < index {
		return FenceReport{Index: index}, fmt.Errorf("%w: this node is at index %d, before %d", hierarchy.ErrStale, s.Index(), index)
	}
	f, pending := s.Fence(index)
	if !pending {
		return FenceReport{Index: index, Fenced: true}, nil // it is recorded as complete, or closed nothing
	}
	return n.await(ctx, f)
}

// Await is [Node.Fence] for a fence that this node's state has, or had.
//
// Everybody who could hold a lease at the closing, as the state said there and then, has acknowledged it by his
// incarnation, or his lease must have run out: [lease.Expiry] on this node's age clock since this node has seen
// the closing committed. Raft's own configuration does not matter for that.
//
// When ctx ends first, the report says who is still waited for, and the error is [hierarchy.ErrOutcomeUnknown].
//
// It is for who asked for the closing, and so it is what [Stats] counts.
func (n *Node) Await(ctx context.Context, f *state.Fence) (FenceReport, error) {
	report, err := n.await(ctx, f)
	if err != nil {
		n.counts.unfenced.Add(1)
		n.cfg.Logger.Warn("a closing took effect, and is not known to be obeyed by every node", "index", f.Index, "elapsed", report.Elapsed.Round(time.Millisecond), "waiting", n.names(report.Waiting), "error", err)
		return report, err
	}
	n.counts.fences.Observe(report.Elapsed)
	n.cfg.Logger.Info("a closing is obeyed by every node", "index", f.Index, "elapsed", report.Elapsed.Round(time.Millisecond), "waited_out", n.names(report.waitedOut()))
	return report, nil
}

func (n *Node) await(ctx context.Context, f *state.Fence) (FenceReport, error) {
	// The clock after the state: this process may be stopped in between, and the closing is committed only now.
	w := newFenceWait(n, f, n.cfg.Clock.Now())
	report, err := w.wait(ctx)
	if err != nil {
		return report, err
	}
	// Another node, and the leader, would wait again without this. It is of no consequence for who asked.
	go n.recordFence(f.Index)
	return report, nil
}

func (n *Node) recordFence(index uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), driveTimeout)
	defer cancel()
	if _, err := n.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_CompleteFence{CompleteFence: &commandpb.CompleteFence{Index: index}}}); err != nil {
		n.cfg.Logger.Debug("a fence that is complete is not recorded; the leader waits for it again", "index", index, "error", err)
	}
}

// confirmFence is for the leader, which records the end of a fence on nobody's word but its own: a member that is wrong,
// or lies, would end the wait of whoever closes the same again. Where all is well it has the acknowledgements at once.
func (n *Node) confirmFence(ctx context.Context, index uint64) error {
	s := n.State()
	if s.Index() < index {
		return fmt.Errorf("%w: it is at index %d, before %d", hierarchy.ErrStale, s.Index(), index)
	}
	f, pending := s.Fence(index)
	if !pending {
		return nil
	}
	_, err := newFenceWait(n, f, n.cfg.Clock.Now()).wait(ctx)
	return err
}

// fenceWait is one wait for one fence.
type fenceWait struct {
	n        *Node
	fence    *state.Fence
	holders  []state.Holder // who is waited for
	observed time.Duration

	mu      sync.Mutex
	done    map[state.Holder]How
	held    map[hierarchy.NodeID]bool // voters that hold the closing outside of their disk
	changed chan struct{}
}

func newFenceWait(n *Node, f *state.Fence, observed time.Duration) *fenceWait {
	return &fenceWait{n: n, fence: f, holders: n.waitsFor(f), observed: observed, done: map[state.Holder]How{}, held: map[hierarchy.NodeID]bool{}, changed: make(chan struct{}, 1)}
}

func (w *fenceWait) wait(ctx context.Context) (FenceReport, error) {
	asking, stop := context.WithCancel(ctx)
	defer stop()
	for _, id := range w.asked() {
		go w.ask(asking, id)
	}
	expiry := lease.Expiry(w.fence.Wait)
	tick := time.NewTicker(fenceAgain)
	defer tick.Stop()
	for {
		// By reading the clock: a timer that fires early, or a process that was stopped, must not count.
		if elapsed := w.n.cfg.Clock.Now() - w.observed; elapsed >= expiry {
			w.expire()
		}
		if w.complete() {
			return w.report(true), nil
		}
		// A snapshot may have taken the state back to before the closing: there is no fence in that.
		if s := w.n.State(); s.Index() >= w.fence.Index {
			if _, pending := s.Fence(w.fence.Index); !pending {
				return w.report(true), nil // another node has waited for it, and recorded that
			}
		}
		select {
		case <-w.changed:
		case <-tick.C:
		case <-ctx.Done():
			r := w.report(false)
			return r, fmt.Errorf("%w: it took effect, at index %d, and %s: %w", hierarchy.ErrOutcomeUnknown, w.fence.Index, w.lacking(r), ctx.Err())
		case <-w.n.failure.done:
			return w.report(false), fmt.Errorf("%w: it took effect, at index %d: %w", hierarchy.ErrOutcomeUnknown, w.fence.Index, w.n.Fault())
		case <-w.n.stopped:
			return w.report(false), fmt.Errorf("%w: it took effect, at index %d: this node is stopping", hierarchy.ErrOutcomeUnknown, w.fence.Index)
		}
	}
}

// asked are the holders' nodes, and the voters, who may hold no lease.
func (w *fenceWait) asked() (ids []hierarchy.NodeID) {
	add := func(id hierarchy.NodeID) {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, h := range w.holders {
		add(h.Node)
	}
	votes, _ := w.n.votes()
	for id, votes := range votes {
		if votes {
			add(id)
		}
	}
	return ids
}

// ask asks a node until it has acknowledged all that can be had of it.
func (w *fenceWait) ask(ctx context.Context, id hierarchy.NodeID) {
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, fenceCall)
		a, err := w.n.awaitFenceAt(call, id, w.fence.Index)
		cancel()
		if err == nil && w.acknowledged(id, a) {
			return
		}
		select {
		case <-time.After(fenceAgain):
		case <-ctx.Done():
		}
	}
}

// acknowledged takes an answer, and tells whether there is nothing more to ask for. An answer counts for the
// incarnation that gives it and for no other of the same node.
func (w *fenceWait) acknowledged(id hierarchy.NodeID, a *peerpb.AwaitFenceResponse) bool {
	incarnation, err := hierarchy.IDFromBytes(a.GetIncarnation())
	if err != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.holders {
		if speaksFor(state.Holder{Node: id, Incarnation: incarnation}, h) {
			w.done[h] = Acknowledged
		}
	}
	if a.GetHeld() {
		w.held[id] = true
	}
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return a.GetHeld()
}

// expire counts all leases as run out.
func (w *fenceWait) expire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.holders {
		if _, ok := w.done[h]; !ok {
			w.done[h] = LeaseExpired
		}
	}
}

func (w *fenceWait) complete() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.holders {
		if _, ok := w.done[h]; !ok {
			return false
		}
	}
	return w.majority()
}

// majority tells whether a majority of raft's voters holds the closing. w.mu is held.
func (w *fenceWait) majority() bool {
	votes, known := w.n.votes()
	if !known {
		return false
	}
	voters, held := 0, 0
	for id, votes := range votes {
		if votes {
			voters++
			if w.held[id] {
				held++
			}
		}
	}
	return 2*held > voters
}

func (w *fenceWait) report(fenced bool) FenceReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := FenceReport{Index: w.fence.Index, Fenced: fenced, Elapsed: w.n.cfg.Clock.Now() - w.observed}
	for _, h := range w.holders {
		how, ok := w.done[h]
		switch i := slices.IndexFunc(r.Nodes, func(f FencedNode) bool { return f.Node == h.Node }); {
		case !ok:
			if !slices.Contains(r.Waiting, h.Node) {
				r.Waiting = append(r.Waiting, h.Node)
			}
		case i < 0:
			r.Nodes = append(r.Nodes, FencedNode{h.Node, how})
		case how == LeaseExpired: // one run of the node acknowledged, an earlier one was waited out
			r.Nodes[i].How = how
		}
	}
	return r
}

func (w *fenceWait) lacking(r FenceReport) string {
	if len(r.Waiting) == 0 {
		return "no majority of the voters has acknowledged it: not " + w.n.names(w.lags())
	}
	return "may still be served from the state before it, until a lease runs out, by " + w.n.names(r.Waiting)
}

// lags are the voters that have not acknowledged the closing.
func (w *fenceWait) lags() (ids []hierarchy.NodeID) {
	votes, _ := w.n.votes()
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, votes := range votes {
		if votes && !w.held[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// names are for people, sorted.
func (n *Node) names(ids []hierarchy.NodeID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = n.name(id)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// awaitFenceAt asks a node, which may be this one.
func (n *Node) awaitFenceAt(ctx context.Context, id hierarchy.NodeID, index uint64) (*peerpb.AwaitFenceResponse, error) {
	if id == n.id.Node {
		return n.awaitFence(ctx, index)
	}
	if n.calls == nil {
		return nil, fmt.Errorf("%w: no way to node %s", hierarchy.ErrStale, id)
	}
	client, err := n.calls.Peer(ctx, id)
	if err != nil {
		return nil, err
	}
	return client.AwaitFence(ctx, &peerpb.AwaitFenceRequest{Index: index})
}
