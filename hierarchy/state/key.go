package state

import (
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// Bounds of keys. A token has room for some thousands of objects (AWS CloudHSM: 16,666), so that
// no key comes near the number of versions.
const (
	MaxKeysPerTenant = 1_000
	MaxVersions      = 10_000

	MinRotateEvery = time.Hour
	MaxRotateEvery = 10 * 365 * 24 * time.Hour
)

func checkRotateEvery(d time.Duration) error {
	if d != 0 && (d < MinRotateEvery || d > MaxRotateEvery) {
		return fmt.Errorf("%w: rotation every %v: it must be from %v to %d days, or 0 for by hand only", hierarchy.ErrInvalidArgument, d, MinRotateEvery, MaxRotateEvery/(24*time.Hour))
	}
	return nil
}

// key finds the one that a command is about, and its tenant.
func (d *draft) key(tenantID, keyID []byte) (*Tenant, *Key, error) {
	t, err := d.tenant(tenantID)
	if err != nil {
		return nil, nil, err
	}
	id, err := idOf("key ID", keyID)
	if err != nil {
		return nil, nil, err
	}
	k, ok := d.Key(t.ID, hierarchy.KeyID{ID: id})
	if !ok {
		return nil, nil, fmt.Errorf("%w: key %s of tenant %s", hierarchy.ErrNotFound, id, t.Name)
	}
	return t, k, nil
}

func (d *draft) createKey(m *commandpb.CreateKey) error {
	t, err := d.tenant(m.GetTenantId())
	if err != nil {
		return err
	}
	id, err := idOf("key ID", m.GetKeyId())
	if err != nil {
		return err
	}
	if err := checkName("key", m.GetName()); err != nil {
		return err
	}
	if err := checkRotateEvery(time.Duration(m.GetRotateEvery())); err != nil {
		return err
	}
	if err := mustBeEnabled(t); err != nil {
		return err
	}
	if _, ok := d.KeyByName(t.ID, m.GetName()); ok {
		return fmt.Errorf("%w: key %s", hierarchy.ErrAlreadyExists, hierarchy.KeyName{Tenant: t.Name, Key: m.GetName()})
	}
	// Of whichever tenant: an ID names one key.
	if _, ok := d.keyByID.get(hierarchy.KeyID{ID: id}); ok {
		return fmt.Errorf("%w: a key with the ID %s", hierarchy.ErrAlreadyExists, id)
	}
	keys := 0
	for range d.Keys(t.ID) {
		keys++
	}
	if keys >= MaxKeysPerTenant {
		return fmt.Errorf("%w: a tenant has at most %d keys", hierarchy.ErrCapacity, MaxKeysPerTenant)
	}
	k := &Key{
		ID: hierarchy.KeyID{ID: id}, Tenant: t.ID, Name: m.GetName(), CreatedAt: d.now(),
		RotateEvery: time.Duration(m.GetRotateEvery()), MinUnwrapVersion: 1,
	}
	k.Versions = []*Version{d.newVersion(t, 1, CauseCreated)}
	d.putKey(k)
	return nil
}

func (d *draft) setKey(m *commandpb.SetKey) error {
	t, k, err := d.key(m.GetTenantId(), m.GetKeyId())
	if err != nil {
		return err
	}
	if m.RotateEvery == nil && m.MinUnwrapVersion == nil {
		return fmt.Errorf("%w: nothing to set", hierarchy.ErrInvalidArgument)
	}
	next := *k
	if m.RotateEvery != nil {
		next.RotateEvery = time.Duration(m.GetRotateEvery())
		if err := checkRotateEvery(next.RotateEvery); err != nil {
			return err
		}
	}
	if m.MinUnwrapVersion != nil {
		next.MinUnwrapVersion = m.GetMinUnwrapVersion()
		if err := checkMinUnwrap(t, k, next.MinUnwrapVersion); err != nil {
			return err
		}
	}
	if next.RotateEvery == k.RotateEvery && next.MinUnwrapVersion == k.MinUnwrapVersion {
		return nil
	}
	d.putKey(&next)
	return nil
}

// checkMinUnwrap lets the bound rise to the active version and no further: beyond, what is wrapped
// now could not be unwrapped again.
func checkMinUnwrap(t *Tenant, k *Key, n uint32) error {
	highest := k.MinUnwrapVersion
	if v, ok := k.Active(); ok {
		highest = max(highest, v.Number)
	}
	if n < 1 || n > highest {
		return fmt.Errorf("%w: min_unwrap_version %d of %s: it must be from 1 to %d, the active version",
			hierarchy.ErrInvalidArgument, n, hierarchy.KeyName{Tenant: t.Name, Key: k.Name}, highest)
	}
	return nil
}
