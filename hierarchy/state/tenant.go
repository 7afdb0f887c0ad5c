package state

import (
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// MaxTenants bounds a cluster, destroyed tenants included: their names stay taken.
const MaxTenants = 100_000

func checkStaleness(d time.Duration) error {
	if d < MinMaxStaleness || d > MaxMaxStaleness {
		return fmt.Errorf("%w: max_staleness %v: it must be from %v to %v", hierarchy.ErrInvalidArgument, d, MinMaxStaleness, MaxMaxStaleness)
	}
	return nil
}

// tenant finds the one that a command is about.
func (d *draft) tenant(b []byte) (*Tenant, error) {
	id, err := idOf("tenant ID", b)
	if err != nil {
		return nil, err
	}
	t, ok := d.Tenant(hierarchy.TenantID{ID: id})
	if !ok {
		return nil, fmt.Errorf("%w: tenant %s", hierarchy.ErrNotFound, id)
	}
	return t, nil
}

// mustBeEnabled refuses what makes new keys for a tenant that may not use them.
func mustBeEnabled(t *Tenant) error {
	switch t.State {
	case hierarchy.TenantEnabled:
		return nil
	case hierarchy.TenantDisabled:
		return fmt.Errorf("%w: %s: enable it first", hierarchy.ErrTenantDisabled, t.Name)
	case hierarchy.TenantSuspended:
		return fmt.Errorf("%w: %s", hierarchy.ErrTenantSuspended, t.Name)
	}
	return fmt.Errorf("%w: tenant %s is %s", hierarchy.ErrFailedPrecondition, t.Name, t.State)
}

func (d *draft) createTenant(m *commandpb.CreateTenant) error {
	id, err := idOf("tenant ID", m.GetTenantId())
	if err != nil {
		return err
	}
	if err := checkName("tenant", m.GetName()); err != nil {
		return err
	}
	if err := checkStaleness(time.Duration(m.GetMaxStaleness())); err != nil {
		return err
	}
	if t, ok := d.TenantByName(m.GetName()); ok {
		hint := ""
		if t.State == hierarchy.TenantDestroyed {
			hint = ", which was destroyed: its name is not given again"
		}
		return fmt.Errorf("%w: tenant %s%s", hierarchy.ErrAlreadyExists, t.Name, hint)
	}
	if _, ok := d.Tenant(hierarchy.TenantID{ID: id}); ok {
		return fmt.Errorf("%w: a tenant with the ID %s", hierarchy.ErrAlreadyExists, id)
	}
	if d.tenants.Len() >= MaxTenants {
		return fmt.Errorf("%w: a cluster holds at most %d tenants", hierarchy.ErrCapacity, MaxTenants)
	}
	placement, err := d.placement()
	if err != nil {
		return err
	}
	d.putTenant(&Tenant{
		ID: hierarchy.TenantID{ID: id}, Name: m.GetName(), State: hierarchy.TenantEnabled,
		MaxStaleness: time.Duration(m.GetMaxStaleness()), CreatedAt: d.now(), StateAt: d.now(), Placement: placement,
	})
	return nil
}

// setTenantState disables or enables. Asking for what is already so is fine and changes nothing,
// the first reason included.
func (d *draft) setTenantState(m *commandpb.SetTenantState) error {
	t, err := d.tenant(m.GetTenantId())
	if err != nil {
		return err
	}
	if err := checkReason(m.GetReason()); err != nil {
		return err
	}
	to := enum[hierarchy.TenantState](m.GetState())
	var from hierarchy.TenantState
	switch to {
	case hierarchy.TenantDisabled:
		if m.GetReason() == "" {
			return fmt.Errorf("%w: disabling a tenant needs a reason", hierarchy.ErrInvalidArgument)
		}
		from = hierarchy.TenantEnabled
	case hierarchy.TenantEnabled:
		from = hierarchy.TenantDisabled
	default:
		return fmt.Errorf("%w: a tenant is disabled or enabled, not set to %s", hierarchy.ErrInvalidArgument, to)
	}
	switch t.State {
	case to:
		return nil
	case from:
	default:
		return fmt.Errorf("%w: tenant %s is %s, it cannot become %s from there", hierarchy.ErrFailedPrecondition, t.Name, t.State, to)
	}
	next := *t
	next.State, next.StateReason, next.StateAt = to, m.GetReason(), d.now()
	d.putTenant(&next)
	return nil
}

func (d *draft) setTenant(m *commandpb.SetTenant) error {
	t, err := d.tenant(m.GetTenantId())
	if err != nil {
		return err
	}
	if m.MaxStaleness == nil && m.Limits == nil {
		return fmt.Errorf("%w: nothing to set", hierarchy.ErrInvalidArgument)
	}
	next := *t
	if m.MaxStaleness != nil {
		next.MaxStaleness = time.Duration(m.GetMaxStaleness())
		if err := checkStaleness(next.MaxStaleness); err != nil {
			return err
		}
	}
	if m.Limits != nil {
		if next.Limits, err = limitsFromPB(m.Limits.GetLimits()); err != nil {
			return err
		}
	}
	if t.State == hierarchy.TenantDestroyed {
		return fmt.Errorf("%w: tenant %s is destroyed", hierarchy.ErrFailedPrecondition, t.Name)
	}
	if next.MaxStaleness == t.MaxStaleness && next.Limits == t.Limits {
		return nil
	}
	d.putTenant(&next)
	return nil
}
