package reconcile

import (
	"bytes"
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// attention is which keys a pass has to look at: those that changed since the last one, and those that were not
// at rest then. A plan over 10,000 keys takes 30 ms, and each change of the hierarchy asks for one.
//
// A key at rest is one of which each version is as it is wanted, open or never made, with nothing left over. That
// depends on the key, on its tenant and on its objects alone, and who takes a step changes only the objects of a key
// that is not at rest. So what is planned for the keys that get attention is what is planned for all.
type attention struct {
	planned *state.State // what the last pass has planned for; nil: all keys get attention
	awake   map[hierarchy.KeyID]hierarchy.TenantID
}

// forget has all keys looked at: the token was listed.
func (a *attention) forget() { *a = attention{} }

// versions are those that a pass for a state has to look at, sorted as all are.
func (a *attention) versions(s *state.State, region hierarchy.RegionID) iter.Seq[placed] {
	if a.planned == nil {
		return versions(s, region)
	}
	some := map[hierarchy.KeyID]*state.Key{}
	for k := range s.ChangedSince(a.planned) {
		some[k.ID] = k
	}
	for id, tenant := range a.awake {
		if k, ok := s.Key(tenant, id); ok {
			some[id] = k
		}
	}
	keys := make([]*state.Key, 0, len(some))
	for _, k := range some {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b *state.Key) int {
		return cmp.Or(bytes.Compare(a.Tenant.ID[:], b.Tenant.ID[:]), strings.Compare(a.Name, b.Name))
	})
	return versionsOf(s, region, slices.Values(keys))
}

// note takes in for which versions of a state it was planned, with what the token has.
func (a *attention) note(s *state.State, some iter.Seq[placed], have map[hierarchy.ObjectID]hsm.Object, latches bool) {
	a.planned, a.awake = s, map[hierarchy.KeyID]hierarchy.TenantID{}
	for p := range some {
		if !p.rests(have, latches) {
			a.awake[p.key.ID] = p.tenant.ID
		}
	}
}

// rests tells whether there is nothing to do for a version, and nothing to watch.
func (p placed) rests(have map[hierarchy.ObjectID]hsm.Object, latches bool) bool {
	for dead := uint32(1); dead < p.version.Attempt; dead++ {
		if _, left := have[p.object(p.state.ClusterID(), dead)]; left {
			return false
		}
	}
	switch p.need() {
	case nothing:
		return !p.region.Minted
	case open:
		obj, there := have[p.region.Object]
		return there && obj.Fault == nil && obj.Check == p.region.Check && (obj.Usable || !latches)
	}
	return false
}
