package state

import (
	"bytes"
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
)

// position is where a record stands in a snapshot: by kind, then by key.
type position struct {
	kind int
	key  []byte
}

func (p position) before(q position) bool {
	return p.kind < q.kind || p.kind == q.kind && bytes.Compare(p.key, q.key) < 0
}

// load takes one record of a snapshot into the draft. What it refers to has to be there already:
// the order of the kinds sees to that. It returns the record as it is to be encoded.
func (d *draft) load(rec *commandpb.SnapshotRecord) (position, *commandpb.SnapshotRecord, error) {
	fail := func(err error) (position, *commandpb.SnapshotRecord, error) { return position{}, nil, err }
	switch r := rec.GetRecord().(type) {
	case *commandpb.SnapshotRecord_Region:
		region, err := regionFromPB(r.Region)
		if err != nil {
			return fail(err)
		}
		if _, ok := d.Region(region.ID); ok {
			return fail(fmt.Errorf("two regions have the ID %s", region.ID))
		}
		if region.AddedIndex == 0 || region.AddedIndex > d.index {
			return fail(fmt.Errorf("region %s was added at index %d, the state is of %d", region.Name, region.AddedIndex, d.index))
		}
		d.putRegion(region)
		return position{1, []byte(region.Name)}, regionRecord(region), nil

	case *commandpb.SnapshotRecord_Node:
		node, err := nodeFromPB(r.Node)
		if err != nil {
			return fail(err)
		}
		if _, ok := d.Node(node.ID); ok {
			return fail(fmt.Errorf("two nodes have the ID %s", node.ID))
		}
		region, ok := d.Region(node.Region)
		if !ok {
			return fail(fmt.Errorf("node %s is of a region that is not there", node.Name))
		}
		if err := checkNodeIn(region, node); err != nil {
			return fail(err)
		}
		d.putNode(node)
		return position{2, []byte(node.Name)}, nodeRecord(node), nil

	case *commandpb.SnapshotRecord_Tenant:
		tenant, err := tenantFromPB(r.Tenant)
		if err != nil {
			return fail(err)
		}
		if _, ok := d.Tenant(tenant.ID); ok {
			return fail(fmt.Errorf("two tenants have the ID %s", tenant.ID))
		}
		for _, id := range tenant.Placement {
			if _, ok := d.Region(id); !ok {
				return fail(fmt.Errorf("tenant %s is placed in a region that is not there", tenant.Name))
			}
		}
		d.putTenant(tenant)
		return position{3, []byte(tenant.Name)}, tenantRecord(tenant), nil

	case *commandpb.SnapshotRecord_Key:
		key, err := keyFromPB(r.Key)
		if err != nil {
			return fail(err)
		}
		if _, ok := d.Tenant(key.Tenant); !ok {
			return fail(fmt.Errorf("key %s is of a tenant that is not there", key.Name))
		}
		if _, ok := d.keyByID.get(key.ID); ok {
			return fail(fmt.Errorf("two keys have the ID %s", key.ID))
		}
		if err := d.checkVersions(key); err != nil {
			return fail(err)
		}
		d.putKey(key)
		return position{4, treeKey(key)}, keyRecord(key), nil

	case *commandpb.SnapshotRecord_Service:
		svc, err := serviceFromPB(r.Service)
		if err != nil {
			return fail(err)
		}
		if other, ok := d.serviceOf.get(matchOf(svc)); ok {
			return fail(fmt.Errorf("services %s and %s match the same callers", svc.Name, other.Name))
		}
		d.putService(svc)
		return position{5, []byte(svc.Name)}, serviceRecord(svc), nil

	case *commandpb.SnapshotRecord_Rule:
		rule, err := ruleFromPB(r.Rule)
		if err != nil {
			return fail(err)
		}
		if _, ok := d.Service(rule.Service); !ok {
			return fail(fmt.Errorf("a rule is of service %s, which is not there", rule.Service))
		}
		d.putRule(rule)
		return position{6, ruleKey(rule)}, ruleRecord(rule), nil

	case *commandpb.SnapshotRecord_Anchor:
		anchor, err := anchorFromPB(r.Anchor)
		if err != nil {
			return fail(err)
		}
		d.putAnchor(anchor)
		return position{7, anchor.Node.ID[:]}, anchorRecord(anchor), nil

	case *commandpb.SnapshotRecord_Outcome:
		o, err := outcomeFromPB(r.Outcome)
		if err != nil {
			return fail(err)
		}
		if _, ok := d.outcomeByID.get(o.id); ok {
			return fail(fmt.Errorf("two outcomes are of command %s", o.id))
		}
		if o.index > d.index {
			return fail(fmt.Errorf("an outcome is of index %d, the state is of %d", o.index, d.index))
		}
		d.putOutcome(o)
		return position{8, outcomeKey(o)}, outcomeRecord(o), nil

	case *commandpb.SnapshotRecord_Uses:
		u, err := d.loadUses(r.Uses)
		if err != nil {
			return fail(err)
		}
		return position{9, usesKey(u)}, usesRecord(u), nil

	case *commandpb.SnapshotRecord_RemovedNode:
		node, err := removedFromPB(r.RemovedNode)
		if err != nil {
			return fail(err)
		}
		if _, ok := d.Node(node.ID); ok {
			return fail(fmt.Errorf("node %s is a member and was removed", node.ID))
		}
		d.putRemoved(node)
		return position{10, node.ID.ID[:]}, removedRecord(node), nil

	case *commandpb.SnapshotRecord_Invitation:
		i, err := invitationFromPB(r.Invitation)
		if err != nil {
			return fail(err)
		}
		if err := d.checkInvitation(i); err != nil {
			return fail(err)
		}
		d.putInvitation(i)
		return position{11, invitationKey(i)}, invitationRecord(i), nil

	case *commandpb.SnapshotRecord_Tombstone:
		t, err := d.loadTombstone(r.Tombstone)
		if err != nil {
			return fail(err)
		}
		return position{12, holderKey(t.Holder)}, tombstoneRecord(t), nil

	case *commandpb.SnapshotRecord_Fence:
		f, err := d.loadFence(r.Fence)
		if err != nil {
			return fail(err)
		}
		return position{13, fenceKey(f)}, fenceRecord(f), nil
	}
	return fail(fmt.Errorf("%w: a record of a kind that this version does not know", ErrUnknownCommand))
}

