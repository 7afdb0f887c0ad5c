package socketapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/protobuf/proto"
)

const (
	defaultInvitation = 15 * time.Minute
	maxInvitation     = state.MaxInvitationLife
	// membersTimeout is how long a list waits for what only the leader knows.
	membersTimeout = 2 * time.Second
	// followInterval is how often the leader is asked whether Raft has followed a change of members.
	followInterval = 100 * time.Millisecond
)

var errAlone = apierr.WithHint(fmt.Errorf("%w: this node has no port for its peers, and is a cluster of one", hierarchy.ErrFailedPrecondition),
	"give it [peers] in its configuration, and start it again")

// errToldOnce is for a retry: what is in the hierarchy of an invitation makes no token.
var errToldOnce = apierr.WithHint(fmt.Errorf("%w: this was asked for before, under the same idempotency ID: a token is told once, and nobody has kept it", hierarchy.ErrFailedPrecondition),
	"invite the node again without the ID, which makes that token void")

// roles by the names that they have in the API.
var roles = map[string]hierarchy.RegionRole{
	hierarchy.RoleVoting.String():  hierarchy.RoleVoting,
	hierarchy.RoleReplica.String(): hierarchy.RoleReplica,
	hierarchy.RoleWitness.String(): hierarchy.RoleWitness,
}

func (a *adminService) InviteNode(ctx context.Context, m *kekdv1.InviteNodeRequest) (*kekdv1.InviteNodeResponse, error) {
	ttl := cmp.Or(time.Duration(m.Ttl), defaultInvitation)
	role, known := roles[m.Role]
	switch {
	case a.Nodes == nil:
		return nil, errAlone
	case ttl < time.Second || ttl > maxInvitation:
		return nil, fmt.Errorf("%w: an invitation holds for 1 s to %v, not for %v", hierarchy.ErrInvalidArgument, maxInvitation, ttl)
	case m.Role != "" && !known:
		return nil, fmt.Errorf("%w: role %q: use voting, replica or witness", hierarchy.ErrInvalidArgument, m.Role)
	}
	for _, name := range []string{m.Name, m.Region} {
		if err := hierarchy.ValidateName(name); err != nil {
			return nil, err
		}
	}
	var (
		invitation *commandpb.Invitation
		token      string
	)
	r := AdminRecord{Kind: "node-invite", Detail: fmt.Sprintf("node=%s region=%s role=%s no_vote=%t ttl=%v", m.Name, m.Region, m.Role, m.NoVote, ttl)}
	done, err := a.change(ctx, m.IdempotencyId, r, func(s *state.State) (*commandpb.Command, error) {
		if id, err := commandID(m.IdempotencyId); err == nil && s.Decided(id) {
			return nil, errToldOnce
		}
		role, err := roleOf(s, m.Region, role)
		if err != nil {
			return nil, err
		}
		w := Invited{Node: m.Name, Region: m.Region, Role: role, Voter: role != hierarchy.RoleReplica && !m.NoVote}
		if invitation, token, err = a.Nodes.Invitation(ctx, w, ttl); err != nil {
			return nil, err
		}
		return &commandpb.Command{Body: &commandpb.Command_InviteNode{InviteNode: &commandpb.InviteNode{Invitation: invitation}}}, nil
	})
	if err != nil {
		return nil, err
	}
	return &kekdv1.InviteNodeResponse{
		Token: token, ExpiresAt: invitation.ExpiresAt, Name: m.Name, Region: m.Region,
		Role: hierarchy.RegionRole(invitation.Role).String(), Voter: invitation.Voter, Index: done.index,
	}, nil
}

// roleOf is the role of a region: the one that it has, or as it was asked for if it is not there yet.
func roleOf(s *state.State, region string, asked hierarchy.RegionRole) (hierarchy.RegionRole, error) {
	r, there := s.RegionByName(region)
	switch {
	case !there && asked == 0:
		return 0, fmt.Errorf("%w: region %s is not there yet: say which role it is to have", hierarchy.ErrInvalidArgument, region)
	case !there:
		return asked, nil
	case asked != 0 && asked != r.Role:
		return 0, fmt.Errorf("%w: region %s is a %s one, not %s", hierarchy.ErrFailedPrecondition, region, r.Role, asked)
	}
	return r.Role, nil
}

