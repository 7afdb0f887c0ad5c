package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// seekEvery is how often a node without a leader asks around.
const seekEvery = 500 * time.Millisecond

// keepInTouch tells the cluster where this node is, if that is another place than the hierarchy has, and asks
// around while nobody leads as far as this node knows: a leader cannot reach a node that has moved, sends nothing
// to one that was removed, and is not let in where it is not known.
func (n *Node) keepInTouch(ctx context.Context) {
	for ctx.Err() == nil {
		leader, led := n.Leader()
		self, member := n.State().Node(n.id.Node)
		switch {
		case !led:
			n.directory.learn()
			if n.cfg.Peers != nil {
				n.announce(ctx, n.directory.others())
			}
		case member && n.cfg.Peers != nil && self.Address != n.cfg.Peers.address() && n.keeper.Current().Index > 0:
			n.announce(ctx, []hierarchy.NodeID{leader})
		}
		change := n.leadership.next()
		select {
		case <-change:
		case <-time.After(seekEvery):
		case <-ctx.Done():
		}
	}
}

// announce has the first of some nodes that leads put this node's address into the hierarchy.
func (n *Node) announce(ctx context.Context, to []hierarchy.NodeID) {
	address := n.cfg.Peers.address()
	c := &commandpb.Command{Format: state.Format, Id: newCommandID(), Body: &commandpb.Command_SetNode{SetNode: &commandpb.SetNode{
		NodeId: n.id.Node.ID[:], Address: &address,
	}}}
	if told, ok := n.directory.introduced().find(n.id.Node); ok && told.Address == address {
		return // nobody leads, but they know where this node is
	}
	for _, id := range to {
		telling, cancel := context.WithTimeout(ctx, driveTimeout)
		var err error
		if id == n.id.Node {
			_, err = n.proposeHere(telling, c)
		} else {
			_, err = n.tell(telling, id, c)
		}
		cancel()
		if err == nil {
			n.cfg.Logger.Info("this node has told the others its address", "address", address)
			return
		}
	}
}

// tell forwards a command without waiting for its effect to arrive here: before the leader knows where this node
// is, nothing does.
func (n *Node) tell(ctx context.Context, leader hierarchy.NodeID, c *commandpb.Command) (*peerpb.ProposeResponse, error) {
	data, err := c.MarshalVT()
	if err != nil {
		return nil, err
	}
	client, err := n.leaderCall(ctx, leader)
	if err != nil {
		return nil, err
	}
	a, err := client.Propose(ctx, &peerpb.ProposeRequest{Command: data})
	if err == nil && a.GetOutcome() != peerpb.Outcome_OUTCOME_DECIDED {
		err = fmt.Errorf("%w: %s", ErrNotLeader, a.GetErrorMessage())
	}
	return a, err
}

// shunned is why a peer does not talk to this node.
type shunned struct {
	by  hierarchy.NodeID
	err error
	at  time.Duration // on the age clock
}

// shunnedFor is how long a peer's refusal counts as this node's state: it is repeated with each try.
const shunnedFor = 10 * time.Second

func (n *Node) refusedBy(id hierarchy.NodeID, err error) {
	n.shunned.Store(&shunned{id, err, n.cfg.Clock.Now()})
}

// Refused says why a peer would not talk to this node when it last tried: that it was removed, is of another
// cluster, or of a superseded epoch. Nil if none has for some seconds.
func (n *Node) Refused() error {
	s := n.shunned.Load()
	if s == nil || n.cfg.Clock.Now()-s.at > shunnedFor {
		return nil
	}
	return s.err
}

var _ peer.Directory = (*directory)(nil)
