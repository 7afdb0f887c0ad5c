package state

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// MaxReservation is the largest block of seals that a node may take at once.
const MaxReservation = 1 << 24

// reserveWraps hands a node a block of seals under one version's key in its region, so that all
// nodes together stay below what one AES-GCM key may seal with random IVs.
func (d *draft) reserveWraps(m *commandpb.ReserveWraps) error {
	t, err := d.tenant(m.GetTenantId())
	if err != nil {
		return err
	}
	name, k, v, err := d.version(m.GetTenantId(), m.GetKeyId(), m.GetVersion())
	if err != nil {
		return err
	}
	next, region, node, err := d.reservation(name, v, m.GetRegionId(), m.GetNodeId(), m.GetCount())
	if err != nil {
		return err
	}
	if err := mustBeEnabled(t); err != nil {
		return err
	}
	if v.State != hierarchy.Active {
		return fmt.Errorf("%w: %s is %s, only the active version wraps", hierarchy.ErrVersionDisabled, name, v.State)
	}
	if left := MaxWraps - region.WrapsReserved; m.GetCount() > left {
		return fmt.Errorf("%w: of %s %d seals are left and %d were asked for: rotate the key", hierarchy.ErrCapacity, name, left, m.GetCount())
	}
	region.WrapsReserved += m.GetCount()
	i, found := findReservation(region, node)
	if found {
		region.Reservations = slices.Clone(region.Reservations)
		region.Reservations[i].Count += m.GetCount()
	} else {
		region.Reservations = slices.Insert(slices.Clone(region.Reservations), i, Reservation{node, m.GetCount()})
	}
	d.putVersion(k, next)
	return nil
}

// returnWraps takes back what a clean stop has left over, at most what the node has reserved since
// it last returned any. The version may be in any state.
func (d *draft) returnWraps(m *commandpb.ReturnWraps) error {
	name, k, v, err := d.version(m.GetTenantId(), m.GetKeyId(), m.GetVersion())
	if err != nil {
		return err
	}
	next, region, node, err := d.reservation(name, v, m.GetRegionId(), m.GetNodeId(), m.GetCount())
	if err != nil {
		return err
	}
	i, found := findReservation(region, node)
	if !found || m.GetCount() > region.Reservations[i].Count {
		return fmt.Errorf("%w: node %s returns %d seals of %s, more than it has reserved since it last returned any", hierarchy.ErrInvalidArgument, node, m.GetCount(), name)
	}
	region.WrapsReserved -= m.GetCount()
	region.Reservations = slices.Delete(slices.Clone(region.Reservations), i, i+1)
	d.putVersion(k, next)
	return nil
}

// reservation finds what a command takes from or gives back to, in a copy of the version.
func (d *draft) reservation(name hierarchy.VersionName, v *Version, regionID, nodeID []byte, count uint64) (*Version, *RegionKey, hierarchy.NodeID, error) {
	fail := func(err error) (*Version, *RegionKey, hierarchy.NodeID, error) {
		return nil, nil, hierarchy.NodeID{}, err
	}
	rid, err := idOf("region ID", regionID)
	if err != nil {
		return fail(err)
	}
	nid, err := idOf("node ID", nodeID)
	if err != nil {
		return fail(err)
	}
	node, ok := d.Node(hierarchy.NodeID{ID: nid})
	if !ok {
		return fail(fmt.Errorf("%w: node %s is no member", hierarchy.ErrNotFound, nid))
	}
	if node.Region.ID != rid {
		return fail(fmt.Errorf("%w: node %s is not of region %s", hierarchy.ErrInvalidArgument, node.Name, rid))
	}
	if count == 0 || count > MaxReservation {
		return fail(fmt.Errorf("%w: a block of %d seals: it must have 1 to %d", hierarchy.ErrInvalidArgument, count, MaxReservation))
	}
	next := copyOf(v)
	region, ok := next.Region(node.Region)
	if !ok || !region.Minted {
		return fail(fmt.Errorf("%w: %s has no key in region %s", hierarchy.ErrFailedPrecondition, name, rid))
	}
	return next, region, node.ID, nil
}

func findReservation(r *RegionKey, node hierarchy.NodeID) (int, bool) {
	return slices.BinarySearchFunc(r.Reservations, node, func(r Reservation, id hierarchy.NodeID) int {
		return bytes.Compare(r.Node.ID[:], id.ID[:])
	})
}

// wrapsReserved is what is reserved of the key that a command takes from.
func wrapsReserved(s *State, m *commandpb.ReserveWraps) uint64 {
	_, _, v, err := (&draft{State: s}).version(m.GetTenantId(), m.GetKeyId(), m.GetVersion())
	if err != nil {
		return 0
	}
	region, ok := v.Region(hierarchy.RegionID{ID: hierarchy.ID(m.GetRegionId())})
	if !ok {
		return 0
	}
	return region.WrapsReserved
}
