package state

import (
	"fmt"
	"slices"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// The life of a version:
//
//	pre-active -> active -> deactivated
//	                 \          \
//	                  suspended, and back to what it is due by then
//	any of them -> compromised
//
// At most one version is active, or would be if it were resumed.

// newVersion is pre-active until each region of the placement has minted it.
func (d *draft) newVersion(t *Tenant, number uint32, cause RotationCause) *Version {
	v := &Version{Number: number, State: hierarchy.PreActive, CreatedAt: d.now(), StateAt: d.now(), Attempt: 1, Cause: cause}
	for _, id := range t.Placement {
		v.Regions = append(v.Regions, RegionKey{Region: id})
	}
	return v
}

// base is what a version is, or would be if it were resumed.
func base(v *Version) hierarchy.VersionState {
	if v.State == hierarchy.Suspended {
		return v.ResumeTo
	}
	return v.State
}

// minted tells whether each region holds its objects.
func (v *Version) minted() bool {
	return !slices.ContainsFunc(v.Regions, func(r RegionKey) bool { return !r.Minted })
}

// copyOf returns a version that may be written to.
func copyOf(v *Version) *Version {
	next := *v
	next.Regions = slices.Clone(v.Regions)
	return &next
}

func (d *draft) setState(v *Version, to hierarchy.VersionState, reason string) {
	v.State, v.ResumeTo, v.StateReason, v.StateAt = to, 0, reason, d.now()
}

func (d *draft) rotateKey(m *commandpb.RotateKey) error {
	t, k, err := d.key(m.GetTenantId(), m.GetKeyId())
	if err != nil {
		return err
	}
	cause := enum[RotationCause](m.GetCause())
	if cause < CauseOperator || cause > CauseUse {
		return fmt.Errorf("%w: rotation cause %d is not known", hierarchy.ErrInvalidArgument, cause)
	}
	if err := mustBeEnabled(t); err != nil {
		return err
	}
	name := hierarchy.KeyName{Tenant: t.Name, Key: k.Name}
	newest := k.Newest()
	if newest.State == hierarchy.PreActive {
		return fmt.Errorf("%w: %s is not minted yet: wait until it is, then rotate if it is still needed",
			hierarchy.ErrFailedPrecondition, hierarchy.VersionName{KeyName: name, Version: newest.Number})
	}
	if m.GetAfterVersion() != newest.Number {
		return fmt.Errorf("%w: the newest version of %s is %d and not %d: look again, then rotate if it is still needed",
			hierarchy.ErrFailedPrecondition, name, newest.Number, m.GetAfterVersion())
	}
	if len(k.Versions) >= MaxVersions {
		return fmt.Errorf("%w: %s has %d versions, the most that a key may have: create another key", hierarchy.ErrCapacity, name, MaxVersions)
	}
	next := *k
	next.Versions = append(slices.Clone(k.Versions), d.newVersion(t, newest.Number+1, cause))
	d.putKey(&next)
	return nil
}

// version finds the one that a command is about.
func (d *draft) version(tenantID, keyID []byte, number uint32) (hierarchy.VersionName, *Key, *Version, error) {
	t, k, err := d.key(tenantID, keyID)
	if err != nil {
		return hierarchy.VersionName{}, nil, nil, err
	}
	name := hierarchy.VersionName{KeyName: hierarchy.KeyName{Tenant: t.Name, Key: k.Name}, Version: number}
	v, ok := k.Version(number)
	if !ok {
		return name, nil, nil, fmt.Errorf("%w: key version %s", hierarchy.ErrNotFound, name)
	}
	return name, k, v, nil
}

// recordMinted takes note that a region holds its objects. The record is of a fact, so it is taken
// whatever has become of the tenant or the version meanwhile.
func (d *draft) recordMinted(m *commandpb.RecordMinted) error {
	name, k, v, err := d.version(m.GetTenantId(), m.GetKeyId(), m.GetVersion())
	if err != nil {
		return err
	}
	id, err := idOf("region ID", m.GetRegionId())
	if err != nil {
		return err
	}
	object, check, err := mintedObject(m.GetObjectId(), m.GetCheckValue())
	if err != nil {
		return err
	}
	next := copyOf(v)
	region, ok := next.Region(hierarchy.RegionID{ID: id})
	if !ok {
		return fmt.Errorf("%w: region %s is not in the placement of %s", hierarchy.ErrNotFound, id, name)
	}
	if m.GetAttempt() != v.Attempt {
		return fmt.Errorf("%w: %s is at minting attempt %d, not %d", hierarchy.ErrFailedPrecondition, name, v.Attempt, m.GetAttempt())
	}
	if want := hierarchy.KEKObjectID(d.cluster, k.Tenant, k.ID, v.Number, region.Region, v.Attempt); object != want {
		return fmt.Errorf("%w: the object of %s has the ID %s, not %s", hierarchy.ErrInvalidArgument, name, want, object)
	}
	switch {
	case region.Minted && region.Check == check:
		return nil
	case region.Minted:
		return fmt.Errorf("%w: %s was minted with the check value %s, this object has %s: two keys answer to one name, see what the token holds",
			hierarchy.ErrFailedPrecondition, name, region.Check, check)
	case v.State == hierarchy.Destroyed:
		return fmt.Errorf("%w: %s is destroyed", hierarchy.ErrFailedPrecondition, name)
	}
	region.Minted, region.Object, region.Check, region.MintedAt = true, object, check, d.now()
	if next.State == hierarchy.PreActive && next.minted() {
		d.activate(k, next)
		return nil
	}
	d.putVersion(k, next)
	return nil
}

// restartMinting gives an attempt up. What regions have recorded of it is void: who destroys the
// objects of an attempt can rely on nobody ever using them.
func (d *draft) restartMinting(m *commandpb.RestartMinting) error {
	name, k, v, err := d.version(m.GetTenantId(), m.GetKeyId(), m.GetVersion())
	if err != nil {
		return err
	}
	if v.State != hierarchy.PreActive {
		return fmt.Errorf("%w: %s is %s, its minting is over", hierarchy.ErrFailedPrecondition, name, v.State)
	}
	if m.GetAttempt() != v.Attempt+1 {
		return fmt.Errorf("%w: %s is at minting attempt %d, the next is not %d", hierarchy.ErrFailedPrecondition, name, v.Attempt, m.GetAttempt())
	}
	d.putVersion(k, nextAttempt(v))
	return nil
}

// nextAttempt gives up the attempt that a version is at.
func nextAttempt(v *Version) *Version {
	next := copyOf(v)
	next.Attempt++
	next.forgetMinted()
	return next
}

// forgetMinted leaves nothing of what regions have recorded.
func (v *Version) forgetMinted() {
	for i := range v.Regions {
		v.Regions[i] = RegionKey{Region: v.Regions[i].Region}
	}
}

// activate makes v the active version and the one before deactivated, also if that is suspended.
func (d *draft) activate(k *Key, v *Version) {
	d.setState(v, hierarchy.Active, "")
	v.ActivatedAt = d.now()
	next := *k
	next.Versions = slices.Clone(k.Versions)
	next.Versions[v.Number-1] = v
	for i, old := range k.Versions {
		if old.Number == v.Number {
			continue
		}
		switch {
		case old.State == hierarchy.Active:
			retired := copyOf(old)
			d.setState(retired, hierarchy.Deactivated, "")
			next.Versions[i] = retired
		case old.ResumeTo == hierarchy.Active:
			retired := copyOf(old)
			retired.ResumeTo = hierarchy.Deactivated
			next.Versions[i] = retired
		}
	}
	d.putKey(&next)
}

// setVersionState suspends, resumes or compromises. Asking for what is already so is fine and
// changes nothing.
func (d *draft) setVersionState(m *commandpb.SetVersionState) error {
	name, k, v, err := d.version(m.GetTenantId(), m.GetKeyId(), m.GetVersion())
	if err != nil {
		return err
	}
	if err := checkReason(m.GetReason()); err != nil {
		return err
	}
	next := copyOf(v)
	switch m.GetAction() {
	case commandpb.VersionAction_VERSION_ACTION_SUSPEND:
		switch v.State {
		case hierarchy.Suspended:
			return nil
		case hierarchy.PreActive:
			return fmt.Errorf("%w: %s is not minted yet, and used for nothing: to keep it from ever being used, compromise it", hierarchy.ErrFailedPrecondition, name)
		case hierarchy.Destroyed:
			return fmt.Errorf("%w: %s is destroyed", hierarchy.ErrFailedPrecondition, name)
		}
		d.setState(next, hierarchy.Suspended, m.GetReason())
		next.ResumeTo = v.State
	case commandpb.VersionAction_VERSION_ACTION_RESUME:
		switch v.State {
		case hierarchy.Active, hierarchy.Deactivated:
			return nil
		case hierarchy.Suspended:
		default:
			return fmt.Errorf("%w: %s is %s, only what is suspended can be resumed", hierarchy.ErrFailedPrecondition, name, v.State)
		}
		d.setState(next, v.ResumeTo, m.GetReason())
	case commandpb.VersionAction_VERSION_ACTION_COMPROMISE:
		switch v.State {
		case hierarchy.Compromised:
			return nil
		case hierarchy.Destroyed:
			return fmt.Errorf("%w: %s is destroyed", hierarchy.ErrFailedPrecondition, name)
		}
		d.setState(next, hierarchy.Compromised, m.GetReason())
	default:
		return fmt.Errorf("%w: a version is suspended, resumed or compromised: action %d is not known", hierarchy.ErrInvalidArgument, m.GetAction())
	}
	d.putVersion(k, next)
	return nil
}
