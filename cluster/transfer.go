package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
)

// TransferLeadership has the leader, whoever it is, hand leadership to a voter; to whom it likes if the ID is
// zero. It returns when this node knows that another leads. [ErrNotLeader] if nobody leads; if the
// voter does not take it in time, the leader goes on, and the error says so.
func (n *Node) TransferLeadership(ctx context.Context, to hierarchy.NodeID) error {
	leader, err := n.awaitLeader(ctx)
	if err != nil {
		return err
	}
	if to == leader {
		return fmt.Errorf("%w: node %s leads already", hierarchy.ErrFailedPrecondition, n.name(to))
	}
	if leader == n.id.Node {
		err = n.transferHere(ctx, idBytes(to))
	} else {
		client, reachErr := n.leaderCall(ctx, leader)
		if reachErr != nil {
			return reachErr
		}
		answer, callErr := client.TransferLeadership(ctx, &peerpb.TransferLeadershipRequest{NodeId: idBytes(to)})
		if callErr != nil {
			return fmt.Errorf("%w: the leader did not say whether it has handed leadership on: %w", hierarchy.ErrOutcomeUnknown, callErr)
		}
		err = refused(answer.GetErrorCode(), answer.GetErrorMessage())
	}
	if err != nil {
		return err
	}
	for {
		change := n.leadership.next()
		if now, ok := n.Leader(); ok && now != leader {
			return nil
		}
		select {
		case <-change:
		case <-time.After(askAgain): // a signal may have been for an older one
		case <-ctx.Done():
			return fmt.Errorf("%w: leadership was handed on, and this node does not know yet who leads: %w", hierarchy.ErrOutcomeUnknown, ctx.Err())
		}
	}
}

func idBytes(id hierarchy.NodeID) []byte {
	if id.IsZero() {
		return nil
	}
	return id.ID[:]
}

func (n *Node) name(id hierarchy.NodeID) string {
	if m, ok := n.State().Node(id); ok {
		return m.Name
	}
	return id.String()
}

// transferHere is for the leader.
func (n *Node) transferHere(ctx context.Context, to []byte) error {
	if !n.IsLeader() {
		return ErrNotLeader
	}
	s := n.State()
	if len(to) == 0 {
		id, err := n.awaitSuccessor(ctx)
		if err != nil {
			return err
		}
		return n.transfer(ctx, id)
	}
	id, err := hierarchy.IDFromBytes(to)
	if err != nil {
		return fmt.Errorf("%w: node ID: %v", hierarchy.ErrInvalidArgument, err)
	}
	node := hierarchy.NodeID{ID: id}
	if _, ok := s.Node(node); !ok {
		return fmt.Errorf("%w: node %s", hierarchy.ErrNotFound, node)
	}
	if votes, _ := n.votes(); !votes[node] {
		return fmt.Errorf("%w: node %s does not vote: `kekctl node list` shows who does", hierarchy.ErrFailedPrecondition, n.name(node))
	}
	return n.transfer(ctx, node)
}

// awaitSuccessor gives a leader that has only just begun the time to hear of the others.
func (n *Node) awaitSuccessor(ctx context.Context) (hierarchy.NodeID, error) {
	for deadline := time.Now().Add(present); ; {
		if id, ok := n.successor(n.State(), n.roll.call()); ok {
			return id, nil
		}
		if time.Now().After(deadline) || !n.IsLeader() {
			return hierarchy.NodeID{}, fmt.Errorf("%w: no other voter with a token can be reached", hierarchy.ErrFailedPrecondition)
		}
		select {
		case <-time.After(askAgain):
		case <-ctx.Done():
			return hierarchy.NodeID{}, ctx.Err()
		}
	}
}

// transfer waits until raft has handed leadership to a voter, or has given it up after an election's time.
func (n *Node) transfer(ctx context.Context, to hierarchy.NodeID) error {
	done := make(chan error, 1)
	go func() { done <- n.raft.LeadershipTransferToServer(serverID(to), serverAddress(to)).Error() }()
	select {
	case err := <-done:
		switch {
		case errors.Is(err, raft.ErrNotLeader):
			return ErrNotLeader
		case err != nil:
			return fmt.Errorf("%w: node %s did not take over: %w", hierarchy.ErrFailedPrecondition, n.name(to), err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: leadership is being handed to node %s: %w", hierarchy.ErrOutcomeUnknown, n.name(to), ctx.Err())
	case <-n.failure.done:
		return n.Fault()
	}
}
