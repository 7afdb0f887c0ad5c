package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// calls reaches the other nodes, beside Raft.
type calls interface {
	// Peer returns once a call would be sent: before that, nothing has reached the node.
	Peer(ctx context.Context, id hierarchy.NodeID) (peerpb.PeerClient, error)
}

// reachTimeout is how long a leader may take to be connected to: as long as an election lasts.
const reachTimeout = 500 * time.Millisecond

// leaderCall connects to the leader. Its error is [ErrNotLeader]: nothing was sent.
func (n *Node) leaderCall(ctx context.Context, leader hierarchy.NodeID) (peerpb.PeerClient, error) {
	if n.calls == nil {
		return nil, fmt.Errorf("%w: node %s does, and this one has no peers", ErrNotLeader, n.name(leader))
	}
	reaching, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	client, err := n.calls.Peer(reaching, leader)
	if err != nil {
		return nil, fmt.Errorf("%w: node %s does, and is not reached: %w", ErrNotLeader, n.name(leader), err)
	}
	return client, nil
}

// forward has the leader propose a command, and waits until this node has it.
func (n *Node) forward(ctx context.Context, leader hierarchy.NodeID, c *commandpb.Command) (state.Result, error) {
	data, err := c.MarshalVT()
	if err != nil {
		return state.Result{}, err
	}
	if len(data) > MaxCommand {
		return state.Result{}, fmt.Errorf("%w: the command has %d bytes, at most %d are allowed", hierarchy.ErrInvalidArgument, len(data), MaxCommand)
	}
	client, err := n.leaderCall(ctx, leader)
	if err != nil {
		return state.Result{}, err
	}
	asking, cancel := n.whileLeading(ctx, leader)
	defer cancel()
	answer, err := client.Propose(asking, &peerpb.ProposeRequest{Command: data})
	if err != nil {
		if status.Code(err) == codes.Canceled && ctx.Err() == nil {
			err = fmt.Errorf("node %s leads no longer", n.name(leader))
		}
		n.counts.forwardedAs(false)
		return state.Result{}, unknown(err, c.Id)
	}
	n.counts.forwardedAs(answer.GetOutcome() == peerpb.Outcome_OUTCOME_DECIDED)
	return n.decided(ctx, c.Id, answer)
}

// whileLeading ends with ctx, when this node stops, and when it hears of another leader: the one that
// was asked may be cut off, and not know yet.
func (n *Node) whileLeading(ctx context.Context, leader hierarchy.NodeID) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			change := n.leadership.next()
			if now, ok := n.Leader(); ok && now != leader {
				cancel()
			}
			select {
			case <-change:
			case <-n.stopped:
				cancel()
			case <-n.failure.done:
				cancel()
			case <-ctx.Done():
				return
			}
			if ctx.Err() != nil {
				return
			}
		}
	}()
	return ctx, cancel
}

// decided turns the leader's answer into what [Node.Propose] returns.
func (n *Node) decided(ctx context.Context, id []byte, a *peerpb.ProposeResponse) (state.Result, error) {
	res := state.Result{Index: a.GetIndex(), Replayed: a.GetReplayed(), Err: refused(a.GetErrorCode(), a.GetErrorMessage())}
	switch a.GetOutcome() {
	case peerpb.Outcome_OUTCOME_DECIDED:
		if err := n.WaitFor(ctx, a.GetIndex()); err != nil {
			if res.Err != nil {
				return res, res.Err
			}
			return state.Result{}, fmt.Errorf("%w: it took effect, at index %d, and this node does not have it yet: %w", hierarchy.ErrOutcomeUnknown, a.GetIndex(), err)
		}
		return res, res.Err
	case peerpb.Outcome_OUTCOME_NOT_LEADER:
		return state.Result{}, fmt.Errorf("%w: %s", ErrNotLeader, a.GetErrorMessage())
	case peerpb.Outcome_OUTCOME_NOT_PROPOSED:
		if res.Err == nil {
			return state.Result{}, fmt.Errorf("%w: the leader refused without a reason", hierarchy.ErrStale)
		}
		return state.Result{}, res.Err
	}
	err := res.Err
	if err == nil {
		err = errors.New("the leader's answer is not known to this version")
	}
	return state.Result{}, unknown(err, id)
}

// refusal is a peer's error, with the words that it had there.
type refusal struct {
	sentinel error
	words    string
}

func (r *refusal) Error() string { return r.words }
func (r *refusal) Unwrap() error { return r.sentinel }

// refused is the error of a code and words that came from a peer; nil without a code.
func refused(code, words string) error {
	if code == "" {
		return nil
	}
	sentinel, ok := hierarchy.ErrorOfCode(code)
	if !ok {
		return fmt.Errorf("%s: %s", code, words)
	}
	return &refusal{sentinel, words}
}

// words puts an error into those two.
func words(err error) (code, text string) {
	if err == nil {
		return "", ""
	}
	return hierarchy.Code(err), err.Error()
}

func unknown(err error, id []byte) error {
	if errors.Is(err, hierarchy.ErrOutcomeUnknown) {
		return err
	}
	return fmt.Errorf("%w: %w; repeat it with the idempotency ID %x to learn it", hierarchy.ErrOutcomeUnknown, err, id)
}