func (a *adminService) RemoveNode(ctx context.Context, m *kekdv1.RemoveNodeRequest) (*kekdv1.RemoveNodeResponse, error) {
	if a.Nodes == nil {
		return nil, errAlone
	}
	var id hierarchy.NodeID
	r := AdminRecord{Kind: "node-remove", Detail: "node=" + m.Name}
	done, err := a.change(ctx, m.IdempotencyId, r, func(s *state.State) (*commandpb.Command, error) {
		var err error
		if id, err = removable(s, m.Name, m.IdempotencyId); err != nil {
			return nil, err
		}
		return &commandpb.Command{Body: &commandpb.Command_RemoveNode{RemoveNode: &commandpb.RemoveNode{NodeId: id.ID[:]}}}, nil
	})
	if err != nil {
		return nil, err
	}
	if id != a.Self { // whom nobody tells anything any more
		err = a.followed(ctx, done, fmt.Sprintf("Raft still has %s", m.Name), func(list []Member) bool { return memberOf(list, id) == nil })
	}
	return &kekdv1.RemoveNodeResponse{Index: done.index, Id: id.String()}, err
}

// removable is the ID of a member, or, for a retry, of the last one of that name.
func removable(s *state.State, name string, idempotencyID []byte) (hierarchy.NodeID, error) {
	n, err := nodeByName(s, name)
	if err == nil {
		return n.ID, nil
	}
	var last *state.RemovedNode
	if id, idErr := commandID(idempotencyID); idErr == nil && s.Decided(id) {
		for was := range s.RemovedNodes() {
			if was.Name == name && (last == nil || was.RemovedAt.After(last.RemovedAt)) {
				last = was
			}
		}
	}
	if last == nil {
		return hierarchy.NodeID{}, err
	}
	return last.ID, nil
}

func (a *adminService) PromoteNode(ctx context.Context, m *kekdv1.PromoteNodeRequest) (*kekdv1.Node, error) {
	return a.setVoter(ctx, m.IdempotencyId, "node-promote", m.Name, true)
}

func (a *adminService) DemoteNode(ctx context.Context, m *kekdv1.DemoteNodeRequest) (*kekdv1.Node, error) {
	return a.setVoter(ctx, m.IdempotencyId, "node-demote", m.Name, false)
}

func (a *adminService) setVoter(ctx context.Context, idempotencyID []byte, kind, name string, voter bool) (*kekdv1.Node, error) {
	if a.Nodes == nil {
		return nil, errAlone
	}
	var id hierarchy.NodeID
	r := AdminRecord{Kind: kind, Detail: "node=" + name}
	done, err := a.change(ctx, idempotencyID, r, func(s *state.State) (*commandpb.Command, error) {
		n, err := nodeByName(s, name)
		if err != nil {
			return nil, err
		}
		id = n.ID
		return &commandpb.Command{Body: &commandpb.Command_SetNode{SetNode: &commandpb.SetNode{NodeId: id.ID[:], Voter: &voter}}}, nil
	})
	if err != nil {
		return nil, err
	}
	lacks := fmt.Sprintf("%s does not vote yet: it has to catch up first", name)
	if !voter {
		lacks = fmt.Sprintf("%s still votes", name)
	}
	var last []Member
	err = a.followed(ctx, done, lacks, func(list []Member) bool {
		last = list
		member := memberOf(list, id)
		return member != nil && member.Votes == voter
	})
	if err != nil {
		return nil, err
	}
	n, err := nodeByName(a.Hierarchy.State(), name)
	if err != nil {
		return nil, err
	}
	return a.nodeMessage(a.Hierarchy.State(), n, last, done.index), nil
}

