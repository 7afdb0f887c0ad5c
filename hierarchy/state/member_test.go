package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

const (
	voting  = commandpb.RegionRole_REGION_ROLE_VOTING
	replica = commandpb.RegionRole_REGION_ROLE_REPLICA
	witness = commandpb.RegionRole_REGION_ROLE_WITNESS
)

// The members of the populated cluster, besides a of eu-west.
var (
	nodeB = nodeOf("b") // of eu-west, votes
	nodeC = nodeOf("c") // of us-east, a replica
	nodeW = nodeOf("w") // of site-w, a witness
	gone  = nodeOf("gone")
)

func nodeOf(name string) hierarchy.NodeID {
	return hierarchy.NodeID{ID: hierarchy.ID(id("node " + name))}
}

// regionOf is the ID of a region that is not the first one.
func regionOf(name string) hierarchy.RegionID {
	if name == "eu-west" {
		return regionID
	}
	return hierarchy.RegionID{ID: hierarchy.ID(id("region " + name))}
}

func proof(node string) []byte {
	p := state.Proof([]byte("the secret of " + node))
	return p[:]
}

func invite(node, region string, role commandpb.RegionRole, voter bool) *commandpb.Command {
	hash := state.ProofHash(proof(node))
	return &commandpb.Command{Body: &commandpb.Command_InviteNode{InviteNode: &commandpb.InviteNode{Invitation: &commandpb.Invitation{
		Id: id("invitation of " + node), ProofHash: hash[:], Node: node, Region: region, Role: role, Voter: voter,
		ExpiresAt: start.Add(time.Hour).UnixNano(),
	}}}}
}

// again invites a node once more, under another ID.
func again(node, region string, role commandpb.RegionRole, voter bool) *commandpb.Command {
	return with(invite(node, region, role, voter), getInvitation, func(i *commandpb.Invitation) { i.Id = id("another invitation of " + node) })
}

// join makes an invited node a member of a region that is there.
func join(node, region string) *commandpb.Command {
	nid, rid := nodeOf(node), regionOf(region)
	return &commandpb.Command{Body: &commandpb.Command_JoinNode{JoinNode: &commandpb.JoinNode{
		InvitationId: id("invitation of " + node), Proof: proof(node),
		Node: &commandpb.Node{Id: nid.ID[:], Name: node, RegionId: rid.ID[:], Address: node + ".example.net:7400"},
	}}}
}

// joinFirst makes an invited node the first member of a region.
func joinFirst(node, region string, role commandpb.RegionRole) *commandpb.Command {
	c := join(node, region)
	m := c.GetJoinNode()
	m.Region = &commandpb.Region{Id: m.Node.RegionId, Name: region, Role: role}
	if role == witness {
		m.Node.Identity = []byte("file key of " + node)
	} else {
		m.Region.Identity, m.Region.Kdf = []byte("identity of "+region), "x963-sha256"
	}
	return c
}

func setNode(node hierarchy.NodeID, address *string, voter *bool) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_SetNode{SetNode: &commandpb.SetNode{NodeId: node.ID[:], Address: address, Voter: voter}}}
}

func removeNode(node hierarchy.NodeID) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_RemoveNode{RemoveNode: &commandpb.RemoveNode{NodeId: node.ID[:]}}}
}

func setMinting(region hierarchy.RegionID, from, to hierarchy.NodeID) *commandpb.Command {
	m := &commandpb.SetMintingNode{RegionId: region.ID[:], NodeId: to.ID[:]}
	if !from.IsZero() {
		m.FromNodeId = from.ID[:]
	}
	return &commandpb.Command{Body: &commandpb.Command_SetMintingNode{SetMintingNode: m}}
}

func raise(level uint32) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_RaiseFeatureLevel{RaiseFeatureLevel: &commandpb.RaiseFeatureLevel{Level: level}}}
}

// moreNodes makes a cluster of one node one of four, with a node that was removed and one that is invited.
func moreNodes() []*commandpb.Command {
	return []*commandpb.Command{
		invite("b", "eu-west", voting, true), join("b", "eu-west"),
		invite("c", "us-east", replica, false), joinFirst("c", "us-east", replica),
		invite("w", "site-w", witness, true), joinFirst("w", "site-w", witness),
		invite("gone", "us-east", replica, false), join("gone", "us-east"), removeNode(gone),
		invite("next", "eu-west", voting, true),
	}
}

var (
	getInvitation = func(c *commandpb.Command) *commandpb.Invitation { return c.GetInviteNode().GetInvitation() }
	getJoin       = (*commandpb.Command).GetJoinNode
)

func expiring(c *commandpb.Command, after time.Duration) *commandpb.Command {
	return with(c, getInvitation, func(i *commandpb.Invitation) { i.ExpiresAt = start.Add(after).UnixNano() })
}

