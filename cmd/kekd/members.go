package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api"
)

// members is the cluster as administration uses it.
type members struct{ n *node }

// maxAddresses is how many members a join token names: one that runs is enough.
const maxAddresses = 16

func (m members) Invitation(_ context.Context, w socketapi.Invited, ttl time.Duration) (*commandpb.Invitation, string, error) {
	n, s := m.n, m.n.raft.State()
	_, there := s.RegionByName(w.Region)
	id, expires := hierarchy.NewID(), n.view.Now().Add(ttl)
	token := peer.JoinToken{
		Cluster: n.self.ClusterID, CA: n.raft.CAHash(), Invitation: id, Addresses: addresses(s, n.self.NodeID),
		Node: w.Node, Region: w.Region, Role: w.Role.String(), NewRegion: !there, Expires: expires,
	}
	rand.Read(token.Secret[:])
	defer clear(token.Secret[:])
	proof := state.Proof(token.Secret[:])
	hash := state.ProofHash(proof[:])
	return &commandpb.Invitation{
		Id: id[:], ProofHash: hash[:], Node: w.Node, Region: w.Region, Role: commandpb.RegionRole(w.Role), Voter: w.Voter,
		ExpiresAt: expires.UnixNano(),
	}, token.Encode(), nil
}

// addresses are those of members, this node's first: it answers, since it was asked.
func addresses(s *state.State, self hierarchy.NodeID) []string {
	var list []string
	if n, ok := s.Node(self); ok && n.Address != "" {
		list = append(list, n.Address)
	}
	for n := range s.Nodes() {
		if n.ID != self && n.Address != "" && len(list) < maxAddresses {
			list = append(list, n.Address)
		}
	}
	return list
}

func (m members) Members(ctx context.Context) ([]socketapi.Member, error) {
	if _, ok := m.n.raft.Leader(); !ok {
		return nil, fmt.Errorf("%w: this node knows of no leader", hierarchy.ErrStale)
	}
	var list []socketapi.Member
	for _, s := range m.n.raft.Members(ctx) {
		is := socketapi.Member{ID: s.ID, Votes: s.Votes, Leader: s.Leads, HeardAgo: -1, Applied: s.Applied, FeatureLevel: s.FeatureLevel}
		if s.Heard {
			is.HeardAgo = s.HeardAgo
		}
		list = append(list, is)
	}
	return list, nil
}

func (m members) TransferLeadership(ctx context.Context, to hierarchy.NodeID) error {
	return m.n.raft.TransferLeadership(ctx, to)
}
