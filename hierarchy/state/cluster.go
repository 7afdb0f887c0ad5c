package state

import (
	"bytes"
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// initCluster makes the cluster, with its first region and node.
func (d *draft) initCluster(m *commandpb.InitCluster) error {
	if d.Initialised() {
		return fmt.Errorf("%w: this is cluster %s already", hierarchy.ErrFailedPrecondition, d.cluster)
	}
	id, err := idOf("cluster ID", m.GetClusterId())
	if err != nil {
		return err
	}
	region, err := regionFromPB(m.GetRegion())
	if err != nil {
		return err
	}
	node, err := newNodeFromPB(m.GetNode())
	if err != nil {
		return err
	}
	switch {
	case region.Role != hierarchy.RoleVoting:
		return fmt.Errorf("%w: the first region is a voting region, %s is a %s", hierarchy.ErrInvalidArgument, region.Name, region.Role)
	case node.Region != region.ID:
		return fmt.Errorf("%w: the first node is of the first region", hierarchy.ErrInvalidArgument)
	case !node.Voter:
		return fmt.Errorf("%w: the first node is a voter", hierarchy.ErrInvalidArgument)
	case region.MintingNode != node.ID:
		return fmt.Errorf("%w: the first node mints for its region", hierarchy.ErrInvalidArgument)
	}
	if err := checkNodeIn(region, node); err != nil {
		return err
	}
	region.AddedIndex = d.index
	d.cluster, d.level = hierarchy.ClusterID{ID: id}, 1
	d.putRegion(region)
	d.putNode(node)
	return nil
}

// placement is where a new tenant lives: the first voting region, which is the one that the cluster was
// made with. A region that comes later and sorts before it by name changes nothing.
func (d *draft) placement() ([]hierarchy.RegionID, error) {
	var first *Region
	for r := range d.Regions() {
		if r.Role == hierarchy.RoleVoting && (first == nil || r.AddedIndex < first.AddedIndex) {
			first = r
		}
	}
	if first == nil {
		return nil, fmt.Errorf("%w: there is no voting region", hierarchy.ErrFailedPrecondition)
	}
	return []hierarchy.RegionID{first.ID}, nil
}

// anchorAudit fixes the head of a node's audit journal. A journal only grows, so a lower sequence
// or another head at the same one is a journal that was cut or forked: evidence, and refused.
func (d *draft) anchorAudit(m *commandpb.AnchorAudit) error {
	next, err := anchorFromPB(&commandpb.Anchor{
		NodeId: m.GetNodeId(), Sequence: m.GetSequence(), Head: m.GetHead(), Signature: m.GetSignature(), At: d.stamp,
	})
	if err != nil {
		return err
	}
	node, ok := d.Node(next.Node)
	if !ok {
		return fmt.Errorf("%w: node %s is no member", hierarchy.ErrNotFound, next.Node)
	}
	if err := checkReason(m.GetAcceptedLoss()); err != nil {
		return err
	}
	if last, ok := d.Anchor(next.Node); ok && m.GetAcceptedLoss() == "" {
		switch {
		case next.Sequence < last.Sequence:
			return fmt.Errorf("%w: the audit journal of node %s was anchored at record %d and now ends at %d: records are gone",
				hierarchy.ErrFailedPrecondition, node.Name, last.Sequence, next.Sequence)
		case next.Sequence == last.Sequence && next.Head != last.Head:
			return fmt.Errorf("%w: the audit journal of node %s has another record %d than the one that was anchored",
				hierarchy.ErrFailedPrecondition, node.Name, last.Sequence)
		case next.Sequence == last.Sequence && bytes.Equal(next.Signature, last.Signature):
			return nil
		}
	}
	d.putAnchor(next)
	return nil
}