// later lets cluster time go on.
func later(after time.Duration) *commandpb.Command {
	c := tick()
	c.Stamp = start.Add(after).UnixNano()
	return c
}

var inviteSteps = []step{
	{name: "to a region that is there", c: invite("d", "us-east", replica, false)},
	{name: "to a new one", c: invite("d", "ap-south", voting, true)},
	{name: "to vote in a witness", c: invite("d", "site-w", witness, true)},
	{name: "two to one new region", before: []*commandpb.Command{invite("d", "ap-south", voting, true)}, c: invite("e", "ap-south", voting, true)},
	{name: "name of one that was removed", c: with(invite("gone", "us-east", replica, false), getInvitation, func(i *commandpb.Invitation) { i.Id = id("another") })},
	{name: "name of an invitation that has expired", before: []*commandpb.Command{later(2 * time.Hour)}, c: expiring(invite("next", "eu-west", voting, true), 3*time.Hour)},
	{name: "nothing", c: &commandpb.Command{Body: &commandpb.Command_InviteNode{InviteNode: &commandpb.InviteNode{}}}, want: hierarchy.ErrInvalidArgument},
	{name: "bad name", c: invite("D", "us-east", replica, false), want: hierarchy.ErrInvalidArgument},
	{name: "name of a member", c: invite("c", "us-east", replica, false), want: hierarchy.ErrAlreadyExists, words: "remove that node first"},
	{name: "again", c: again("next", "eu-west", voting, true)},
	{name: "again, to a region of another role that nobody else was to make", before: []*commandpb.Command{invite("d", "ap-south", voting, true)}, c: again("d", "ap-south", witness, true)},
	{name: "again, to a region of a role that somebody else is to make", before: []*commandpb.Command{invite("d", "ap-south", voting, true), invite("e", "ap-south", voting, true)},
		c: again("d", "ap-south", witness, true), want: hierarchy.ErrFailedPrecondition, words: "node e is invited"},
	{name: "again with the same ID", c: invite("next", "eu-west", voting, true), want: hierarchy.ErrAlreadyExists, words: "with the ID"},
	{name: "ID of another invitation", c: with(invite("d", "eu-west", voting, true), getInvitation, func(i *commandpb.Invitation) { i.Id = id("invitation of next") }), want: hierarchy.ErrAlreadyExists},
	{name: "bad ID", c: with(invite("d", "eu-west", voting, true), getInvitation, func(i *commandpb.Invitation) { i.Id = badID }), want: hierarchy.ErrInvalidArgument},
	{name: "no hash", c: with(invite("d", "eu-west", voting, true), getInvitation, func(i *commandpb.Invitation) { i.ProofHash = nil }), want: hierarchy.ErrInvalidArgument, words: "32 bytes"},
	{name: "bad region", c: invite("d", "us east", replica, false), want: hierarchy.ErrInvalidArgument},
	{name: "no role", c: invite("d", "ap-south", 0, false), want: hierarchy.ErrInvalidArgument},
	{name: "role beyond a byte", c: invite("d", "ap-south", 257, false), want: hierarchy.ErrInvalidArgument},
	{name: "region of another role", c: invite("d", "us-east", voting, true), want: hierarchy.ErrFailedPrecondition, words: "us-east is a replica region, not a voting one"},
	{name: "new region of two roles", before: []*commandpb.Command{invite("d", "ap-south", voting, true)}, c: invite("e", "ap-south", witness, true), want: hierarchy.ErrFailedPrecondition, words: "node d is invited"},
	{name: "to vote in a replica", c: invite("d", "us-east", replica, true), want: hierarchy.ErrInvalidArgument, words: "do not vote"},
	{name: "expired", c: expiring(invite("d", "us-east", replica, false), 0), want: hierarchy.ErrInvalidArgument, words: "24h0m0s"},
	{name: "for too long", c: expiring(invite("d", "us-east", replica, false), 25*time.Hour), want: hierarchy.ErrInvalidArgument, words: "24h0m0s"},
}

