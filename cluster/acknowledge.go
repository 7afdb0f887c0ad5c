package cluster

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
)

// acknowledged is the highest index of a fence that this run has acknowledged: it never again serves from a
// state that is older, also if a snapshot that comes late takes the state machine back.
type acknowledged struct{ index atomic.Uint64 }

func (a *acknowledged) raise(to uint64) {
	for {
		now := a.index.Load()
		if now >= to || a.index.CompareAndSwap(now, to) {
			return
		}
	}
}

// Acknowledged is the highest index of a fence that this run of the process has acknowledged. Who serves reads it
// after the state.
func (n *Node) Acknowledged() uint64 { return n.acked.index.Load() }

// Incarnation is this run of the process.
func (n *Node) Incarnation() hierarchy.ID { return n.run }

// heldAgain is how soon the log is looked at again for an entry of the leader's term. A Tick brings one at
// least four times a second.
const heldAgain = 5 * time.Millisecond

// awaitFence acknowledges a closing, once this node has applied it and is done with what was in flight.
//
// The order matters: the index is taken note of before the state is looked at again by those in flight, and the answer
// is given after they are over. The mark is set last of all: the disk is synced already, so that a crash
// in between leaves the disk ahead of the mark, and locks no healthy node out.
func (n *Node) awaitFence(ctx context.Context, index uint64) (*peerpb.AwaitFenceResponse, error) {
	if err := n.WaitFor(ctx, index); err != nil {
		return nil, err
	}
	if remembersAcknowledged {
		n.acked.raise(index)
	}
	if n.cfg.Drained != nil && awaitsInFlight {
		if err := n.cfg.Drained(ctx); err != nil {
			return nil, fmt.Errorf("what is in flight is not over: %w", err)
		}
	}
	// Without a mark the acknowledgement counts for this node's lease, and not for the majority.
	held := n.hold(ctx, index) == nil
	return &peerpb.AwaitFenceResponse{Incarnation: n.run[:], Held: held}, nil
}

// hold marks the last entry of this node's log, once that is of the present leader's term and at or after index.
func (n *Node) hold(ctx context.Context, index uint64) error {
	for {
		m, err := n.position()
		if err != nil {
			return err
		}
		if m.counts(index) {
			return n.markHeld(ctx, m)
		}
		select {
		case <-time.After(heldAgain):
		case <-ctx.Done():
			return ctx.Err()
		case <-n.failure.done:
			return n.Fault()
		}
	}
}

func (n *Node) markHeld(ctx context.Context, m Mark) error {
	switch {
	case n.cfg.Marks == nil:
		return nil
	case !marksFirst():
		go n.setMark(m)
		return nil
	}
	return n.tryMark(ctx, m)
}

// position is where this node's log ends, and in which term it is.
func (n *Node) position() (Mark, error) {
	return n.stores.withLastEntry(Mark{Term: n.raft.CurrentTerm()})
}
