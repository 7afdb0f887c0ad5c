package cluster

import (
	"context"
	"time"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// othersFirst is how long the leader leaves a fence to the node that proposed its closing.
const othersFirst = time.Second

// finishFences has the leader see to the fences and tombstones that nobody else waits for: whoever waited for one
// may be gone, and what is pending makes later waits longer.
func (n *Node) finishFences(ctx context.Context) {
	under := map[uint64]context.CancelFunc{}      // by index of the closing: what this leader waits for
	graves := map[state.Tombstone]time.Duration{} // when this leader has first seen a tombstone
	over := make(chan uint64)
	timer := time.NewTicker(driveInterval)
	defer timer.Stop()
	for {
		change := n.Changed()
		if !n.IsLeader() {
			for _, cancel := range under {
				cancel()
			}
			clear(graves)
		} else {
			s := n.State()
			for f := range s.Fences() {
				if _, waits := under[f.Index]; waits {
					continue
				}
				waiting, cancel := context.WithCancel(ctx)
				under[f.Index] = cancel
				n.running.Go(func() {
					defer cancel()
					n.finishFence(waiting, f.Index)
					select {
					case over <- f.Index:
					case <-ctx.Done():
					}
				})
			}
			n.retire(ctx, s, graves)
		}
		select {
		case <-change:
		case <-timer.C:
		case index := <-over:
			delete(under, index)
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) finishFence(ctx context.Context, index uint64) {
	select {
	case <-time.After(othersFirst):
	case <-ctx.Done():
		return
	}
	if _, err := n.Fence(ctx, index); err != nil {
		n.cfg.Logger.Debug("a fence is not complete", "index", index, "error", err)
	}
}

// retire records that the leases of tombstones have run out, once this leader has waited for that.
func (n *Node) retire(ctx context.Context, s *state.State, graves map[state.Tombstone]time.Duration) {
	now := n.cfg.Clock.Now()
	live := map[state.Tombstone]bool{}
	for t := range s.Tombstones() {
		live[*t] = true
		seen, known := graves[*t]
		if !known {
			graves[*t] = now
			continue
		}
		if now-seen < lease.Expiry(t.Wait) {
			continue
		}
		step, cancel := context.WithTimeout(ctx, driveTimeout)
		_, err := n.proposeHere(step, &commandpb.Command{Body: &commandpb.Command_RetireTombstone{RetireTombstone: &commandpb.RetireTombstone{
			NodeId: idBytes(t.Node), Incarnation: t.Incarnation[:], Index: t.Index,
		}}})
		cancel()
		if err != nil {
			n.cfg.Logger.Debug("a tombstone is not retired yet", "node", n.name(t.Node), "error", err)
		}
	}
	for t := range graves {
		if !live[t] {
			delete(graves, t)
		}
	}
}