var joinSteps = []step{
	{name: "a region that is there", c: join("next", "eu-west")},
	{name: "a new region", before: []*commandpb.Command{invite("d", "ap-south", voting, true)}, c: joinFirst("d", "ap-south", voting)},
	{name: "a witness", before: []*commandpb.Command{invite("d", "site-w", witness, true)},
		c: with(join("d", "site-w"), getJoin, func(m *commandpb.JoinNode) { m.Node.Identity = []byte("file key of d") })},
	{name: "by an IPv6 address", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Node.Address = "[2001:db8::1]:7400" })},
	{name: "nothing", c: &commandpb.Command{Body: &commandpb.Command_JoinNode{JoinNode: &commandpb.JoinNode{}}}, want: hierarchy.ErrInvalidArgument},
	{name: "no address", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Node.Address = "" }), want: hierarchy.ErrInvalidArgument, words: "HOST:PORT"},
	{name: "no port", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Node.Address = "next.example.net" }), want: hierarchy.ErrInvalidArgument, words: "HOST:PORT"},
	{name: "a member", before: []*commandpb.Command{join("next", "eu-west")}, c: join("next", "eu-west"), want: hierarchy.ErrAlreadyExists, words: "next is a member already"},
	{name: "with an ID that was a member's", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Node.Id = gone.ID[:] }), want: hierarchy.ErrFailedPrecondition, words: "is not given again"},
	{name: "uninvited", c: join("d", "us-east"), want: hierarchy.ErrNotFound, words: "invite the node again"},
	{name: "twice with one invitation", before: []*commandpb.Command{join("next", "eu-west")},
		c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Node.Id = id("another") }), want: hierarchy.ErrNotFound, words: "it was used"},
	{name: "with one that was replaced", before: []*commandpb.Command{again("next", "eu-west", voting, true)}, c: join("next", "eu-west"), want: hierarchy.ErrNotFound, words: "replaced by a later one"},
	{name: "with the one that replaced it", before: []*commandpb.Command{again("next", "eu-west", voting, true)},
		c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.InvitationId = id("another invitation of next") })},
	{name: "too late", before: []*commandpb.Command{later(time.Hour)}, c: join("next", "eu-west"), want: hierarchy.ErrNotFound, words: "has expired"},
	{name: "in time", before: []*commandpb.Command{later(time.Hour - 2*time.Second)}, c: join("next", "eu-west")},
	{name: "bad invitation ID", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.InvitationId = badID }), want: hierarchy.ErrInvalidArgument},
	{name: "another's proof", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Proof = proof("b") }), want: hierarchy.ErrPermissionDenied, words: "does not fit"},
	{name: "the hash for a proof", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { h := state.ProofHash(m.Proof); m.Proof = h[:] }), want: hierarchy.ErrPermissionDenied},
	{name: "no proof", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Proof = nil }), want: hierarchy.ErrPermissionDenied},
	{name: "under another name", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Node.Name = "d" }), want: hierarchy.ErrPermissionDenied, words: "is of node next, not of d"},
	{name: "another region", c: join("next", "us-east"), want: hierarchy.ErrPermissionDenied, words: "is for region eu-west"},
	{name: "bringing a region that is there", c: joinFirst("next", "eu-west", voting), want: hierarchy.ErrFailedPrecondition, words: "without bringing one"},
	{name: "an identity where the token has one", c: with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Node.Identity = []byte("k") }), want: hierarchy.ErrInvalidArgument, words: "the token of region eu-west"},
	{name: "a witness without identity", before: []*commandpb.Command{invite("d", "site-w", witness, true)}, c: join("d", "site-w"), want: hierarchy.ErrInvalidArgument, words: "identity key of node d"},
	{name: "a new region and not bringing it", before: []*commandpb.Command{invite("d", "ap-south", voting, true)}, c: join("d", "ap-south"), want: hierarchy.ErrInvalidArgument, words: "bring it along"},
	{name: "bringing one of another role", before: []*commandpb.Command{invite("d", "ap-south", voting, true)}, c: joinFirst("d", "ap-south", replica), want: hierarchy.ErrPermissionDenied, words: "voting region ap-south"},
	{name: "bringing one of another name", before: []*commandpb.Command{invite("d", "ap-south", voting, true)},
		c: with(joinFirst("d", "ap-south", voting), getJoin, func(m *commandpb.JoinNode) { m.Region.Name = "ap-north" }), want: hierarchy.ErrPermissionDenied},
	{name: "bringing one and being of another", before: []*commandpb.Command{invite("d", "ap-south", voting, true)},
		c: with(joinFirst("d", "ap-south", voting), getJoin, func(m *commandpb.JoinNode) { m.Node.RegionId = regionID.ID[:] }), want: hierarchy.ErrInvalidArgument},
	{name: "bringing one with an ID that is taken", before: []*commandpb.Command{invite("d", "ap-south", voting, true)},
		c: with(joinFirst("d", "ap-south", voting), getJoin, func(m *commandpb.JoinNode) {
			m.Node.RegionId, m.Region.Id = regionID.ID[:], regionID.ID[:]
		}), want: hierarchy.ErrAlreadyExists, words: "eu-west"},
	{name: "bringing one without identity", before: []*commandpb.Command{invite("d", "ap-south", voting, true)},
		c: with(joinFirst("d", "ap-south", voting), getJoin, func(m *commandpb.JoinNode) { m.Region.Identity = nil }), want: hierarchy.ErrInvalidArgument},
	{name: "bringing one that another mints for", before: []*commandpb.Command{invite("d", "ap-south", voting, true)},
		c: with(joinFirst("d", "ap-south", voting), getJoin, func(m *commandpb.JoinNode) { m.Region.MintingNode = nodeID.ID[:] }), want: hierarchy.ErrInvalidArgument, words: "mints"},
	{name: "bringing a witness with a token", before: []*commandpb.Command{invite("d", "site-x", witness, true)},
		c: with(joinFirst("d", "site-x", witness), getJoin, func(m *commandpb.JoinNode) { m.Region.Identity = []byte("k") }), want: hierarchy.ErrInvalidArgument, words: "no HSM"},
}

