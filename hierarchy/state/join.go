package state

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// Bounds of invitations.
const (
	// MaxInvitationLife is how long one may be open: a token that lies about is a way in.
	MaxInvitationLife = 24 * time.Hour
	// MaxInvitations is how many may be open at once. All that have expired are dropped by one command,
	// so it also bounds what that costs.
	MaxInvitations = 256
)

// Proof is what a node that joins shows of its token's secret. The secret itself stays with it: the log,
// which the proof gets into, is read by many.
func Proof(secret []byte) [32]byte {
	return sha256.Sum256(append([]byte("kekd join proof v1"), secret...))
}

// ProofHash is what an invitation has of a proof.
func ProofHash(proof []byte) [32]byte { return sha256.Sum256(proof) }

// inviteNode opens an invitation in the place of an earlier one of that name: a token that was lost, or got
// into the wrong hands, is made void by inviting again.
func (d *draft) inviteNode(m *commandpb.InviteNode) error {
	i, err := invitationFromPB(m.GetInvitation())
	if err != nil {
		return err
	}
	if _, ok := d.Invitation(i.ID); ok {
		return fmt.Errorf("%w: an invitation with the ID %s", hierarchy.ErrAlreadyExists, i.ID)
	}
	for earlier := range d.Invitations() {
		if earlier.Node == i.Node {
			d.deleteInvitation(earlier)
			break // there is one of a name
		}
	}
	if err := d.checkInvitation(i); err != nil {
		return err
	}
	d.putInvitation(i)
	return nil
}

// checkInvitation compares an invitation with the members and with those that are open.
func (d *draft) checkInvitation(i *Invitation) error {
	if !i.ExpiresAt.After(d.now()) || i.ExpiresAt.After(d.now().Add(MaxInvitationLife)) {
		return fmt.Errorf("%w: the invitation of node %s is to expire at %s: give it more than 0 and at most %v from now, which is %s",
			hierarchy.ErrInvalidArgument, i.Node, i.ExpiresAt, MaxInvitationLife, d.now())
	}
	if _, ok := d.NodeByName(i.Node); ok {
		return fmt.Errorf("%w: a node is called %s: choose another name, or remove that node first", hierarchy.ErrAlreadyExists, i.Node)
	}
	if region, ok := d.RegionByName(i.Region); ok && region.Role != i.Role {
		return fmt.Errorf("%w: region %s is a %s region, not a %s one", hierarchy.ErrFailedPrecondition, region.Name, region.Role, i.Role)
	}
	if _, ok := d.Invitation(i.ID); ok {
		return fmt.Errorf("%w: an invitation with the ID %s", hierarchy.ErrAlreadyExists, i.ID)
	}
	for other := range d.Invitations() {
		switch {
		case other.Node == i.Node:
			return fmt.Errorf("%w: node %s is invited already, until %s", hierarchy.ErrAlreadyExists, i.Node, other.ExpiresAt)
		case other.Region == i.Region && other.Role != i.Role:
			return fmt.Errorf("%w: node %s is invited to make region %s a %s region, not a %s one", hierarchy.ErrFailedPrecondition, other.Node, i.Region, other.Role, i.Role)
		}
	}
	if d.invited.Len() >= MaxInvitations {
		return fmt.Errorf("%w: %d invitations are open, the most that may be: let nodes join, or wait until some have expired", hierarchy.ErrCapacity, MaxInvitations)
	}
	return nil
}

// forgetInvitations drops what has expired. They are few enough to drop all.
func (d *draft) forgetInvitations() {
	for {
		_, first, ok := d.invited.Root().Minimum()
		if !ok || first.ExpiresAt.After(d.now()) {
			return
		}
		d.deleteInvitation(first)
	}
}

// joinNode makes a node a member.
func (d *draft) joinNode(m *commandpb.JoinNode) error {
	node, err := newNodeFromPB(m.GetNode())
	if err != nil {
		return err
	}
	if err := checkAddress(node.Address); err != nil {
		return err
	}
	if _, ok := d.Node(node.ID); ok {
		return fmt.Errorf("%w: node %s is a member already: start it", hierarchy.ErrAlreadyExists, node.Name)
	}
	if was, ok := d.Removed(node.ID); ok {
		return fmt.Errorf("%w: node %s was removed at %s, and the ID %s is not given again: join with an empty data directory", hierarchy.ErrFailedPrecondition, was.Name, was.RemovedAt, was.ID)
	}
	id, err := idOf("invitation ID", m.GetInvitationId())
	if err != nil {
		return err
	}
	i, ok := d.Invitation(id)
	if !ok {
		return fmt.Errorf("%w: invitation %s: it was used, has expired, was replaced by a later one, or is not of this cluster: invite the node again", hierarchy.ErrNotFound, id)
	}
	if hash := ProofHash(m.GetProof()); subtle.ConstantTimeCompare(hash[:], i.ProofHash[:]) != 1 {
		return fmt.Errorf("%w: the token does not fit the invitation of node %s: use the one that came with it, or invite the node again", hierarchy.ErrPermissionDenied, i.Node)
	}
	if node.Name != i.Node {
		return fmt.Errorf("%w: the invitation is of node %s, not of %s", hierarchy.ErrPermissionDenied, i.Node, node.Name)
	}
	region, err := d.regionToJoin(i, node, m.GetRegion())
	if err != nil {
		return err
	}
	node.Voter = i.Voter
	if err := checkNodeIn(region, node); err != nil {
		return err
	}
	if region.Role != hierarchy.RoleWitness && region.MintingNode.IsZero() {
		region.MintingNode = node.ID
	}
	d.putRegion(region)
	d.putNode(node)
	d.deleteInvitation(i)
	return nil
}

// regionToJoin is a copy of the invitation's region, or, if that is not there, the one that the node brings
// along. The identity of one that is there stands: a node does not bring another token.
func (d *draft) regionToJoin(i *Invitation, node *Node, brought *commandpb.Region) (*Region, error) {
	region, ok := d.RegionByName(i.Region)
	switch {
	case ok && brought != nil:
		return nil, fmt.Errorf("%w: region %s is there, with an identity of its own: join again without bringing one", hierarchy.ErrFailedPrecondition, region.Name)
	case ok && node.Region != region.ID:
		return nil, fmt.Errorf("%w: the invitation is for region %s, which has the ID %s, not %s", hierarchy.ErrPermissionDenied, region.Name, region.ID, node.Region)
	case ok:
		next := *region
		return &next, nil
	case brought == nil:
		return nil, fmt.Errorf("%w: region %s is not there: its first node has to bring it along", hierarchy.ErrInvalidArgument, i.Region)
	}
	next, err := regionFromPB(brought)
	if err != nil {
		return nil, err
	}
	next.AddedIndex = d.index
	if next.Name != i.Region || next.Role != i.Role {
		return nil, fmt.Errorf("%w: the invitation is for the %s region %s, not for the %s region %s", hierarchy.ErrPermissionDenied, i.Role, i.Region, next.Role, next.Name)
	}
	if node.Region != next.ID {
		return nil, fmt.Errorf("%w: node %s is not of the region that it brings along", hierarchy.ErrInvalidArgument, node.Name)
	}
	if other, ok := d.Region(next.ID); ok {
		return nil, fmt.Errorf("%w: region %s has the ID %s", hierarchy.ErrAlreadyExists, other.Name, next.ID)
	}
	if !next.MintingNode.IsZero() && next.MintingNode != node.ID {
		return nil, fmt.Errorf("%w: the first node of region %s mints for it", hierarchy.ErrInvalidArgument, next.Name)
	}
	return next, nil
}
