package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/protobuf/proto"
)

type fakeAdmin struct {
	kekdv1.UnimplementedAdminServiceServer
	h *fakeHierarchy
}

func (f *fakeAdmin) GetStatus(context.Context, *kekdv1.GetStatusRequest) (*kekdv1.Status, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return &kekdv1.Status{
		ClusterId: f.h.cluster.String(), NodeId: f.h.node.String(), NodeName: "one", Region: "local", Role: "voting",
		Leader: f.h.node.String(), AppliedIndex: f.h.index + 1, Fresh: true, AuditHealthy: true, Version: "fake",
		ClusterTime: time.Now().UnixNano(), DataDir: "/var/lib/kekd", Warnings: []string{"this is a fake"},
		Hsm: &kekdv1.HSMStatus{Label: "fake", Model: "map", Serial: "1", Healthy: true, Objects: uint64(len(f.h.keys)),
			ObjectsUsed: f.h.objects(""), ObjectsLeft: fakeObjects - f.h.objects(""), ObjectsReserved: uint64(len(f.h.keys)), ObjectsMax: fakeObjects},
	}, nil
}

func (f *fakeAdmin) CreateTenant(_ context.Context, r *kekdv1.CreateTenantRequest) (*kekdv1.Tenant, error) {
	return once(f.h, r.IdempotencyId, func() (*kekdv1.Tenant, error) {
		if f.h.tenants[r.Name] != nil {
			return nil, fmt.Errorf("tenant %q: %w", r.Name, hierarchy.ErrAlreadyExists)
		}
		if d := time.Duration(r.MaxStaleness); d != 0 && d < time.Second {
			return nil, fmt.Errorf("%w: max_staleness %s", hierarchy.ErrInvalidArgument, d)
		}
		now := time.Now().UnixNano()
		t := &kekdv1.Tenant{Id: hierarchy.NewID().String(), Name: r.Name, State: "enabled", CreatedAt: now, StateAt: now, MaxStaleness: int64(2 * time.Second), Placement: []string{"local"}}
		if r.MaxStaleness != 0 {
			t.MaxStaleness = r.MaxStaleness
		}
		f.h.tenants[r.Name] = t
		f.h.record("tenant-create", r.Name, "", "", nil)
		return proto.CloneOf(t), nil
	})
}

func (f *fakeAdmin) ListTenants(context.Context, *kekdv1.ListTenantsRequest) (*kekdv1.ListTenantsResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	out := &kekdv1.ListTenantsResponse{}
	for _, name := range slices.Sorted(maps.Keys(f.h.tenants)) {
		out.Tenants = append(out.Tenants, proto.CloneOf(f.h.tenants[name]))
	}
	return out, nil
}

func (f *fakeAdmin) GetTenant(_ context.Context, r *kekdv1.GetTenantRequest) (*kekdv1.Tenant, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	t, err := f.h.tenant(r.Name)
	if err != nil {
		return nil, err
	}
	t = proto.CloneOf(t)
	t.ObjectsUsed, t.ObjectsLeft = f.h.objects(r.Name), fakeObjects-f.h.objects("")
	return t, nil
}

// setTenant changes one tenant.
func (f *fakeAdmin) setTenant(id []byte, name, kind, reason string, set func(*kekdv1.Tenant) *kekdv1.Fence) (*kekdv1.Tenant, error) {
	return once(f.h, id, func() (*kekdv1.Tenant, error) {
		t, err := f.h.tenant(name)
		if err != nil {
			return nil, err
		}
		fence := set(t)
		f.h.record(kind, name, "", reason, nil)
		t = proto.CloneOf(t)
		t.Fence = fence
		return t, nil
	})
}

func (f *fakeAdmin) DisableTenant(_ context.Context, r *kekdv1.DisableTenantRequest) (*kekdv1.Tenant, error) {
	return f.setTenant(r.IdempotencyId, r.Name, "tenant-disable", r.Reason, func(t *kekdv1.Tenant) *kekdv1.Fence {
		t.State, t.StateReason = "disabled", r.Reason
		return f.fence(r.NoWait)
	})
}

func (f *fakeAdmin) EnableTenant(_ context.Context, r *kekdv1.EnableTenantRequest) (*kekdv1.Tenant, error) {
	return f.setTenant(r.IdempotencyId, r.Name, "tenant-enable", r.Reason, func(t *kekdv1.Tenant) *kekdv1.Fence {
		t.State, t.StateReason = "enabled", r.Reason
		return nil
	})
}

func (f *fakeAdmin) SetTenant(_ context.Context, r *kekdv1.SetTenantRequest) (*kekdv1.Tenant, error) {
	if d := time.Duration(r.GetMaxStaleness()); r.MaxStaleness != nil && (d < time.Second || d > 24*time.Hour) {
		return nil, fmt.Errorf("%w: max_staleness %s: it must be from 1s to 24h0m0s", hierarchy.ErrInvalidArgument, d)
	}
	if _, err := limitsOf(r.Limits.GetLimits()); err != nil {
		return nil, err
	}
	return f.setTenant(r.IdempotencyId, r.Name, "tenant-set", "", func(t *kekdv1.Tenant) (fence *kekdv1.Fence) {
		if r.MaxStaleness != nil {
			if *r.MaxStaleness < t.MaxStaleness {
				fence = f.fence(r.NoWait)
			}
			t.MaxStaleness = *r.MaxStaleness
		}
		if r.Limits != nil {
			t.Limits = r.Limits.Limits
		}
		return fence
	})
}