var setNodeSteps = []step{
	{name: "address", c: setNode(nodeB, ptr("192.0.2.7:7400"), nil)},
	{name: "demote", c: setNode(nodeB, nil, ptr(false))},
	{name: "promote", before: []*commandpb.Command{setNode(nodeB, nil, ptr(false))}, c: setNode(nodeB, nil, ptr(true))},
	{name: "demote a replica", c: setNode(nodeC, nil, ptr(false))},
	{name: "the same again", c: setNode(nodeB, ptr("b.example.net:7400"), ptr(true))},
	{name: "all voters but one", before: []*commandpb.Command{setNode(nodeB, nil, ptr(false))}, c: setNode(nodeW, nil, ptr(false))},
	{name: "nothing", c: setNode(nodeB, nil, nil), want: hierarchy.ErrInvalidArgument, words: "nothing"},
	{name: "no address", c: setNode(nodeB, ptr(""), nil), want: hierarchy.ErrInvalidArgument},
	{name: "promote a replica", c: setNode(nodeC, nil, ptr(true)), want: hierarchy.ErrFailedPrecondition, words: "us-east is a replica region, whose nodes serve and do not vote"},
	{name: "demote the last voter", before: []*commandpb.Command{setNode(nodeB, nil, ptr(false)), setNode(nodeW, nil, ptr(false))},
		c: setNode(nodeID, nil, ptr(false)), want: hierarchy.ErrFailedPrecondition, words: "node a is the last voter: promote or add another"},
	{name: "one good, one bad", c: setNode(nodeC, ptr("192.0.2.7:7400"), ptr(true)), want: hierarchy.ErrFailedPrecondition},
	{name: "a stranger", c: setNode(nodeOf("stranger"), nil, ptr(true)), want: hierarchy.ErrNotFound},
	{name: "one that was removed", c: setNode(gone, nil, ptr(false)), want: hierarchy.ErrNotFound},
	{name: "bad ID", c: with(setNode(nodeB, nil, ptr(false)), (*commandpb.Command).GetSetNode, func(m *commandpb.SetNode) { m.NodeId = badID }), want: hierarchy.ErrInvalidArgument},
}

var removeSteps = []step{
	{name: "a voter", c: removeNode(nodeB)},
	{name: "a replica", c: removeNode(nodeC)},
	{name: "the one that mints", c: removeNode(nodeID)},
	{name: "again", c: removeNode(gone)},
	{name: "the last voter", before: []*commandpb.Command{removeNode(nodeB), removeNode(nodeW)}, c: removeNode(nodeID), want: hierarchy.ErrFailedPrecondition, words: "node a is the last voter"},
	{name: "a stranger", c: removeNode(nodeOf("stranger")), want: hierarchy.ErrNotFound},
	{name: "bad ID", c: &commandpb.Command{Body: &commandpb.Command_RemoveNode{RemoveNode: &commandpb.RemoveNode{NodeId: badID}}}, want: hierarchy.ErrInvalidArgument},
}

var mintingSteps = []step{
	{name: "another", c: setMinting(regionID, nodeID, nodeB)},
	{name: "two propose the same", before: []*commandpb.Command{setMinting(regionID, nodeID, nodeB)}, c: setMinting(regionID, nodeID, nodeB)},
	{name: "two propose others", before: []*commandpb.Command{join("next", "eu-west"), setMinting(regionID, nodeID, nodeB)},
		c: setMinting(regionID, nodeID, nodeOf("next")), want: hierarchy.ErrFailedPrecondition, words: "look again"},
	{name: "from nobody", c: setMinting(regionID, hierarchy.NodeID{}, nodeB), want: hierarchy.ErrFailedPrecondition},
	{name: "of another region", c: setMinting(regionID, nodeID, nodeC), want: hierarchy.ErrInvalidArgument, words: "c is not of region eu-west"},
	{name: "of a witness", c: setMinting(regionOf("site-w"), hierarchy.NodeID{}, nodeW), want: hierarchy.ErrFailedPrecondition, words: "no HSM"},
	{name: "one that was removed", c: setMinting(regionOf("us-east"), nodeC, gone), want: hierarchy.ErrNotFound},
	{name: "no region", c: setMinting(regionOf("nowhere"), nodeID, nodeB), want: hierarchy.ErrNotFound},
	{name: "bad region", c: with(setMinting(regionID, nodeID, nodeB), (*commandpb.Command).GetSetMintingNode, func(m *commandpb.SetMintingNode) { m.RegionId = badID }), want: hierarchy.ErrInvalidArgument},
}

