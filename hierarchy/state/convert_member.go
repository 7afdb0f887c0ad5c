package state

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// optionalID is empty on the wire where there is none.
func optionalID(id hierarchy.ID) []byte {
	if id.IsZero() {
		return nil
	}
	return id[:]
}

func regionToPB(r *Region) *commandpb.Region {
	return &commandpb.Region{
		Id: r.ID.ID[:], Name: r.Name, Role: commandpb.RegionRole(r.Role),
		Identity: r.Identity, Kdf: r.KDF, MintingNode: optionalID(r.MintingNode.ID), AddedIndex: r.AddedIndex,
	}
}

func regionFromPB(m *commandpb.Region) (*Region, error) {
	id, err := idOf("region ID", m.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkName("region", m.GetName()); err != nil {
		return nil, err
	}
	r := &Region{
		ID: hierarchy.RegionID{ID: id}, Name: m.GetName(), Role: enum[hierarchy.RegionRole](m.GetRole()),
		Identity: bytes.Clone(m.GetIdentity()), KDF: m.GetKdf(), AddedIndex: m.GetAddedIndex(),
	}
	if len(m.GetMintingNode()) > 0 {
		minting, err := idOf("minting node of the region", m.GetMintingNode())
		if err != nil {
			return nil, err
		}
		r.MintingNode = hierarchy.NodeID{ID: minting}
	}
	if err := checkRole(r.Name, r.Role); err != nil {
		return nil, err
	}
	if r.Role == hierarchy.RoleWitness {
		if len(r.Identity) > 0 || r.KDF != "" || !r.MintingNode.IsZero() {
			return nil, fmt.Errorf("%w: region %s is a witness: it has no HSM, so no identity, KDF profile or minting node", hierarchy.ErrInvalidArgument, r.Name)
		}
		return r, nil
	}
	if err := checkIdentity("region "+r.Name, r.Identity); err != nil {
		return nil, err
	}
	if r.KDF != "" {
		if err := checkName("KDF profile of the region", r.KDF); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func checkRole(region string, role hierarchy.RegionRole) error {
	switch role {
	case hierarchy.RoleVoting, hierarchy.RoleReplica, hierarchy.RoleWitness:
		return nil
	}
	return fmt.Errorf("%w: region %s has no role that is known: %d", hierarchy.ErrInvalidArgument, region, role)
}

func checkIdentity(whose string, identity []byte) error {
	if len(identity) == 0 || len(identity) > maxIdentity {
		return fmt.Errorf("%w: the identity key of %s has %d bytes, it must have 1 to %d", hierarchy.ErrInvalidArgument, whose, len(identity), maxIdentity)
	}
	return nil
}

func nodeToPB(n *Node) *commandpb.Node {
	return &commandpb.Node{Id: n.ID.ID[:], Name: n.Name, RegionId: n.Region.ID[:], Voter: n.Voter, Address: n.Address, Identity: n.Identity, Incarnation: optionalID(n.Incarnation)}
}

func nodeFromPB(m *commandpb.Node) (*Node, error) {
	id, err := idOf("node ID", m.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkName("node", m.GetName()); err != nil {
		return nil, err
	}
	region, err := idOf("region ID of the node", m.GetRegionId())
	if err != nil {
		return nil, err
	}
	if m.GetAddress() != "" {
		if err := checkAddress(m.GetAddress()); err != nil {
			return nil, err
		}
	}
	n := &Node{
		ID: hierarchy.NodeID{ID: id}, Name: m.GetName(), Region: hierarchy.RegionID{ID: region},
		Voter: m.GetVoter(), Address: m.GetAddress(), Identity: bytes.Clone(m.GetIdentity()),
	}
	if len(m.GetIncarnation()) > 0 {
		if n.Incarnation, err = idOf("incarnation of the node", m.GetIncarnation()); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// newNodeFromPB reads a node that becomes a member: none of its runs may hold a lease yet.
func newNodeFromPB(m *commandpb.Node) (*Node, error) {
	n, err := nodeFromPB(m)
	if err == nil && !n.Incarnation.IsZero() {
		return nil, fmt.Errorf("%w: node %s has an incarnation: it registers one when it is a member", hierarchy.ErrInvalidArgument, n.Name)
	}
	return n, err
}

// checkNodeIn compares a node with the region that it is of.
func checkNodeIn(r *Region, n *Node) error {
	switch {
	case n.Voter && r.Role == hierarchy.RoleReplica:
		return fmt.Errorf("%w: node %s is of %s, a replica region: its nodes serve and do not vote", hierarchy.ErrInvalidArgument, n.Name, r.Name)
	case r.Role == hierarchy.RoleWitness:
		return checkIdentity("node "+n.Name, n.Identity)
	case len(n.Identity) > 0:
		return fmt.Errorf("%w: node %s has an identity key of its own, and the token of region %s has one for its nodes", hierarchy.ErrInvalidArgument, n.Name, r.Name)
	}
	return nil
}

// maxAddress is the length of a DNS name (RFC 1035 section 2.3.4) with a port.
const maxAddress = 253 + len(":65535")

// checkAddress takes a host name or an IP address, the port after it: host:port, 192.0.2.1:7400,
// [2001:db8::1]:7400. Go's own parsers are not asked: what they take may change from version to version,
// and what a command does may not.
func checkAddress(address string) error {
	bad := func() error {
		return fmt.Errorf("%w: address %q: write HOST:PORT, with brackets around an IPv6 address", hierarchy.ErrInvalidArgument, address)
	}
	colon := strings.LastIndexByte(address, ':')
	if colon < 0 || len(address) > maxAddress {
		return bad()
	}
	host, port := address[:colon], address[colon+1:]
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return bad()
	}
	allowed := "-."
	if inside, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inside, "]"); !ok {
			return bad()
		}
		allowed = "-.:%" // a zone may name an interface
	}
	if host == "" {
		return bad()
	}
	for _, c := range []byte(host) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && strings.IndexByte(allowed, c) < 0 {
			return bad()
		}
	}
	return nil
}

func removedToPB(n *RemovedNode) *commandpb.RemovedNode {
	return &commandpb.RemovedNode{Id: n.ID.ID[:], Name: n.Name, RegionId: n.Region.ID[:], RemovedAt: nanosOf(n.RemovedAt)}
}

func removedFromPB(m *commandpb.RemovedNode) (*RemovedNode, error) {
	id, err := idOf("ID of a removed node", m.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkName("removed node", m.GetName()); err != nil {
		return nil, err
	}
	region, err := idOf("region ID of a removed node", m.GetRegionId())
	if err != nil {
		return nil, err
	}
	return &RemovedNode{ID: hierarchy.NodeID{ID: id}, Name: m.GetName(), Region: hierarchy.RegionID{ID: region}, RemovedAt: timeOf(m.GetRemovedAt())}, nil
}

func invitationToPB(i *Invitation) *commandpb.Invitation {
	return &commandpb.Invitation{
		Id: i.ID[:], ProofHash: i.ProofHash[:], Node: i.Node, Region: i.Region,
		Role: commandpb.RegionRole(i.Role), Voter: i.Voter, ExpiresAt: nanosOf(i.ExpiresAt),
	}
}

func invitationFromPB(m *commandpb.Invitation) (*Invitation, error) {
	id, err := idOf("invitation ID", m.GetId())
	if err != nil {
		return nil, err
	}
	i := &Invitation{
		ID: id, Node: m.GetNode(), Region: m.GetRegion(), Role: enum[hierarchy.RegionRole](m.GetRole()),
		Voter: m.GetVoter(), ExpiresAt: timeOf(m.GetExpiresAt()),
	}
	if len(m.GetProofHash()) != len(i.ProofHash) {
		return nil, fmt.Errorf("%w: the hash of an invitation's proof has %d bytes, got %d", hierarchy.ErrInvalidArgument, len(i.ProofHash), len(m.GetProofHash()))
	}
	i.ProofHash = [32]byte(m.GetProofHash())
	if err := checkName("invited node", i.Node); err != nil {
		return nil, err
	}
	if err := checkName("region of the invited node", i.Region); err != nil {
		return nil, err
	}
	if err := checkRole(i.Region, i.Role); err != nil {
		return nil, err
	}
	if i.Voter && i.Role == hierarchy.RoleReplica {
		return nil, fmt.Errorf("%w: node %s cannot vote: %s is a replica region, whose nodes serve and do not vote", hierarchy.ErrInvalidArgument, i.Node, i.Region)
	}
	return i, nil
}
