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
// it. Format and stamp are filled in, and the idempotency ID if there is none; the command is not
// changed.
//
// An error is one of
//   - what the state machine refused it with, which is in the result too;
//   - [ErrNotLeader], [hierarchy.ErrInvalidArgument] for a command that is too large: it did not and
//     will not take effect;
//   - [hierarchy.ErrOutcomeUnknown]: it may or may not. The same command with the same idempotency ID,
//     which the error names, may be proposed again, and takes effect once.
//
// Where no leader is known, it waits for one until ctx ends.
func (n *Node) Propose(ctx context.Context, c *commandpb.Command) (state.Result, error) {
	c = &commandpb.Command{Format: state.Format, Id: c.GetId(), Actor: c.GetActor(), Body: c.GetBody()}
	if len(c.Id) == 0 {
		c.Id = newCommandID()
	}
	if err := n.awaitLeadership(ctx); err != nil {
		return state.Result{}, err
	}
	c.Stamp = n.clock.stamp(n.State().Stamp()).UnixNano()
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

// outcomeOf draws the line between what did not take effect and what may have.
func outcomeOf(err error, id []byte) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		// Raft gives these before an entry is made.
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return fmt.Errorf("%w: %w; repeat it with the idempotency ID %x to learn it", hierarchy.ErrOutcomeUnknown, err, id)
}

// awaitLeadership returns when this node leads, or at once if another does.
func (n *Node) awaitLeadership(ctx context.Context) error {
	for {
		change := n.leadership.next()
		if n.IsLeader() {
			return nil
		}
		if leader, ok := n.Leader(); ok && leader != n.id.Node {
			return fmt.Errorf("%w: node %s does", ErrNotLeader, leader)
		}
		select {
		case <-change:
		case <-ctx.Done():
			return fmt.Errorf("%w: nobody does: %w", ErrNotLeader, ctx.Err())
		case <-n.failure.done:
			return fmt.Errorf("%w: %w", ErrNotLeader, n.Fault())
		case <-n.stopped:
			return fmt.Errorf("%w: it is stopping", ErrNotLeader)
		}
	}
}

// Renew proposes a Tick, with the hash of the state that this node is at. What it returns proves
// that this node led when the Tick was committed: raft answers a proposal only if the entry was
// committed in the term in which this node appended it, and the state machine has applied it.
//
// It is the [lease.Renewer] of a node that leads.
func (n *Node) Renew(ctx context.Context) (uint64, error) {
	s := n.State()
	hash := s.Hash()
	res, err := n.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{StateHash: hash[:], StateIndex: s.Index()}}})
	if err != nil {
		return 0, err
	}
	return res.Index, nil
}