func (f *fakeAdmin) CreateKey(_ context.Context, r *kekdv1.CreateKeyRequest) (*kekdv1.Key, error) {
	return once(f.h, r.IdempotencyId, func() (*kekdv1.Key, error) {
		name, _, err := f.h.key(r.Key)
		if err == nil {
			return nil, fmt.Errorf("key %q: %w", r.Key, hierarchy.ErrAlreadyExists)
		}
		t, err := f.h.tenant(name.Tenant)
		if err != nil {
			return nil, err
		}
		if t.State != "enabled" {
			return nil, fmt.Errorf("%w: %s", hierarchy.ErrTenantDisabled, t.Name)
		}
		t.Keys++
		k := &kekdv1.Key{Tenant: name.Tenant, Key: name.Key, Id: hierarchy.NewID().String(), CreatedAt: time.Now().UnixNano(), RotateEvery: r.RotateEvery, MinUnwrapVersion: 1}
		f.h.mint(k)
		f.h.keys[name] = k
		f.h.record("key-create", name.Tenant, name.Key, "", nil)
		return proto.CloneOf(k), nil
	})
}

func (f *fakeAdmin) ListKeys(_ context.Context, r *kekdv1.ListKeysRequest) (*kekdv1.ListKeysResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	if _, err := f.h.tenant(r.Tenant); err != nil {
		return nil, err
	}
	out := &kekdv1.ListKeysResponse{}
	for name, k := range f.h.keys {
		if name.Tenant == r.Tenant {
			out.Keys = append(out.Keys, proto.CloneOf(k))
		}
	}
	slices.SortFunc(out.Keys, func(a, b *kekdv1.Key) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

func (f *fakeAdmin) GetKey(_ context.Context, r *kekdv1.GetKeyRequest) (*kekdv1.Key, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	_, k, err := f.h.key(r.Key)
	return proto.CloneOf(k), err
}

// setKey changes one key.
func (f *fakeAdmin) setKey(id []byte, name, kind, reason string, fence func() *kekdv1.Fence, set func(*kekdv1.Key) error) (*kekdv1.Key, error) {
	return once(f.h, id, func() (*kekdv1.Key, error) {
		n, k, err := f.h.key(name)
		if err != nil {
			return nil, err
		}
		if err := set(k); err != nil {
			return nil, err
		}
		f.h.record(kind, n.Tenant, n.Key, reason, nil)
		k = proto.CloneOf(k)
		if fence != nil {
			k.Fence = fence()
		}
		return k, nil
	})
}

func (f *fakeAdmin) RotateKey(_ context.Context, r *kekdv1.RotateKeyRequest) (*kekdv1.Key, error) {
	return f.setKey(r.IdempotencyId, r.Key, "key-rotate", "", nil, func(k *kekdv1.Key) error {
		f.h.mint(k)
		return nil
	})
}

func (f *fakeAdmin) SetKey(_ context.Context, r *kekdv1.SetKeyRequest) (*kekdv1.Key, error) {
	var fence func() *kekdv1.Fence
	if r.MinUnwrapVersion != nil {
		fence = func() *kekdv1.Fence { return f.fence(r.NoWait) }
	}
	return f.setKey(r.IdempotencyId, r.Key, "key-set", "", fence, func(k *kekdv1.Key) error {
		if r.RotateEvery != nil {
			k.RotateEvery = *r.RotateEvery
		}
		if n := r.MinUnwrapVersion; n != nil {
			if v, err := active(k); err != nil || *n == 0 || *n > v.Version {
				return fmt.Errorf("%w: min_unwrap_version %d", hierarchy.ErrInvalidArgument, *n)
			}
			k.MinUnwrapVersion = *n
		}
		return nil
	})
}

func (f *fakeAdmin) SetKeyVersionState(_ context.Context, r *kekdv1.SetKeyVersionStateRequest) (*kekdv1.Key, error) {
	name, err := hierarchy.ParseVersionName(r.KeyVersion)
	if err != nil {
		return nil, err
	}
	var fence func() *kekdv1.Fence
	if r.Action != "resume" {
		fence = func() *kekdv1.Fence { return f.fence(r.NoWait) }
	}
	return f.setKey(r.IdempotencyId, name.KeyName.String(), "key-version-"+r.Action, r.Reason, fence, func(k *kekdv1.Key) error {
		if int(name.Version) > len(k.Versions) {
			return fmt.Errorf("version %s: %w", name, hierarchy.ErrNotFound)
		}
		v := k.Versions[name.Version-1]
		switch {
		case r.Action == "suspend":
			v.State = "suspended"
		case r.Action == "resume" && v.State == "suspended":
			v.State = "deactivated"
			if int(name.Version) == len(k.Versions) {
				v.State = "active"
			}
		case r.Action == "compromise":
			v.State = "compromised"
		default:
			return fmt.Errorf("%w: %s is %s", hierarchy.ErrFailedPrecondition, name, v.State)
		}
		v.StateReason = r.Reason
		return nil
	})
}
