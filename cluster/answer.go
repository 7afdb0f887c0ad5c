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

// What this node answers its peers. Who asks has proved who he is: from is the node that the connection
// belongs to, never what a request says.

// renewLease is asked of the leader. A request that cannot be answered with a Tick that is proposed
// after it was read, and applied in this leader's own term, gets no answer but an error: whatever else
// this node knows proves nothing.
func (n *Node) renewLease(ctx context.Context, from hierarchy.NodeID, m *peerpb.RenewLeaseRequest) (*peerpb.RenewLeaseResponse, error) {
	if string(m.GetNodeId()) != string(from.ID[:]) {
		return nil, status.Error(codes.PermissionDenied, "a node renews its own lease only")
	}
	s := n.State()
	member, ok := s.Node(from)
	switch {
	case !ok:
		return nil, status.Error(codes.PermissionDenied, "this node is not a member of the cluster")
	case !mayRenew(member, m.GetIncarnation()):
		return nil, status.Error(codes.FailedPrecondition, "this run of the node's process is not registered")
	}
	if m.GetEpoch() != s.Epoch() {
		return nil, status.Errorf(codes.FailedPrecondition, "the epoch is %d, not %d", s.Epoch(), m.GetEpoch())
	}
	if !n.IsLeader() {
		return nil, status.Error(codes.Unavailable, ErrNotLeader.Error())
	}
	n.heard(from, word{applied: m.GetApplied(), level: m.GetFeatureLevel(), healthy: m.GetTokenHealthy()}, time.Unix(0, m.GetWall()))
	index, err := n.ticks.tick(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &peerpb.RenewLeaseResponse{Nonce: m.GetNonce(), Epoch: s.Epoch(), Index: index}, nil
}

// heard takes what a renewal says of its node.
func (n *Node) heard(from hierarchy.NodeID, w word, wall time.Time) {
	n.roll.take(from, w)
	n.clock.report(from, wall)
	n.driver.wake()
}

// propose is asked of the leader: it authorises the command again, since the node that took it may be
// wrong about who may do what, and keeps a record of its own.
func (n *Node) propose(ctx context.Context, from hierarchy.NodeID, m *peerpb.ProposeRequest) *peerpb.ProposeResponse {
	if !n.IsLeader() {
		return notProposed(peerpb.Outcome_OUTCOME_NOT_LEADER, ErrNotLeader)
	}
	c, err := state.Decode(m.GetCommand())
	if err != nil || len(c.GetId()) != hierarchy.IDSize {
		return notProposed(peerpb.Outcome_OUTCOME_NOT_PROPOSED, fmt.Errorf("%w: the leader cannot read this command: %v", hierarchy.ErrInvalidArgument, err))
	}
	member, ok := n.State().Node(from)
	if !ok {
		return notProposed(peerpb.Outcome_OUTCOME_NOT_PROPOSED, fmt.Errorf("%w: node %s is not a member of the cluster", hierarchy.ErrPermissionDenied, from))
	}
	if f := c.GetCompleteFence(); f != nil {
		if err := n.confirmFence(ctx, f.GetIndex()); err != nil {
			return notProposed(peerpb.Outcome_OUTCOME_NOT_PROPOSED, fmt.Errorf("the leader: %w", err))
		}
	}
	res, err := n.proposeFor(ctx, *member, c)
	return answerOf(res, err)
}

// proposeFor proposes on behalf of a node, this one included.
func (n *Node) proposeFor(ctx context.Context, origin state.Node, c *commandpb.Command) (state.Result, error) {
	done := func(state.Result, error) error { return nil }
	if n.cfg.Forwarded != nil {
		var err error
		if done, err = n.cfg.Forwarded(ctx, origin, c); err != nil {
			return state.Result{}, fmt.Errorf("the leader: %w", err)
		}
	}
	res, err := n.proposeHere(ctx, c)
	if recordErr := done(res, err); recordErr != nil && err == nil {
		return state.Result{}, unknown(fmt.Errorf("it took effect, at index %d, and the leader has no record of the outcome: %w", res.Index, recordErr), c.GetId())
	}
	return res, err
}

func answerOf(res state.Result, err error) *peerpb.ProposeResponse {
	switch {
	case res.Index != 0: // it was decided, for or against
		code, text := words(res.Err)
		return &peerpb.ProposeResponse{Outcome: peerpb.Outcome_OUTCOME_DECIDED, Index: res.Index, Replayed: res.Replayed, ErrorCode: code, ErrorMessage: text}
	case errors.Is(err, hierarchy.ErrOutcomeUnknown):
		return notProposed(peerpb.Outcome_OUTCOME_UNKNOWN, err)
	case errors.Is(err, ErrNotLeader):
		return notProposed(peerpb.Outcome_OUTCOME_NOT_LEADER, err)
	}
	return notProposed(peerpb.Outcome_OUTCOME_NOT_PROPOSED, err)
}

func notProposed(outcome peerpb.Outcome, err error) *peerpb.ProposeResponse {
	code, text := words(err)
	return &peerpb.ProposeResponse{Outcome: outcome, ErrorCode: code, ErrorMessage: text}
}

// members tells what this node knows of the cluster, and how the others are if it leads.
func (n *Node) members() *peerpb.MembersResponse {
	s, leads := n.State(), n.IsLeader()
	votes, _ := n.votes()
	called := n.roll.call()
	m := &peerpb.MembersResponse{Index: s.Index()}
	for node := range s.Nodes() {
		is := &peerpb.Member{NodeId: node.ID.ID[:], Name: node.Name, Address: node.Address, Voter: votes[node.ID]}
		if w, ok := called.heard[node.ID]; ok && leads {
			ago := int64(called.now - w.at)
			is.HeardAgo, is.Applied, is.FeatureLevel = &ago, w.applied, w.level
		}
		m.Members = append(m.Members, is)
	}
	return m
}

// join makes who asks a member, if his invitation says so. Whoever is asked brings it to the leader.
func (n *Node) join(ctx context.Context, certified string, m *peerpb.JoinRequest) *peerpb.JoinResponse {
	index, err := n.tryJoin(ctx, certified, m)
	s := n.State()
	node, ok := s.Node(hierarchy.NodeID{ID: hierarchy.ID(m.GetNodeId())})
	if err == nil && !ok {
		err = fmt.Errorf("%w: the node was removed again", hierarchy.ErrFailedPrecondition)
	}
	if err != nil {
		code, text := words(err)
		return &peerpb.JoinResponse{ErrorCode: code, ErrorMessage: text}
	}
	a := &peerpb.JoinResponse{RegionId: node.Region.ID[:], Index: index, Members: n.members().GetMembers()}
	if r, ok := s.Region(node.Region); ok {
		a.Role = r.Role.String()
	}
	if a.Epoch = s.Epoch(); a.Epoch > 0 {
		by := s.EpochStatement()
		a.EpochStatement = by[:]
	}
	return a
}

func (n *Node) tryJoin(ctx context.Context, certified string, m *peerpb.JoinRequest) (uint64, error) {
	id, err := hierarchy.IDFromBytes(m.GetNodeId())
	if err != nil {
		return 0, fmt.Errorf("%w: node ID: %v", hierarchy.ErrInvalidArgument, err)
	}
	if certified != m.GetName() {
		return 0, fmt.Errorf("%w: the certificate is of %q, the node is called %q: give it a certificate with its own name", hierarchy.ErrPermissionDenied, certified, m.GetName())
	}
	s := n.State()
	// An interrupted join goes on: the invitation was used up for this very node.
	if there, ok := s.Node(hierarchy.NodeID{ID: id}); ok && there.Name == m.GetName() {
		return s.Index(), nil
	}
	join := &commandpb.JoinNode{
		InvitationId: m.GetInvitationId(), Proof: m.GetProof(),
		Node: &commandpb.Node{Id: id[:], Name: m.GetName(), Address: m.GetAddress()},
	}
	if r, ok := s.RegionByName(m.GetRegion()); ok {
		join.Node.RegionId = r.ID.ID[:]
		if r.Role == hierarchy.RoleWitness {
			join.Node.Identity = m.GetIdentity()
		} else if string(r.Identity) != string(m.GetIdentity()) {
			return 0, fmt.Errorf("%w: the token has another identity than the one that region %s was made with: give the node the region's own token", hierarchy.ErrPermissionDenied, r.Name)
		}
	} else if err := n.newRegion(join, m); err != nil {
		return 0, err
	}
	c := &commandpb.Command{Format: state.Format, Id: newCommandID(), Body: &commandpb.Command_JoinNode{JoinNode: join}}
	self, ok := s.Node(n.id.Node)
	if !ok {
		return 0, fmt.Errorf("%w: this node is not a member itself", hierarchy.ErrStale)
	}
	leader, err := n.awaitLeader(ctx)
	if err != nil {
		return 0, err
	}
	var res state.Result
	if leader == n.id.Node {
		res, err = n.proposeFor(ctx, *self, c)
	} else {
		res, err = n.forward(ctx, leader, c)
	}
	return res.Index, err
}

// newRegion adds the region of its first node to the command. What role it has says the invitation.
func (n *Node) newRegion(join *commandpb.JoinNode, m *peerpb.JoinRequest) error {
	invitation, err := hierarchy.IDFromBytes(m.GetInvitationId())
	if err != nil {
		return fmt.Errorf("%w: invitation ID: %v", hierarchy.ErrInvalidArgument, err)
	}
	region, err := hierarchy.IDFromBytes(m.GetRegionId())
	if err != nil {
		return fmt.Errorf("%w: region ID: %v", hierarchy.ErrInvalidArgument, err)
	}
	i, ok := n.State().Invitation(invitation)
	if !ok {
		return fmt.Errorf("%w: the invitation was used, has expired, was replaced by a later one, or is of another cluster: make a new one with `kekctl node invite`", hierarchy.ErrNotFound)
	}
	join.Node.RegionId = region[:]
	join.Region = &commandpb.Region{Id: region[:], Name: m.GetRegion(), Role: commandpb.RegionRole(i.Role)}
	if i.Role == hierarchy.RoleWitness {
		join.Node.Identity = m.GetIdentity()
		return nil
	}
	join.Region.Identity, join.Region.Kdf, join.Region.MintingNode = m.GetIdentity(), m.GetKdf(), join.Node.Id
	return nil
}
