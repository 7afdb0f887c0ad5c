package state

import (
	"slices"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

// key tightens one, or a piece of one.
func (r *restorer) key(from *Key) {
	tenant, ok := r.Tenant(from.Tenant)
	if !ok {
		r.leaveOut("key %s: its tenant %s is not here", from.Name, from.Tenant)
		return
	}
	name := hierarchy.KeyName{Tenant: tenant.Name, Key: from.Name}
	if err := r.checkVersions(from); err != nil {
		r.leaveOut("key %s: %v", name, err)
		return
	}
	next := Key{
		ID: from.ID, Tenant: from.Tenant, Name: from.Name, CreatedAt: from.CreatedAt, RotateEvery: from.RotateEvery, MinUnwrapVersion: from.MinUnwrapVersion,
	}
	living, ok := r.keyByID.get(from.ID)
	if ok {
		if living.Tenant != from.Tenant || living.Name != from.Name {
			r.leaveOut("key %s: its ID is that of another key here", name)
			return
		}
		next = *living
		next.Versions = slices.Clone(living.Versions)
	} else if !r.mayAdd(name, from) {
		return
	}
	r.versions(name, tenant, &next, from)
	tighten(keyRows, &next, from, r.now())
	next.keepOneActive()
	if living == nil || !sameRecord(wholeKeyToPB(living), wholeKeyToPB(&next)) {
		r.putKey(&next)
	}
}

// mayAdd tells whether a key that is not here has a place.
func (r *restorer) mayAdd(name hierarchy.KeyName, from *Key) bool {
	if _, ok := r.KeyByName(from.Tenant, from.Name); ok {
		r.leaveOut("key %s: another key has its name here", name)
		return false
	}
	if from.Versions[0].Number != 1 {
		r.leaveOut("key %s: its versions before %d are not here", name, from.Versions[0].Number)
		return false
	}
	keys := 0
	for range r.Keys(from.Tenant) {
		keys++
	}
	if keys >= MaxKeysPerTenant {
		r.leaveOut("key %s: a tenant has at most %d keys", name, MaxKeysPerTenant)
		return false
	}
	return true
}

// versions tightens those that are here, and adds those that are not behind them. They have to be known
// even if nobody wants them back: a rotation would else give their numbers, and so the names of their
// objects in the tokens, to other keys.
func (r *restorer) versions(name hierarchy.KeyName, tenant *Tenant, next *Key, from *Key) {
	for _, v := range from.Versions {
		called := hierarchy.VersionName{KeyName: name, Version: v.Number}
		here := uint32(len(next.Versions))
		switch {
		case v.Number <= here:
			to := copyOf(next.Versions[v.Number-1])
			r.compare(called, to, v)
			tighten(versionRows, to, v, r.now())
			if !sameRecord(versionToPB(to), versionToPB(next.Versions[v.Number-1])) {
				next.Versions[v.Number-1] = to
			}
		case v.Number > here+1:
			r.leaveOut("key version %s: the versions before it are not here", called)
			return
		case here > 0 && next.Newest().State == hierarchy.PreActive:
			r.leaveOut("key version %s: the one before it is not minted here", called)
			return
		default:
			next.Versions = append(next.Versions, comeBack(tenant, v, r.now()))
		}
	}
}

// compare finds two keys under the name of one version: of histories that parted after a version was made.
// Nothing says which of them a ciphertext is from, so somebody has to look.
func (r *restorer) compare(name hierarchy.VersionName, to, from *Version) {
	if base(from) == hierarchy.PreActive {
		return
	}
	if !sameRegions(to, from) {
		r.leaveOut("key version %s: it is in other regions here", name)
		return
	}
	if to.Attempt != from.Attempt && (base(to) != hierarchy.PreActive || to.Attempt > from.Attempt) {
		r.leaveOut("key version %s: it is of minting attempt %d here, and of %d in the snapshot: two keys answer to one name", name, to.Attempt, from.Attempt)
		return
	}
	for i := range to.Regions {
		a, b := &to.Regions[i], &from.Regions[i]
		if to.Attempt == from.Attempt && a.Minted && b.Minted && a.Check != b.Check {
			r.leaveOut("key version %s: its key in region %s has the check value %s here, and %s in the snapshot: two keys answer to one name", name, a.Region, a.Check, b.Check)
		}
	}
}

func sameRegions(a, b *Version) bool {
	return slices.EqualFunc(a.Regions, b.Regions, func(a, b RegionKey) bool { return a.Region == b.Region })
}

// comeBack is a version that is not here, as it is added. Where its tenant is enabled it is suspended, since
// nothing else would keep it closed. What was never minted is never to be: it resumes to compromised.
func comeBack(tenant *Tenant, from *Version, now time.Time) *Version {
	v := copyOf(from)
	v.dropReservations()
	if tenant.State != hierarchy.TenantEnabled || v.State == hierarchy.Suspended || v.State == hierarchy.Destroyed {
		return v
	}
	v.ResumeTo = v.State
	if v.State == hierarchy.PreActive {
		v.ResumeTo = hierarchy.Compromised
	}
	v.State, v.StateReason, v.StateAt = hierarchy.Suspended, restoredReason(from.StateReason), now
	return v
}

// dropReservations leaves nobody who could return seals. Those that were reserved stay counted.
func (v *Version) dropReservations() {
	for i := range v.Regions {
		v.Regions[i].Reservations = nil
	}
}

// keepOneActive retires all but the newest of the versions that are active, or would be if they were
// resumed. In the whole of a snapshot the older are retired; in a piece that somebody made they need not be.
func (k *Key) keepOneActive() {
	found := false
	for i := len(k.Versions) - 1; i >= 0; i-- {
		v := k.Versions[i]
		if base(v) != hierarchy.Active {
			continue
		}
		if found {
			v = copyOf(v)
			if v.State == hierarchy.Suspended {
				v.ResumeTo = hierarchy.Deactivated
			} else {
				v.State = hierarchy.Deactivated
			}
			k.Versions[i] = v
		}
		found = true
	}
}