var raiseSteps = []step{
	{name: "the same", c: raise(1)},
	{name: "down", c: raise(0), want: hierarchy.ErrFailedPrecondition, words: "does not go back"},
	// One that this version does not know stops the node: TestWhatStopsANode.
}

func TestAJoinedNodeIsWhatItWasInvitedAs(t *testing.T) {
	m := populated(t)
	want := &state.Node{ID: nodeB, Name: "b", Region: regionID, Voter: true, Address: "b.example.net:7400", Incarnation: holder(nodeB, "b2").Incarnation}
	if got, _ := m.s.Node(nodeB); cmp.Diff(want, got) != "" {
		t.Errorf("b (-want +got):\n%s", cmp.Diff(want, got))
	}
	if byName, _ := m.s.NodeByName("b"); byName == nil || byName.ID != nodeB {
		t.Errorf("by its name: %+v", byName)
	}
	// It says that it votes, and is not asked.
	m.do(t, invite("d", "eu-west", voting, false))
	m.do(t, with(join("d", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Node.Voter = true }))
	if d, _ := m.s.Node(nodeOf("d")); d.Voter {
		t.Error("a node votes because it said so")
	}
	w, _ := m.s.Node(nodeW)
	site, _ := m.s.Region(w.Region)
	if string(w.Identity) != "file key of w" || !w.Voter || site.Role != hierarchy.RoleWitness || site.Identity != nil || !site.MintingNode.IsZero() {
		t.Errorf("the witness: %+v of %+v", w, site)
	}
	us, _ := m.s.RegionByName("us-east")
	if us.MintingNode != nodeC || string(us.Identity) != "identity of us-east" {
		t.Errorf("the region that c brought along: %+v", us)
	}
	if _, ok := m.s.Invitation(hierarchy.ID(id("invitation of b"))); ok {
		t.Error("an invitation that was used is open")
	}
}

func TestARemovedNode(t *testing.T) {
	m := populated(t)
	m.do(t, with(reserve("acme", "orders", 2, 100), getReserve, func(r *commandpb.ReserveWraps) { r.NodeId = nodeB.ID[:] }))
	m.do(t, with(anchor(3, 9), getAnchor, func(a *commandpb.AnchorAudit) { a.NodeId = nodeB.ID[:] }))
	before, _ := version(t, m, "acme", "orders", 2).Region(regionID)
	m.do(t, removeNode(nodeB))
	check(t, m.s)

	if n, ok := m.s.Node(nodeB); ok {
		t.Errorf("it is still a member: %+v", n)
	}
	if n, ok := m.s.NodeByName("b"); ok {
		t.Errorf("its name is still that of %+v", n)
	}
	was, ok := m.s.Removed(nodeB)
	want := &state.RemovedNode{ID: nodeB, Name: "b", Region: regionID, RemovedAt: m.s.Stamp()}
	if !ok || cmp.Diff(want, was) != "" {
		t.Errorf("what is left of it (-want +got):\n%s", cmp.Diff(want, was))
	}
	if a, ok := m.s.Anchor(nodeB); !ok || a.Sequence != 3 {
		t.Errorf("its anchor: %+v", a)
	}
	// Its seals stay counted, and it can give none back.
	after, _ := version(t, m, "acme", "orders", 2).Region(regionID)
	if after.WrapsReserved != before.WrapsReserved {
		t.Errorf("%d seals are reserved, want %d", after.WrapsReserved, before.WrapsReserved)
	}
	for name, c := range map[string]*commandpb.Command{
		"returns": with(giveBack("acme", "orders", 2, 50), getReturn, func(r *commandpb.ReturnWraps) { r.NodeId = nodeB.ID[:] }),
		"takes":   with(reserve("acme", "orders", 2, 50), getReserve, func(r *commandpb.ReserveWraps) { r.NodeId = nodeB.ID[:] }),
		"anchors": with(anchor(4, 9), getAnchor, func(a *commandpb.AnchorAudit) { a.NodeId = nodeB.ID[:] }),
	} {
		if res := m.command(c); !errors.Is(res.Err, hierarchy.ErrNotFound) {
			t.Errorf("%s: got error %v, want %v", name, res.Err, hierarchy.ErrNotFound)
		}
	}

	// Its name is free, its ID is not.
	again := with(invite("b", "eu-west", voting, true), getInvitation, func(i *commandpb.Invitation) { i.Id = id("again") })
	m.do(t, again)
	joined := with(join("b", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.InvitationId = id("again") })
	if res := m.command(proto.Clone(joined).(*commandpb.Command)); !errors.Is(res.Err, hierarchy.ErrFailedPrecondition) || !strings.Contains(res.Err.Error(), "empty data directory") {
		t.Errorf("under its old ID: got error %v", res.Err)
	}
	m.do(t, with(joined, getJoin, func(m *commandpb.JoinNode) { m.Node.Id = id("another b") }))
	check(t, m.s)
}

