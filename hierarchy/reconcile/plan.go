package reconcile

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// VersionID names a key version by what never changes.
type VersionID struct {
	Tenant  hierarchy.TenantID
	Key     hierarchy.KeyID
	Version uint32
}

// need is what a version's object is to be.
type need uint8

const (
	nothing need = iota // there is to be none, or it does not matter
	made
	open    // usable
	closing // closed, and not on every node yet: it is left as it is
	closed  // latched, and forgotten by the serving side
)

// needs is what the state of a version asks of its object in a region: before the region has
// recorded it, and after. What a tenant that is not enabled has is closed instead of open.
//
// A key that is recorded stays usable while other regions make theirs: before the version becomes
// active, tokens test what they have made on each other. That nobody serves it until then is
// custody's to say; the latch is for what was disabled.
var needs = map[hierarchy.VersionState]struct{ before, after need }{
	hierarchy.PreActive:   {made, open},
	hierarchy.Active:      {nothing, open},
	hierarchy.Deactivated: {nothing, open},
	hierarchy.Suspended:   {nothing, closed},
	hierarchy.Compromised: {nothing, open}, // for rewrap; before: nobody has used it, nor ever will
	hierarchy.Destroyed:   {nothing, nothing},
}

// placed is a version that is to have an object in a region.
type placed struct {
	state   *state.State
	tenant  *state.Tenant
	key     *state.Key
	version *state.Version
	region  *state.RegionKey
}

func (p placed) id() VersionID { return VersionID{p.tenant.ID, p.key.ID, p.version.Number} }

func (p placed) name() hierarchy.VersionName {
	return hierarchy.VersionName{KeyName: hierarchy.KeyName{Tenant: p.tenant.Name, Key: p.key.Name}, Version: p.version.Number}
}

// label is for people: kekd/acme/orders/v3/kek.
func (p placed) label() string {
	return fmt.Sprintf("kekd/%s/%s/v%d/kek", p.tenant.Name, p.key.Name, p.version.Number)
}

func (p placed) need() need {
	n := needs[p.version.State]
	if !p.region.Minted {
		return n.before
	}
	if n.after == open && p.tenant.State == hierarchy.TenantEnabled || n.after == nothing {
		return n.after
	}
	// Who is in the middle of a use by the state before is to hear that it was withdrawn, and not that
	// the token fails. That nobody is, the fence says.
	if p.state.Unfenced(p.tenant.ID) {
		return closing
	}
	return closed
}

// object is that of one attempt at minting.
func (p placed) object(cluster hierarchy.ClusterID, attempt uint32) hierarchy.ObjectID {
	return hierarchy.KEKObjectID(cluster, p.tenant.ID, p.key.ID, p.version.Number, p.region.Region, attempt)
}

// versions are those that are to have an object in a region, in no order that means anything.
func versions(s *state.State, region hierarchy.RegionID) iter.Seq[placed] {
	return versionsOf(s, region, s.AllKeys())
}

// versionsOf are those of some keys.
func versionsOf(s *state.State, region hierarchy.RegionID, keys iter.Seq[*state.Key]) iter.Seq[placed] {
	return func(yield func(placed) bool) {
		var t *state.Tenant
		for k := range keys {
			if t == nil || t.ID != k.Tenant {
				t, _ = s.Tenant(k.Tenant) // no key is without one
			}
			for _, v := range k.Versions {
				if r, ok := v.Region(region); ok && !yield(placed{s, t, k, v, r}) {
					return
				}
			}
		}
	}
}

// action is what one step does to the token. The order is that in which steps are taken: what
// closes comes first, and nothing waits behind a key generation.
type action uint8

const (
	latch action = iota
	unlatch
	sweep // destroy what a minting that was given up has left
	mint
	actions

	forget // of the serving side, for all versions
	look   // at the token again
)

// step is one change that a token needs.
type step struct {
	action action
	placed
	object hierarchy.ObjectID
}

func (s step) task() task { return task{s.id(), s.action} }

// lost is an object that the hierarchy has and the token has not, or not as it must be.
type lost struct {
	placed
	why error
}

var (
	errMissing = errors.New("not in the token")
	errSwapped = errors.New("another key stands in its place")
)

// plan compares what the hierarchy wants of one region's token with what is in it, one that latches or
// one that cannot. It is pure.
func plan(s *state.State, some iter.Seq[placed], have map[hierarchy.ObjectID]hsm.Object, latches bool) (steps []step, gone []lost) {
	var by [actions][]step
	for p := range some {
		add := func(a action, object hierarchy.ObjectID) { by[a] = append(by[a], step{a, p, object}) }
		n := p.need()
		for dead := uint32(1); dead < p.version.Attempt; dead++ {
			object := p.object(s.ClusterID(), dead)
			if _, left := have[object]; left {
				add(sweep, object)
			}
		}
		switch n {
		case nothing:
			continue
		case made:
			add(mint, p.object(s.ClusterID(), p.version.Attempt))
			continue
		}
		obj, there := have[p.region.Object]
		why := obj.Fault
		switch {
		case !there:
			why = errMissing
		case why == nil && obj.Check != p.region.Check:
			why = errSwapped
		}
		if why != nil {
			gone = append(gone, lost{p, why})
		}
		switch {
		case !latches:
		case n == closed && there && obj.Usable: // also what is not as it must be
			add(latch, p.region.Object)
		case n == open && why == nil && !obj.Usable:
			add(unlatch, p.region.Object)
		}
	}
	// In the order of creation: IDs are random, and who creates key after key would else keep the
	// one with the highest waiting for ever.
	slices.SortStableFunc(by[mint], func(a, b step) int { return a.version.CreatedAt.Compare(b.version.CreatedAt) })
	for _, some := range by {
		steps = append(steps, some...)
	}
	return steps, gone
}

// asked tells whether a state still asks for a step that an earlier one has asked for.
func (s step) asked(now *state.State) bool {
	t, ok := now.Tenant(s.tenant.ID)
	if !ok {
		return false
	}
	k, ok := now.Key(s.tenant.ID, s.key.ID)
	if !ok {
		return false
	}
	v, ok := k.Version(s.version.Number)
	if !ok || v.Attempt != s.version.Attempt {
		return false
	}
	r, ok := v.Region(s.region.Region)
	return ok && placed{now, t, k, v, r}.need() == s.need()
}

// Orphans are the objects in a token that a daemon has made, and that are of no version that the
// hierarchy knows. Of a copy of it that is older than the list they may be of the versions that it lacks.
func Orphans(s *state.State, region hierarchy.RegionID, objects []hsm.Object) []hsm.Object {
	ours, _ := orphans(s, region, objects)
	return ours
}

// orphans are those, and how many there are with others'.
func orphans(s *state.State, region hierarchy.RegionID, objects []hsm.Object) (ours []hsm.Object, all uint64) {
	known := map[hierarchy.ObjectID]bool{}
	for p := range versions(s, region) {
		for a := uint32(1); a <= p.version.Attempt; a++ {
			known[p.object(s.ClusterID(), a)] = true
		}
	}
	for _, o := range objects {
		if known[o.ID] {
			continue
		}
		all++
		if len(o.RawID) == len(o.ID) && strings.HasPrefix(o.Label, "kekd/") && strings.Count(o.Label, "/") == 4 { // see label
			ours = append(ours, o)
		}
	}
	return ours, all
}
