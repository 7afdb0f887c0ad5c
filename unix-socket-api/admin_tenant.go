package socketapi

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func (a *adminService) CreateTenant(ctx context.Context, m *kekdv1.CreateTenantRequest) (*kekdv1.Tenant, error) {
	staleness := time.Duration(m.MaxStaleness)
	if staleness == 0 {
		staleness = state.DefaultMaxStaleness
	}
	r := AdminRecord{Kind: "tenant-create", TenantName: m.Name, Detail: fmt.Sprintf("max_staleness=%v", staleness)}
	done, err := a.change(ctx, m.IdempotencyId, r, func(*state.State) (*commandpb.Command, error) {
		id := hierarchy.NewID()
		return &commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{
			TenantId: id[:], Name: m.Name, MaxStaleness: int64(staleness),
		}}}, nil
	})
	return a.answerTenant(done.state, m.Name, done.index, err)
}

func (a *adminService) DisableTenant(ctx context.Context, m *kekdv1.DisableTenantRequest) (*kekdv1.Tenant, error) {
	r := AdminRecord{Kind: "tenant-disable", TenantName: m.Name, Reason: m.Reason}
	done, err := a.close(ctx, m.IdempotencyId, m.NoWait, r, tenantState(m.Name, m.Reason, commandpb.TenantState_TENANT_STATE_DISABLED))
	return a.answerClosed(done, m.Name, err)
}

// EnableTenant returns when this node can use what the tenant has in its region.
func (a *adminService) EnableTenant(ctx context.Context, m *kekdv1.EnableTenantRequest) (*kekdv1.Tenant, error) {
	r := AdminRecord{Kind: "tenant-enable", TenantName: m.Name, Reason: m.Reason}
	done, err := a.change(ctx, m.IdempotencyId, r, tenantState(m.Name, m.Reason, commandpb.TenantState_TENANT_STATE_ENABLED))
	if err != nil {
		return nil, err
	}
	t, err := tenantByName(done.state, m.Name)
	if err != nil {
		return nil, err
	}
	for k := range done.state.Keys(t.ID) {
		if err := a.waitServable(ctx, done, hierarchy.KeyName{Tenant: t.Name, Key: k.Name}, k, usable(k)...); err != nil {
			return nil, err
		}
	}
	return a.answerTenant(a.Hierarchy.State(), m.Name, done.index, nil)
}

// usable are the versions of a key that are of use for something.
func usable(k *state.Key) (numbers []uint32) {
	for _, v := range k.Versions {
		switch v.State {
		case hierarchy.Active, hierarchy.Deactivated, hierarchy.Compromised:
			numbers = append(numbers, v.Number)
		}
	}
	return numbers
}

func tenantState(name, reason string, to commandpb.TenantState) func(*state.State) (*commandpb.Command, error) {
	return func(s *state.State) (*commandpb.Command, error) {
		t, err := tenantByName(s, name)
		if err != nil {
			return nil, err
		}
		return &commandpb.Command{Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{
			TenantId: t.ID.ID[:], State: to, Reason: reason,
		}}}, nil
	}
}

func (a *adminService) SetTenant(ctx context.Context, m *kekdv1.SetTenantRequest) (*kekdv1.Tenant, error) {
	var details []string
	set := &commandpb.SetTenant{MaxStaleness: m.MaxStaleness}
	if m.MaxStaleness != nil {
		details = append(details, fmt.Sprintf("max_staleness=%v", time.Duration(*m.MaxStaleness)))
	}
	if m.Limits != nil {
		limits, err := limitsOf(m.Limits.Limits)
		if err != nil {
			return nil, err
		}
		set.Limits = &commandpb.Limits{Limits: limitCommands(limits)}
		details = append(details, fmt.Sprintf("limits=%q", limits))
	}
	if len(details) == 0 {
		return nil, fmt.Errorf("%w: nothing to set", hierarchy.ErrInvalidArgument)
	}
	r := AdminRecord{Kind: "tenant-set", TenantName: m.Name, Detail: strings.Join(details, " ")}
	done, err := a.close(ctx, m.IdempotencyId, m.NoWait, r, func(s *state.State) (*commandpb.Command, error) {
		t, err := tenantByName(s, m.Name)
		if err != nil {
			return nil, err
		}
		set.TenantId = t.ID.ID[:]
		return &commandpb.Command{Body: &commandpb.Command_SetTenant{SetTenant: set}}, nil
	})
	return a.answerClosed(done, m.Name, err)
}

func (a *adminService) ListTenants(context.Context, *kekdv1.ListTenantsRequest) (*kekdv1.ListTenantsResponse, error) {
	s, m := a.Hierarchy.State(), &kekdv1.ListTenantsResponse{}
	for t := range s.Tenants() {
		m.Tenants = append(m.Tenants, a.tenantMessage(s, t, s.Index()))
	}
	return m, nil
}

func (a *adminService) GetTenant(_ context.Context, m *kekdv1.GetTenantRequest) (*kekdv1.Tenant, error) {
	s := a.Hierarchy.State()
	return a.answerTenant(s, m.Name, s.Index(), nil)
}

func (a *adminService) answerTenant(s *state.State, name string, index uint64, err error) (*kekdv1.Tenant, error) {
	if err != nil {
		return nil, err
	}
	t, err := tenantByName(s, name)
	if err != nil {
		return nil, err
	}
	return a.tenantMessage(s, t, index), nil
}

// answerClosed says how far it is effective, too.
func (a *adminService) answerClosed(done committed, name string, err error) (*kekdv1.Tenant, error) {
	m, err := a.answerTenant(done.state, name, done.index, err)
	if err != nil {
		return nil, err
	}
	m.Fence = done.fence
	return m, nil
}

func (a *adminService) tenantMessage(s *state.State, t *state.Tenant, index uint64) *kekdv1.Tenant {
	m := &kekdv1.Tenant{
		Id: t.ID.String(), Name: t.Name, State: t.State.String(), StateReason: t.StateReason,
		CreatedAt: nanoseconds(t.CreatedAt), StateAt: nanoseconds(t.StateAt),
		MaxStaleness: int64(t.MaxStaleness), Limits: limitMessages(t.Limits), Index: index,
	}
	for _, id := range t.Placement {
		m.Placement = append(m.Placement, regionName(s, id))
	}
	for range s.Keys(t.ID) {
		m.Keys++
	}
	if a.Room != nil {
		m.ObjectsUsed, m.ObjectsLeft = a.Room.Objects(s, t.ID)
	}
	return m
}

// regionName is the region's ID once nobody knows its name.
func regionName(s *state.State, id hierarchy.RegionID) string {
	if r, ok := s.Region(id); ok {
		return r.Name
	}
	return id.String()
}

// nanoseconds since 1970, and 0 for never.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
