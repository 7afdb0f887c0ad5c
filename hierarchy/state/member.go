package state

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// member finds the one that a command is about.
func (d *draft) member(b []byte) (*Node, error) {
	id, err := idOf("node ID", b)
	if err != nil {
		return nil, err
	}
	n, ok := d.Node(hierarchy.NodeID{ID: id})
	if !ok {
		return nil, fmt.Errorf("%w: node %s is no member", hierarchy.ErrNotFound, id)
	}
	return n, nil
}

// checkLastVoter refuses to take the only vote that there is: nothing could be decided any more.
func (d *draft) checkLastVoter(n *Node) error {
	if !n.Voter {
		return nil
	}
	for other := range d.Nodes() {
		if other.Voter && other.ID != n.ID {
			return nil
		}
	}
	return fmt.Errorf("%w: node %s is the last voter: promote or add another one first", hierarchy.ErrFailedPrecondition, n.Name)
}

// setNode changes where a member is reached, and whether it is to vote.
func (d *draft) setNode(m *commandpb.SetNode) error {
	n, err := d.member(m.GetNodeId())
	if err != nil {
		return err
	}
	if m.Address == nil && m.Voter == nil {
		return fmt.Errorf("%w: nothing to set", hierarchy.ErrInvalidArgument)
	}
	next := *n
	if m.Address != nil {
		next.Address = m.GetAddress()
		if err := checkAddress(next.Address); err != nil {
			return err
		}
	}
	if m.Voter != nil {
		next.Voter = m.GetVoter()
		region, _ := d.Region(n.Region)
		if next.Voter && region.Role == hierarchy.RoleReplica {
			return fmt.Errorf("%w: node %s cannot be promoted: %s is a replica region, whose nodes serve and do not vote", hierarchy.ErrFailedPrecondition, n.Name, region.Name)
		}
		if !next.Voter {
			if err := d.checkLastVoter(n); err != nil {
				return err
			}
		}
	}
	if next.Address == n.Address && next.Voter == n.Voter {
		return nil
	}
	d.putNode(&next)
	return nil
}

// removeNode ends a membership. That there was one stays, so that the ID is never a member's again. The
// node's seals are forfeited as by a crash: they stay counted, and it can return none. Its audit anchor
// stays, since its journal may still be verified.
//
// What leases it may hold stay behind as a tombstone.
//
// Reservations stay where they are: to take them out of each version would stop a cluster of 100,000 keys
// for a second, and they say nothing wrong.
func (d *draft) removeNode(m *commandpb.RemoveNode) error {
	id, err := idOf("node ID", m.GetNodeId())
	if err != nil {
		return err
	}
	if _, ok := d.Removed(hierarchy.NodeID{ID: id}); ok {
		return nil
	}
	n, err := d.member(m.GetNodeId())
	if err != nil {
		return err
	}
	if err := d.checkLastVoter(n); err != nil {
		return err
	}
	d.deleteNode(n)
	d.bury(n)
	d.putRemoved(&RemovedNode{ID: n.ID, Name: n.Name, Region: n.Region, RemovedAt: d.now()})
	if region, _ := d.Region(n.Region); region.MintingNode == n.ID {
		d.handMintingOver(region, d.firstOf(region))
	}
	return nil
}

// firstOf is the first node of a region by name, zero if it has none: any would do, and all have to choose
// the same.
func (d *draft) firstOf(r *Region) hierarchy.NodeID {
	for n := range d.Nodes() {
		if n.Region == r.ID {
			return n.ID
		}
	}
	return hierarchy.NodeID{}
}

// setMintingNode has another node mint for a region.
func (d *draft) setMintingNode(m *commandpb.SetMintingNode) error {
	id, err := idOf("region ID", m.GetRegionId())
	if err != nil {
		return err
	}
	region, ok := d.Region(hierarchy.RegionID{ID: id})
	if !ok {
		return fmt.Errorf("%w: region %s", hierarchy.ErrNotFound, id)
	}
	if region.Role == hierarchy.RoleWitness {
		return fmt.Errorf("%w: region %s is a witness: it has no HSM, and nobody mints for it", hierarchy.ErrFailedPrecondition, region.Name)
	}
	n, err := d.member(m.GetNodeId())
	if err != nil {
		return err
	}
	if n.Region != region.ID {
		return fmt.Errorf("%w: node %s is not of region %s", hierarchy.ErrInvalidArgument, n.Name, region.Name)
	}
	if region.MintingNode == n.ID {
		return nil
	}
	if from := optionalID(region.MintingNode.ID); string(from) != string(m.GetFromNodeId()) {
		return fmt.Errorf("%w: region %s is minted for by node %x, not by %x: look again, then propose if it is still needed",
			hierarchy.ErrFailedPrecondition, region.Name, from, m.GetFromNodeId())
	}
	d.handMintingOver(region, n.ID)
	return nil
}

// handMintingOver makes a node the one that mints, and starts anew what the region has not recorded.
//
// The node before may be paused and not dead: it wakes in the middle of C_GenerateKey and makes a key under
// the name that the new node has just looked for and not found, and tokens do not refuse a second key of
// one name. So that name is given up: whatever it still makes is of an attempt that nobody uses, and doctor
// finds it. What other regions have recorded of the attempt goes with it, as in [draft.restartMinting].
func (d *draft) handMintingOver(region *Region, to hierarchy.NodeID) {
	next := *region
	next.MintingNode = to
	d.putRegion(&next)
	for k := range d.AllKeys() {
		v := k.Newest() // no other is pre-active
		if v.State != hierarchy.PreActive {
			continue
		}
		if r, ok := v.Region(region.ID); ok && !r.Minted {
			d.putVersion(k, nextAttempt(v))
		}
	}
}