// A region whose last node leaves waits for the next one, and is minted for by it.
func TestAnEmptyRegion(t *testing.T) {
	m := populated(t)
	m.do(t, removeNode(nodeC))
	us, _ := m.s.RegionByName("us-east")
	if !us.MintingNode.IsZero() {
		t.Errorf("node %s mints for a region without nodes", us.MintingNode)
	}
	check(t, m.s)
	m.do(t, invite("d", "us-east", replica, false))
	m.do(t, join("d", "us-east"))
	us, _ = m.s.RegionByName("us-east")
	if us.MintingNode != nodeOf("d") || string(us.Identity) != "identity of us-east" {
		t.Errorf("after the next joined: %+v", us)
	}
	check(t, m.s)
}

// The node that minted may be in the middle of a step, and go on after it was taken for dead.
func TestANewMintingNodeStartsAnew(t *testing.T) {
	for name, handOver := range map[string]*commandpb.Command{
		"named":               setMinting(regionID, nodeID, nodeB),
		"because one removed": removeNode(nodeID),
	} {
		t.Run(name, func(t *testing.T) {
			m := populated(t)
			orders := version(t, m, "acme", "orders", 2)
			m.do(t, handOver)
			if r, _ := m.s.Region(regionID); r.MintingNode != nodeB {
				t.Errorf("node %s mints", r.MintingNode)
			}
			if v := version(t, m, "acme", "fresh", 1); v.Attempt != 2 || v.State != hierarchy.PreActive {
				t.Errorf("what is not minted: %+v", v)
			}
			if v := version(t, m, "acme", "orders", 2); v != orders {
				t.Errorf("what is minted has changed: %+v", v)
			}
			if res := m.command(minted("acme", "fresh", 1)); !errors.Is(res.Err, hierarchy.ErrFailedPrecondition) {
				t.Errorf("what the old node made is recorded: got error %v", res.Err)
			}
			m.do(t, mintedAt("acme", "fresh", 1, 2))
			check(t, m.s)
		})
	}
	t.Run("what it has recorded is done", func(t *testing.T) {
		m := twoRegions(t)
		m.do(t, invite("c", "eu-west", voting, true))
		m.do(t, join("c", "eu-west"))
		m.do(t, mintedIn(regionID, 1, 1))
		m.do(t, setMinting(regionID, nodeID, nodeC))
		if v := version(t, m, "acme", "orders", 1); v.Attempt != 1 {
			t.Errorf("attempt %d of what the region has recorded", v.Attempt)
		}
		m.do(t, mintedIn(secondRegion, 1, 1))
		wantState(t, m, 1, hierarchy.Active)
	})
	t.Run("what others have recorded is void", func(t *testing.T) {
		m := twoRegions(t)
		m.do(t, invite("c", "eu-west", voting, true))
		m.do(t, join("c", "eu-west"))
		m.do(t, mintedIn(secondRegion, 1, 1))
		m.do(t, setMinting(regionID, nodeID, nodeC))
		v := version(t, m, "acme", "orders", 1)
		if r, _ := v.Region(secondRegion); v.Attempt != 2 || r.Minted {
			t.Errorf("attempt %d, of which the other region has %+v", v.Attempt, r)
		}
		m.do(t, mintedIn(regionID, 1, 2))
		wantState(t, m, 1, hierarchy.PreActive)
		check(t, m.s)
	})
}

// A voting region that sorts before the first one does not become the first one.
func TestTenantsLiveInTheFirstRegion(t *testing.T) {
	m := populated(t)
	m.do(t, invite("d", "aa-first", voting, true))
	m.do(t, joinFirst("d", "aa-first", voting))
	back, err := state.Read(bytes.NewReader(snapshot(t, m.s)))
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*machine{"kept": m, "read": {back, m.stamp}} {
		m.do(t, createTenant("initech"))
		tenant, _ := m.s.TenantByName("initech")
		if diff := cmp.Diff([]hierarchy.RegionID{regionID}, tenant.Placement); diff != "" {
			t.Errorf("%s: placement (-want +got):\n%s", name, diff)
		}
	}
}

