package state

import (
	"bytes"
	"slices"

	"github.com/kekd/kekd/hierarchy"
)

// Placed returns the state with one more region, of one node, in which a tenant is placed too. No command
// does that yet.
func Placed(s *State, tenant hierarchy.TenantID, r *Region, n *Node) *State {
	d := s.draft()
	r.AddedIndex = s.index
	d.putRegion(r)
	d.putNode(n)
	t, _ := d.Tenant(tenant)
	next := *t
	next.Placement = append(slices.Clone(t.Placement), r.ID)
	slices.SortFunc(next.Placement, func(a, b hierarchy.RegionID) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	d.putTenant(&next)
	return d.State
}