// followed waits until Raft's own configuration is what a change of members has said. Its error says
// that the change itself stands.
func (a *adminService) followed(ctx context.Context, c committed, lacks string, ok func([]Member) bool) error {
	ctx, cancel := early(ctx)
	defer cancel()
	look := time.NewTicker(followInterval)
	defer look.Stop()
	var unknown error
	for {
		list, err := a.Nodes.Members(ctx)
		if err == nil && ok(list) {
			return nil
		}
		if ctx.Err() == nil {
			unknown = err
		}
		select {
		case <-look.C:
			continue
		case <-ctx.Done():
		}
		if unknown != nil {
			lacks = fmt.Sprintf("whether Raft has followed is not known: %v", unknown)
		}
		e := apierr.From(apierr.WithHint(fmt.Errorf("%w: it took effect, at index %d, but %s", hierarchy.ErrOutcomeUnknown, c.index, lacks),
			"it goes on by itself; `kekctl node list` shows how far it is"))
		e.IdempotencyID = c.id
		return e
	}
}

func (a *adminService) TransferLeadership(ctx context.Context, m *kekdv1.TransferLeadershipRequest) (*kekdv1.TransferLeadershipResponse, error) {
	if a.Nodes == nil {
		return nil, errAlone
	}
	leader := ""
	r := AdminRecord{Kind: "leadership-transfer", Detail: "to=" + m.To}
	err := a.recorded(ctx, hierarchy.CommandID{}, r, func(hierarchy.Principal, *AdminRecord) (string, error) {
		var to hierarchy.NodeID
		if m.To != "" {
			n, err := nodeByName(a.Hierarchy.State(), m.To)
			if err != nil {
				return "", err
			}
			to = n.ID
		}
		if err := a.Nodes.TransferLeadership(ctx, to); err != nil {
			return "", err
		}
		leader = a.leader(ctx)
		return "leadership was transferred", nil
	})
	if err != nil {
		return nil, err
	}
	return &kekdv1.TransferLeadershipResponse{Leader: leader}, nil
}

// leader is the name of the node that leads; empty: nobody knows.
func (a *adminService) leader(ctx context.Context) string {
	list, _ := a.members(ctx)
	for _, m := range list {
		if n, ok := a.Hierarchy.State().Node(m.ID); ok && m.Leader {
			return n.Name
		}
	}
	return ""
}

func (a *adminService) ListNodes(ctx context.Context, _ *kekdv1.ListNodesRequest) (*kekdv1.ListNodesResponse, error) {
	m := &kekdv1.ListNodesResponse{}
	list, err := a.members(ctx)
	if err != nil {
		m.Unknown = apierr.From(err).Message
	}
	s := a.Hierarchy.State()
	for n := range s.Nodes() {
		m.Nodes = append(m.Nodes, a.nodeMessage(s, n, list, s.Index()))
	}
	return m, nil
}

// members is what the leader knows, if it answers soon.
func (a *adminService) members(ctx context.Context) ([]Member, error) {
	if a.Nodes == nil {
		return nil, errAlone
	}
	ctx, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	list, err := a.Nodes.Members(ctx)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: no leader has answered within %v", ctx.Err(), membersTimeout)
	}
	return list, err
}

func memberOf(list []Member, id hierarchy.NodeID) *Member {
	i := slices.IndexFunc(list, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return nil
	}
	return &list[i]
}

func nodeByName(s *state.State, name string) (*state.Node, error) {
	if n, ok := s.NodeByName(name); ok {
		return n, nil
	}
	if err := hierarchy.ValidateName(name); err != nil {
		return nil, err
	}
	return nil, apierr.WithHint(fmt.Errorf("%w: node %s", hierarchy.ErrNotFound, name), "`kekctl node list` shows the members")
}

func (a *adminService) nodeMessage(s *state.State, n *state.Node, list []Member, index uint64) *kekdv1.Node {
	m := &kekdv1.Node{
		Id: n.ID.String(), Name: n.Name, Region: regionName(s, n.Region), Address: n.Address, Voter: n.Voter, Self: n.ID == a.Self, Index: index,
	}
	if r, ok := s.Region(n.Region); ok {
		m.Role, m.Mints = r.Role.String(), r.MintingNode == n.ID
	}
	if k := memberOf(list, n.ID); k != nil {
		m.Votes, m.Leader, m.AppliedIndex, m.FeatureLevel = proto.Bool(k.Votes), k.Leader, k.Applied, k.FeatureLevel
		if k.HeardAgo >= 0 {
			m.HeardAgo = proto.Int64(int64(k.HeardAgo))
		}
	}
	return m
}