// All nodes of a region take from one key's seals, each from its own block.
func TestNodesOfARegionShareItsSeals(t *testing.T) {
	m := populated(t)
	of := func(node hierarchy.NodeID, c *commandpb.Command) *commandpb.Command {
		if r := c.GetReserveWraps(); r != nil {
			r.NodeId = node.ID[:]
		} else {
			c.GetReturnWraps().NodeId = node.ID[:]
		}
		return c
	}
	m.do(t, of(nodeB, reserve("acme", "orders", 2, 100)))
	if res := m.command(of(nodeB, giveBack("acme", "orders", 2, 101))); !errors.Is(res.Err, hierarchy.ErrInvalidArgument) {
		t.Errorf("b returned what a has reserved: got error %v", res.Err)
	}
	m.do(t, of(nodeB, giveBack("acme", "orders", 2, 30)))
	r, _ := version(t, m, "acme", "orders", 2).Region(regionID)
	if want := uint64(1<<16 + 70); r.WrapsReserved != want {
		t.Errorf("%d seals are reserved, want %d", r.WrapsReserved, want)
	}
	if res := m.command(of(nodeC, reserve("acme", "orders", 2, 1))); !errors.Is(res.Err, hierarchy.ErrInvalidArgument) {
		t.Errorf("a node of another region reserved seals: got error %v", res.Err)
	}
}

func TestInvitationsAreBounded(t *testing.T) {
	m := initialised(t)
	for i := range state.MaxInvitations {
		m.do(t, invite(fmt.Sprint("n", i), "eu-west", voting, true))
	}
	if res := m.command(invite("more", "eu-west", voting, true)); !errors.Is(res.Err, hierarchy.ErrCapacity) {
		t.Errorf("got error %v, want %v", res.Err, hierarchy.ErrCapacity)
	}
	m.do(t, again("n7", "eu-west", voting, true)) // takes the place of one
	if res := m.command(with(again("n7", "eu-west", voting, true), getInvitation, func(i *commandpb.Invitation) { i.Id, i.ExpiresAt = id("third"), 1 })); res.Err == nil {
		t.Error("an invitation that has expired was taken")
	}
	if _, ok := m.s.Invitation(hierarchy.ID(id("another invitation of n7"))); !ok {
		t.Error("what was refused has withdrawn the one before it")
	}
	check(t, m.s)
	m.do(t, later(time.Hour))
	for i := range m.s.Invitations() {
		t.Fatalf("the invitation of %s is open at %s, and expired at %s", i.Node, m.s.Stamp(), i.ExpiresAt)
	}
	m.do(t, expiring(invite("more", "eu-west", voting, true), 2*time.Hour))
	check(t, m.s)
}

func TestAddresses(t *testing.T) {
	for address, good := range map[string]bool{
		"kekd-1.example.net:7400": true, "192.0.2.1:1": true, "[2001:db8::1]:65535": true, "[fe80::1%eth0]:7400": true, "localhost:7400": true,
		"": false, "host": false, ":7400": false, "host:": false, "host:0": false, "host:65536": false, "host:07400": false, "host:+1": false, "host:http": false,
		"2001:db8::1:7400": false, "[2001:db8::1:7400": false, "[]:7400": false, "2001:db8::1]:7400": false, "a b:7400": false, "a/b:7400": false, "höst:7400": false,
		"host:7400\n": false, "user@host:7400": false, strings.Repeat("a", 253) + ":65535": true, strings.Repeat("a", 254) + ":65535": false,
	} {
		m := populated(t)
		if res := m.command(setNode(nodeB, &address, nil)); (res.Err == nil) != good {
			t.Errorf("%q: got error %v", address, res.Err)
		}
	}
}

