package socketapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Fenced is what is known of a fence.
type Fenced struct {
	Elapsed time.Duration // since this node has seen the closing committed
	Nodes   []FencedNode  // those that are no danger to it any more
}

// FencedNode is a node that a fence has waited for.
type FencedNode struct {
	Node hierarchy.NodeID
	How  string // acknowledged, or lease-expired
}

const (
	// closingPatience is how long a change that closes may take until it is committed, at most: an election has room in
	// it several times.
	closingPatience = 4500 * time.Millisecond
	// answerTime is what is left of a fence's bound for the answer and its record.
	answerTime = 200 * time.Millisecond
	// proposeAgain is how soon a change is proposed again of which it is not known whether it was taken.
	proposeAgain = 50 * time.Millisecond
)

// fenceBound is when the answer to a closing is due, from its commit on, if nodes served from a state that was as old
// as staleness. Leases have run out 450 ms before: clocks of two machines differ by less than 1 %.
func fenceBound(staleness time.Duration) time.Duration {
	return staleness + (staleness+99)/100 + 500*time.Millisecond
}

func (a *adminService) GetFenceBound(_ context.Context, m *kekdv1.GetFenceBoundRequest) (*kekdv1.GetFenceBoundResponse, error) {
	s := a.Hierarchy.State()
	staleness := s.LongestStaleness()
	if m.Tenant != "" {
		t, err := tenantByName(s, m.Tenant)
		if err != nil {
			return nil, err
		}
		staleness = s.CountingStaleness(t.ID)
	}
	return &kekdv1.GetFenceBoundResponse{Bound: int64(fenceBound(staleness))}, nil
}

// close is change for what may close something: it returns when that is effective on every node, or, with
// noWait, when it is committed.
//
// It never takes longer than [closingPatience] until it is committed, nor longer than [fenceBound] from then on. What is not
// certain by then is [hierarchy.ErrOutcomeUnknown], also where no leader was found: a refusal would say that somebody has
// looked at it.
func (a *adminService) close(ctx context.Context, idempotencyID []byte, noWait bool, r AdminRecord, build func(*state.State) (*commandpb.Command, error)) (committed, error) {
	id, err := commandID(idempotencyID)
	if err != nil {
		return committed{}, err
	}
	done := committed{id: id}
	err = a.recorded(ctx, id, r, func(who hierarchy.Principal, r *AdminRecord) (string, error) {
		before := a.Hierarchy.State()
		cmd, err := build(before)
		if err != nil {
			return "", err
		}
		a.address(cmd, who, id)
		closes := before.Closes(cmd)
		result, err := a.submitClosing(ctx, before, cmd, closes)
		if err != nil {
			return "", err
		}
		done.index = result.Index
		r.noteReplay(result)
		happened := fmt.Sprintf("it took effect, at index %d", result.Index)
		now := a.Hierarchy.State()
		if now.Index() < result.Index { // a snapshot that came late has taken it back
			return happened, fmt.Errorf("%w: %s, and this node does not have it yet", hierarchy.ErrOutcomeUnknown, happened)
		}
		f := now.Awaited(cmd, result.Index)
		switch {
		case noWait && (f != nil || closes > 0 || state.OnlyCloses(cmd)):
			done.fence = &kekdv1.Fence{Index: result.Index}
			r.note("not fenced yet: nobody waits")
		case f != nil:
			done.fence, err = a.fence(ctx, f)
			r.note(fenceDetail(done.fence))
		case closes > 0, result.Replayed, state.OnlyCloses(cmd):
			done.fence = &kekdv1.Fence{Fenced: true, Index: result.Index}
		}
		return happened, err
	})
	if err != nil {
		return committed{}, err
	}
	done.state = a.Hierarchy.State()
	return done, nil
}

// submitClosing is submit with the patience that a change has which closes, by the state that it is proposed from.
func (a *adminService) submitClosing(ctx context.Context, before *state.State, cmd *commandpb.Command, closes time.Duration) (state.Result, error) {
	switch {
	case closes > 0:
	case state.OnlyCloses(cmd):
		closes = before.LongestStaleness()
	default:
		return a.submit(ctx, cmd)
	}
	return a.insist(ctx, cmd, min(closingPatience, fenceBound(closes)))
}

// insist proposes a change until it is known what became of it: the leader may be lost in the middle, and the next
// one knows by the command's ID whether that took effect.
func (a *adminService) insist(ctx context.Context, cmd *commandpb.Command, patience time.Duration) (state.Result, error) {
	proposing, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	defer context.AfterFunc(a.stopping, cancel)()
	const again = "no node is known to refuse by it yet; repeat it with the same idempotency ID, at a node that reaches a majority, or here when this one does: it does nothing twice"
	var open error // what left the outcome of an earlier try open
	for {
		result, err := a.submit(proposing, cmd)
		switch {
		case errors.Is(err, hierarchy.ErrOutcomeUnknown):
			open = apierr.WithHint(err, again)
		case errors.Is(err, hierarchy.ErrStale) && open != nil:
			return result, open
		case errors.Is(err, hierarchy.ErrStale) && proposing.Err() != nil:
			return result, apierr.WithHint(fmt.Errorf("%w: this node has found no leader within %v, and so no majority that could confirm it: %w", hierarchy.ErrOutcomeUnknown, patience, err), again)
		default:
			return result, err
		}
		select {
		case <-time.After(proposeAgain):
		case <-proposing.Done():
			return result, open
		}
	}
}

// fence waits for one, and says what is known of it.
func (a *adminService) fence(ctx context.Context, f *state.Fence) (*kekdv1.Fence, error) {
	ctx, cancel := early(ctx)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, fenceBound(f.Wait)-answerTime)
	defer cancel()
	defer context.AfterFunc(a.stopping, cancel)()
	report, err := a.Hierarchy.Fence(ctx, f)
	m := &kekdv1.Fence{Fenced: err == nil, Index: f.Index, Elapsed: int64(report.Elapsed)}
	s := a.Hierarchy.State()
	for _, n := range report.Nodes {
		m.Nodes = append(m.Nodes, &kekdv1.FencedNode{Id: n.Node.String(), Name: nodeName(s, n.Node), How: n.How})
	}
	if err != nil {
		err = apierr.WithHint(err, "it stays closed, and the leader goes on to wait; repeat it with the same idempotency ID to wait on: it does nothing twice")
	}
	return m, err
}

// nodeName is the node's ID once nobody knows its name.
func nodeName(s *state.State, id hierarchy.NodeID) string {
	if n, ok := s.Node(id); ok {
		return n.Name
	}
	if n, ok := s.Removed(id); ok {
		return n.Name
	}
	return id.String()
}

func fenceDetail(f *kekdv1.Fence) string {
	if !f.Fenced {
		return fmt.Sprintf("index=%d, not fenced within %v", f.Index, time.Duration(f.Elapsed).Round(time.Millisecond))
	}
	return fmt.Sprintf("index=%d, fenced in %v", f.Index, time.Duration(f.Elapsed).Round(time.Microsecond))
}

// note adds to the daemon's words.
func (r *AdminRecord) note(text string) {
	r.Detail = strings.TrimPrefix(r.Detail+"; "+text, "; ")
}

func (r *AdminRecord) noteReplay(result state.Result) {
	if result.Replayed {
		r.note(fmt.Sprintf("done before, at index %d", result.Index))
	}
}
