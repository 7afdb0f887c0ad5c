package cluster

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// Renew has the leader prove itself, and returns when this node's state has reached what proves it. It is the
// [lease.Renewer] of every node, the leader included. A node that could not serve asks as well, since the leader learns from that how
// it does, but takes no lease.
//
// What it returns proves that a node led when the Tick was committed, and that the Tick was proposed after
// the call: raft answers a proposal only if the entry was committed in the term in which the leader
// appended it, and the leader answers only once its state machine has applied it.
func (n *Node) Renew(ctx context.Context) (uint64, error) {
	index, err := n.prove(ctx)
	if err != nil {
		return 0, err
	}
	if err := n.Unwell(); err != nil {
		return 0, fmt.Errorf("this node could not serve: %w", err)
	}
	return index, nil
}

// Unwell says why this node takes no lease; nil: it does.
func (n *Node) Unwell() error {
	if n.cfg.Healthy == nil {
		return nil
	}
	return n.cfg.Healthy()
}

func (n *Node) prove(ctx context.Context) (uint64, error) {
	leader, err := n.awaitLeader(ctx)
	if err != nil {
		return 0, err
	}
	if !n.registered(n.State()) {
		if err := n.registerFirst(ctx); err != nil {
			return 0, err
		}
	}
	if leader == n.id.Node {
		n.heard(leader, n.word(), n.cfg.Wall())
		return n.ticks.tick(ctx)
	}
	client, err := n.leaderCall(ctx, leader)
	if err != nil {
		return 0, err
	}
	asking, cancel := n.whileLeading(ctx, leader)
	defer cancel()
	w, nonce, epoch := n.word(), hierarchy.NewID(), n.State().Epoch()
	answer, err := client.RenewLease(asking, &peerpb.RenewLeaseRequest{
		NodeId: n.id.Node.ID[:], Incarnation: n.run[:], Epoch: epoch, Nonce: nonce[:], Wall: n.cfg.Wall().UnixNano(),
		Applied: w.applied, FeatureLevel: w.level, TokenHealthy: w.healthy,
	})
	if err != nil {
		return 0, fmt.Errorf("%w: the leader, node %s, did not renew: %w", hierarchy.ErrStale, n.name(leader), err)
	}
	if !bytes.Equal(answer.GetNonce(), nonce[:]) || answer.GetEpoch() != epoch {
		return 0, fmt.Errorf("%w: node %s answered another request", hierarchy.ErrStale, n.name(leader))
	}
	return answer.GetIndex(), n.WaitFor(ctx, answer.GetIndex())
}

// word is what this node says of itself.
func (n *Node) word() word {
	healthy := n.cfg.TokenHealthy != nil && n.cfg.TokenHealthy()
	return word{applied: n.State().Index(), level: state.Level, healthy: healthy}
}

// renewalInterval is how long this node waits from one renewal to the next.
func (n *Node) renewalInterval() time.Duration { return lease.Interval(n.State().MinStaleness()) }
