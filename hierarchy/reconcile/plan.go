package reconcile

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// action is what one step does to the token. The order is that in which steps are taken: what
// closes comes first, and nothing waits behind a key generation.
type action uint8

const (
	latch action = iota + 1
	unlatch
	sweep // destroy what a minting that was given up has left
	mint
)

// step is one change that a token needs.
type step struct {
	action  action
	tenant  *state.Tenant
	key     *state.Key
	version *state.Version
	object  hierarchy.ObjectID
}

func (s step) name() hierarchy.VersionName {
	return hierarchy.VersionName{KeyName: hierarchy.KeyName{Tenant: s.tenant.Name, Key: s.key.Name}, Version: s.version.Number}
}

// label is for people: kekd/acme/orders/v3/kek.
func (s step) label() string {
	return fmt.Sprintf("kekd/%s/%s/v%d/kek", s.tenant.Name, s.key.Name, s.version.Number)
}

// usable tells whether the hierarchy lets anybody use a version's objects for anything.
func usable(t *state.Tenant, v *state.Version) bool {
	if t.State != hierarchy.TenantEnabled {
		return false
	}
	switch v.State {
	case hierarchy.Active, hierarchy.Deactivated, hierarchy.Compromised:
		return true
	}
	return false
}

// plan compares what the hierarchy wants of one region's token with what is in it. It is pure.
func plan(s *state.State, region hierarchy.RegionID, have map[hierarchy.ObjectID]hsm.Object) []step {
	var steps [mint + 1][]step
	add := func(st step) { steps[st.action] = append(steps[st.action], st) }
	for t := range s.Tenants() {
		for k := range s.Keys(t.ID) {
			for _, v := range k.Versions {
				rk, ok := v.Region(region)
				if !ok || v.State == hierarchy.Destroyed {
					continue
				}
				st := step{tenant: t, key: k, version: v}
				for dead := uint32(1); dead < v.Attempt; dead++ {
					st.action, st.object = sweep, hierarchy.KEKObjectID(s.ClusterID(), t.ID, k.ID, v.Number, region, dead)
					if _, left := have[st.object]; left {
						add(st)
					}
				}
				if !rk.Minted && v.State != hierarchy.PreActive {
					continue // compromised before it was minted: nobody may ever use it
				}
				if !rk.Minted {
					st.action, st.object = mint, hierarchy.KEKObjectID(s.ClusterID(), t.ID, k.ID, v.Number, region, v.Attempt)
					add(st)
					continue
				}
				st.object = rk.Object
				obj, there := have[rk.Object]
				if want := usable(t, v); there && obj.Usable != want {
					st.action = latch
					if want {
						st.action = unlatch
					}
					add(st)
				}
			}
		}
	}
	var all []step
	for _, some := range steps {
		all = append(all, some...)
	}
	return all
}

// due lists the rotations that time or use asks for.
func due(s *state.State) []rotation {
	var all []rotation
	for t := range s.Tenants() {
		if t.State != hierarchy.TenantEnabled {
			continue
		}
		for k := range s.Keys(t.ID) {
			active, ok := k.Active()
			if !ok || k.Newest().State == hierarchy.PreActive {
				continue
			}
			r := rotation{tenant: t, key: k, after: k.Newest().Number}
			switch {
			case mostWraps(active) >= state.RotateAtWraps:
				r.cause = state.CauseUse
			case k.RotateEvery > 0 && s.Stamp().Sub(active.ActivatedAt) >= k.RotateEvery:
				r.cause = state.CausePeriod
			default:
				continue
			}
			all = append(all, r)
		}
	}
	return all
}

type rotation struct {
	tenant *state.Tenant
	key    *state.Key
	after  uint32
	cause  state.RotationCause
}

func mostWraps(v *state.Version) uint64 {
	var most uint64
	for _, r := range v.Regions {
		most = max(most, r.WrapsReserved)
	}
	return most
}
