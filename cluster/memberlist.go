package cluster

import (
	"context"
	"time"

	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
)

// MemberStatus is how a member is, as the leader knows it.
type MemberStatus struct {
	ID    hierarchy.NodeID
	Votes bool // now, by raft's configuration
	Leads bool
	// Heard tells whether the leader has heard of the node since it leads; what follows is from the last time.
	Heard        bool
	HeardAgo     time.Duration
	Applied      uint64 // log index
	FeatureLevel uint32
}

// Members asks the leader how all members are. Without a leader it is what this node knows, and nobody is heard.
func (n *Node) Members(ctx context.Context) []MemberStatus {
	leader, known := n.Leader()
	answer := n.members()
	if known && leader != n.id.Node && n.calls != nil {
		if client, err := n.leaderCall(ctx, leader); err == nil {
			if m, err := client.Members(ctx, &peerpb.MembersRequest{}); err == nil {
				answer = m
			}
		}
	}
	var list []MemberStatus
	for _, m := range answer.GetMembers() {
		id, err := hierarchy.IDFromBytes(m.GetNodeId())
		if err != nil {
			continue
		}
		is := MemberStatus{ID: hierarchy.NodeID{ID: id}, Votes: m.GetVoter(), Applied: m.GetApplied(), FeatureLevel: m.GetFeatureLevel()}
		is.Leads = known && is.ID == leader
		if m.HeardAgo != nil {
			is.Heard, is.HeardAgo = true, time.Duration(m.GetHeardAgo())
		}
		list = append(list, is)
	}
	return list
}
