package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// ErrNotLeader means that a command was not taken, because another node leads or none does. It
// wraps [hierarchy.ErrStale]; nothing was changed.
var ErrNotLeader = fmt.Errorf("%w: it does not lead the cluster", hierarchy.ErrStale)

// MaxCommand is the largest command, in bytes: raft's own suggestion, since entries are sent in
// line with heartbeats.
const MaxCommand = raft.SuggestedMaxDataSize

// enqueueTimeout is how long raft's main loop may take to take a command.
const enqueueTimeout = 5 * time.Second

func newCommandID() []byte {
	id := hierarchy.NewID()
	return id[:]
}

// Propose has the cluster apply a command and returns what became of it when this node has applied
// it, wherever the leader is. Format and stamp are filled in, and the idempotency ID if there is none; the
// command is not changed.
//
// An error is one of
//   - what the state machine refused it with, which is in the result too;
//   - [ErrNotLeader], [hierarchy.ErrInvalidArgument] for a command that is too large, or what the leader
//     refused it with before it was proposed: it did not and will not take effect;
//   - [hierarchy.ErrOutcomeUnknown]: it may or may not. The same command with the same idempotency ID,
//     which the error names, may be proposed again, and takes effect once.
//
// Where no leader is known, and while leadership goes from one node to another, it waits for one until ctx
// ends.
func (n *Node) Propose(ctx context.Context, c *commandpb.Command) (state.Result, error) {
	c = &commandpb.Command{Format: state.Format, Id: c.GetId(), Actor: c.GetActor(), Body: c.GetBody()}
	if len(c.Id) == 0 {
		c.Id = newCommandID()
	}
	for {
		change := n.leadership.next()
		leader, err := n.awaitLeader(ctx)
		if err != nil {
			return state.Result{}, err
		}
		var res state.Result
		if leader == n.id.Node {
			res, err = n.proposeHere(ctx, c)
		} else {
			res, err = n.forward(ctx, leader, c)
		}
		if !errors.Is(err, ErrNotLeader) || n.calls == nil {
			return res, err
		}
		// Nothing was proposed: it is safe to ask the next leader, or the same one again.
		select {
		case <-change:
		case <-time.After(askAgain):
		case <-ctx.Done():
			return state.Result{}, err
		case <-n.failure.done:
			return state.Result{}, fmt.Errorf("%w: %w", ErrNotLeader, n.Fault())
		case <-n.stopped:
			return state.Result{}, fmt.Errorf("%w: it is stopping", ErrNotLeader)
		}
	}
}

// askAgain is how soon a leader is asked again that was not ready to be one.
const askAgain = 25 * time.Millisecond

// proposeHere is for a node that leads. The command has its ID.
func (n *Node) proposeHere(ctx context.Context, c *commandpb.Command) (state.Result, error) {
	s := n.State()
	if level := state.LevelOf(c); s.Initialised() && level > s.FeatureLevel() {
		return state.Result{}, fmt.Errorf("%w: not every node knows this command yet: finish the upgrade of all nodes, `kekctl node list` shows which is behind", hierarchy.ErrFailedPrecondition)
	}
	c = &commandpb.Command{Format: state.Format, Id: c.GetId(), Actor: c.GetActor(), Body: c.GetBody()}
	if len(c.Id) == 0 {
		c.Id = newCommandID()
	}
	c.Stamp = n.clock.stamp(s.Stamp(), n.voters(s)).UnixNano()
	data, err := c.MarshalVT()
	if err != nil {
		return state.Result{}, err
	}
	if len(data) > MaxCommand {
		return state.Result{}, fmt.Errorf("%w: the command has %d bytes, at most %d are allowed", hierarchy.ErrInvalidArgument, len(data), MaxCommand)
	}

	type answer struct {
		res state.Result
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		future := n.raft.ApplyLog(raft.Log{Data: data}, enqueueTimeout)
		if err := future.Error(); err != nil {
			answers <- answer{err: err}
			return
		}
		answers <- answer{res: future.Response().(state.Result)}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		// Whether raft has it already, nobody can tell.
		a.err = ctx.Err()
	case <-n.failure.done:
		a.err = n.Fault()
	case <-n.stopped:
		// Raft drops what its state machine had not taken yet without an answer.
		a.err = raft.ErrRaftShutdown
	}
	if a.err != nil {
		return state.Result{}, outcomeOf(a.err, c.Id)
	}
	return a.res, a.res.Err
}

// voters are those whose clocks count. A node that has no state yet has only itself.
func (n *Node) voters(s *state.State) []hierarchy.NodeID {
	var ids []hierarchy.NodeID
	for m := range s.Nodes() {
		if m.Voter {
			ids = append(ids, m.ID)
		}
	}
	if len(ids) == 0 {
		ids = append(ids, n.id.Node)
	}
	return ids
}

// outcomeOf draws the line between what did not take effect and what may have.
func outcomeOf(err error, id []byte) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		// Raft gives these before an entry is made.
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return unknown(err, id)
}

// awaitLeader returns who leads, once somebody does. A node without peers waits for itself.
func (n *Node) awaitLeader(ctx context.Context) (hierarchy.NodeID, error) {
	for {
		change := n.leadership.next()
		if n.IsLeader() {
			return n.id.Node, nil
		}
		if leader, ok := n.Leader(); ok && leader != n.id.Node {
			if n.calls == nil {
				return leader, fmt.Errorf("%w: node %s does", ErrNotLeader, leader)
			}
			return leader, nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return hierarchy.NodeID{}, fmt.Errorf("%w: nobody does: %w", ErrNotLeader, ctx.Err())
		case <-n.failure.done:
			return hierarchy.NodeID{}, fmt.Errorf("%w: %w", ErrNotLeader, n.Fault())
		case <-n.stopped:
			return hierarchy.NodeID{}, fmt.Errorf("%w: it is stopping", ErrNotLeader)
		}
	}
}