// anyMembership draws commands of membership from few names, so that they meet.
func anyMembership(t *rapid.T, now time.Time) *commandpb.Command {
	node := rapid.SampledFrom([]string{"b", "c", "d", "w", "next"}).Draw(t, "node")
	of := rapid.SampledFrom([]hierarchy.NodeID{nodeID, nodeB, nodeC, nodeW, nodeOf("d"), nodeOf("next"), gone}).Draw(t, "member")
	other := rapid.SampledFrom([]hierarchy.NodeID{{}, nodeID, nodeB, nodeC, nodeOf("d")}).Draw(t, "other")
	region := rapid.SampledFrom([]string{"eu-west", "us-east", "site-w", "aa"}).Draw(t, "region")
	role := rapid.SampledFrom([]commandpb.RegionRole{voting, replica, witness}).Draw(t, "role")
	voter := rapid.Bool().Draw(t, "voter")
	n := rapid.IntRange(0, 3).Draw(t, "try")
	// Each try has an invitation and a node ID of its own.
	invited := with(invite(node, region, role, voter), getInvitation, func(i *commandpb.Invitation) {
		i.Id, i.ExpiresAt = id(fmt.Sprint(node, n)), now.Add(time.Duration(n)*20*time.Second).UnixNano()
	})
	joins := func(c *commandpb.Command) *commandpb.Command {
		m := c.GetJoinNode()
		m.InvitationId = id(fmt.Sprint(node, n))
		if n > 1 {
			m.Node.Id = id(fmt.Sprint("another ", node, n))
		}
		return c
	}
	return rapid.SampledFrom([]func() *commandpb.Command{
		func() *commandpb.Command { return invited },
		func() *commandpb.Command { return joins(join(node, region)) },
		func() *commandpb.Command { return joins(joinFirst(node, region, role)) },
		func() *commandpb.Command { return removeNode(of) },
		func() *commandpb.Command { return register(of, fmt.Sprint(node, n), "") },
		func() *commandpb.Command { return register(of, fmt.Sprint(node, n), fmt.Sprint(node, n-1)) },
		func() *commandpb.Command { return complete(uint64(4*n + 2)) },
		func() *commandpb.Command {
			return retire(state.Holder{Node: of, Incarnation: incarnation(fmt.Sprint(node, n))}, uint64(4*n+2))
		},
		func() *commandpb.Command { return setNode(of, nil, &voter) },
		func() *commandpb.Command { return setNode(of, ptr(node+":7400"), nil) },
		func() *commandpb.Command { return setMinting(regionOf(region), other, of) },
		func() *commandpb.Command { return raise(uint32(n % 2)) },
	}).Draw(t, "kind")()
}

// However nodes come and go: somebody votes, an ID is a member's once, an invitation lets one node in, and
// each region with an HSM and nodes is minted for by one of them.
func TestMembership(t *testing.T) {
	t.Parallel()
	from := populated(t)
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{from.s, from.stamp}
		were := map[hierarchy.NodeID]bool{gone: true}
		used := make(map[string]bool)
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			before := m.s
			c := anyMembership(t, m.stamp)
			res := m.command(c)
			if j := c.GetJoinNode(); j != nil && res.Err == nil {
				nid := hierarchy.NodeID{ID: hierarchy.ID(j.Node.Id)}
				invitation, ok := before.Invitation(hierarchy.ID(j.InvitationId))
				if !ok || !invitation.ExpiresAt.After(m.s.Stamp()) {
					t.Fatalf("node %s joined with an invitation that was not open", j.Node.Name)
				}
				if key := fmt.Sprint(j.InvitationId, invitation.ExpiresAt); used[key] {
					t.Fatalf("node %s joined with an invitation that was used", j.Node.Name)
				} else {
					used[key] = true
				}
				if were[nid] {
					t.Fatalf("ID %s was a member's before", nid)
				}
				if n, _ := m.s.Node(nid); n.Voter != invitation.Voter || n.Name != invitation.Node {
					t.Fatalf("invited as %+v it joined as %+v", invitation, n)
				}
			}
			voters, minting := 0, make(map[hierarchy.RegionID]bool)
			for n := range m.s.Nodes() {
				if n.Voter {
					voters++
				}
				were[n.ID] = were[n.ID] || false
				r, _ := m.s.Region(n.Region)
				minting[r.ID] = minting[r.ID] || r.MintingNode == n.ID || r.Role == hierarchy.RoleWitness
				if n.Voter && r.Role == hierarchy.RoleReplica {
					t.Fatalf("%s of a replica region votes", n.Name)
				}
				if _, removed := m.s.Removed(n.ID); removed {
					t.Fatalf("%s is a member and was removed", n.Name)
				}
			}
			for r, ok := range minting {
				if !ok {
					t.Fatalf("nobody of region %s mints for it", r)
				}
			}
			if voters == 0 {
				t.Fatal("nobody votes")
			}
			for n := range before.Nodes() {
				if _, member := m.s.Node(n.ID); !member {
					were[n.ID] = true
					if _, ok := m.s.Removed(n.ID); !ok {
						t.Fatalf("nothing is left of %s", n.Name)
					}
				}
			}
			for n := range before.RemovedNodes() {
				if _, ok := m.s.Removed(n.ID); !ok {
					t.Fatalf("that %s was removed is forgotten", n.Name)
				}
			}
		}
		check(t, m.s)
	})
}
