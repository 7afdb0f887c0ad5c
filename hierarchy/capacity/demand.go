package capacity

import (
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// Demand is what a hierarchy needs of one region's token, in objects.
type Demand struct {
	Held      uint64 // by versions, those included that are not minted yet
	Pending   uint64 // of these, what is not minted yet
	Rotations uint64 // one more version of each key
}

// Of is what all tenants need of a region.
func Of(s *state.State, region hierarchy.RegionID) (d Demand) {
	for k := range s.AllKeys() {
		if t, ok := s.Tenant(k.Tenant); ok {
			d.addKey(k, region, Cost(t, region))
		}
	}
	return d
}

// OfTenant is what one tenant needs of a region.
func OfTenant(s *state.State, region hierarchy.RegionID, tenant hierarchy.TenantID) (d Demand) {
	t, ok := s.Tenant(tenant)
	if !ok {
		return d
	}
	for k := range s.Keys(tenant) {
		d.addKey(k, region, Cost(t, region))
	}
	return d
}

// addKey counts a key whose next version takes cost objects.
func (d *Demand) addKey(k *state.Key, region hierarchy.RegionID, cost uint64) {
	d.Rotations += cost
	for _, v := range k.Versions {
		rk, ok := v.Region(region)
		if !ok || !holds(v, rk) {
			continue
		}
		n := objects(len(v.Regions))
		d.Held += n
		if !rk.Minted {
			d.Pending += n
		}
	}
}

func (d *Demand) add(other Demand) {
	d.Held += other.Held
	d.Pending += other.Pending
	d.Rotations += other.Rotations
}

// holds tells whether a region's token has, or will have, the objects of a version. One that was
// compromised before it was minted never will.
func holds(v *state.Version, rk *state.RegionKey) bool {
	return v.State != hierarchy.Destroyed && (rk.Minted || v.State == hierarchy.PreActive)
}

// Cost is what a new version of a tenant takes in a region's token, in objects.
func Cost(t *state.Tenant, region hierarchy.RegionID) uint64 {
	for _, id := range t.Placement {
		if id == region {
			return objects(len(t.Placement))
		}
	}
	return 0
}

// objects is what a version takes in each of its regions' tokens: its KEK, and for each other
// region a bridge there and one back.
func objects(regions int) uint64 { return 1 + 2*uint64(max(regions-1, 0)) }