// checkVersions tells whether a key's versions are where there are regions, and name their own objects.
func (d *draft) checkVersions(k *Key) error {
	for _, v := range k.Versions {
		for _, r := range v.Regions {
			if _, ok := d.Region(r.Region); !ok {
				return fmt.Errorf("key %s version %d is in a region that is not there", k.Name, v.Number)
			}
			if r.Minted && r.Object != hierarchy.KEKObjectID(d.cluster, k.Tenant, k.ID, v.Number, r.Region, v.Attempt) {
				return fmt.Errorf("key %s version %d names an object that is not its own", k.Name, v.Number)
			}
		}
	}
	return nil
}

// checkWhole looks at what refers to records that come later in a snapshot.
func (d *draft) checkWhole() error {
	added := make(map[uint64]string)
	for r := range d.Regions() {
		if other, ok := added[r.AddedIndex]; ok {
			return fmt.Errorf("regions %s and %s were added by one command", other, r.Name)
		}
		added[r.AddedIndex] = r.Name
		if n, ok := d.Node(r.MintingNode); !r.MintingNode.IsZero() && (!ok || n.Region != r.ID) {
			return fmt.Errorf("region %s is minted for by a node that is not of it", r.Name)
		}
	}
	for a := range all(d.anchors, nil) {
		if _, ok := d.regionOf(a.Node); !ok {
			return fmt.Errorf("an audit anchor is of node %s, which was never a member", a.Node)
		}
	}
	for k := range d.AllKeys() {
		for _, v := range k.Versions {
			for _, r := range v.Regions {
				for _, res := range r.Reservations {
					if region, ok := d.regionOf(res.Node); !ok || region != r.Region {
						return fmt.Errorf("key %s version %d has seals reserved for a node that is not of the region", k.Name, v.Number)
					}
				}
			}
		}
	}
	return nil
}

// regionOf is that of a node which is a member or was one.
func (d *draft) regionOf(id hierarchy.NodeID) (hierarchy.RegionID, bool) {
	if n, ok := d.Node(id); ok {
		return n.Region, true
	}
	if n, ok := d.Removed(id); ok {
		return n.Region, true
	}
	return hierarchy.RegionID{}, false
}

func regionRecord(r *Region) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Region{Region: regionToPB(r)}}
}

func nodeRecord(n *Node) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Node{Node: nodeToPB(n)}}
}

func tenantRecord(t *Tenant) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Tenant{Tenant: tenantToPB(t)}}
}

func keyRecord(k *Key) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Key{Key: wholeKeyToPB(k)}}
}

func serviceRecord(s *Service) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Service{Service: serviceToPB(s)}}
}

func ruleRecord(r *policy.Rule) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Rule{Rule: ruleToPB(r)}}
}

func anchorRecord(a *Anchor) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Anchor{Anchor: anchorToPB(a)}}
}

func outcomeRecord(o *outcome) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Outcome{Outcome: outcomeToPB(o)}}
}

func removedRecord(n *RemovedNode) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_RemovedNode{RemovedNode: removedToPB(n)}}
}

func invitationRecord(i *Invitation) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Invitation{Invitation: invitationToPB(i)}}
}
