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

func (a *adminService) CreateKey(ctx context.Context, m *kekdv1.CreateKeyRequest) (*kekdv1.Key, error) {
	name, err := hierarchy.ParseKeyName(m.Key)
	if err != nil {
		return nil, err
	}
	r := AdminRecord{Kind: "key-create", TenantName: name.Tenant, Key: name.Key, Detail: fmt.Sprintf("rotate_every=%v", time.Duration(m.RotateEvery))}
	var room hold
	done, err := a.change(ctx, m.IdempotencyId, r, func(s *state.State) (*commandpb.Command, error) {
		t, err := tenantByName(s, name.Tenant)
		if err != nil {
			return nil, err
		}
		if _, there := s.KeyByName(t.ID, name.Key); !there { // else that is what it is refused for
			if err := room.take(a.roomFor(t), s, m.IdempotencyId, func(r Room) (func(), error) { return r.ForKey(t.ID) }); err != nil {
				return nil, err
			}
		}
		id := hierarchy.NewID()
		return &commandpb.Command{Body: &commandpb.Command_CreateKey{CreateKey: &commandpb.CreateKey{
			TenantId: t.ID.ID[:], KeyId: id[:], Name: name.Key, RotateEvery: m.RotateEvery,
		}}}, nil
	})
	room.done()
	if err != nil {
		return nil, err
	}
	return a.serveNewest(ctx, done, name)
}

func (a *adminService) RotateKey(ctx context.Context, m *kekdv1.RotateKeyRequest) (*kekdv1.Key, error) {
	name, err := hierarchy.ParseKeyName(m.Key)
	if err != nil {
		return nil, err
	}
	r := AdminRecord{Kind: "key-rotate", TenantName: name.Tenant, Key: name.Key}
	var room hold
	done, err := a.change(ctx, m.IdempotencyId, r, func(s *state.State) (*commandpb.Command, error) {
		k, err := keyByName(s, name)
		if err != nil {
			return nil, err
		}
		t, err := tenantByName(s, name.Tenant)
		if err != nil {
			return nil, err
		}
		if err := room.take(a.roomFor(t), s, m.IdempotencyId, func(r Room) (func(), error) { return r.ForVersion(k.Tenant) }); err != nil {
			return nil, err
		}
		return &commandpb.Command{Body: &commandpb.Command_RotateKey{RotateKey: &commandpb.RotateKey{
			TenantId: k.Tenant.ID[:], KeyId: k.ID.ID[:], AfterVersion: k.Newest().Number, Cause: commandpb.RotationCause_ROTATION_CAUSE_OPERATOR,
		}}}, nil
	})
	room.done()
	if err != nil {
		return nil, err
	}
	return a.serveNewest(ctx, done, name)
}

// serveNewest waits for the version that a change has made.
func (a *adminService) serveNewest(ctx context.Context, done committed, name hierarchy.KeyName) (*kekdv1.Key, error) {
	k, err := keyByName(done.state, name)
	if err != nil {
		return nil, err
	}
	if err := a.waitServable(ctx, done, name, k, k.Newest().Number); err != nil {
		return nil, err
	}
	return answerKey(a.Hierarchy.State(), name, done.index, nil)
}

func (a *adminService) SetKey(ctx context.Context, m *kekdv1.SetKeyRequest) (*kekdv1.Key, error) {
	name, err := hierarchy.ParseKeyName(m.Key)
	if err != nil {
		return nil, err
	}
	var detail []string
	if m.MinUnwrapVersion != nil {
		detail = append(detail, fmt.Sprintf("min_unwrap_version=%d", *m.MinUnwrapVersion))
	}
	if m.RotateEvery != nil {
		detail = append(detail, fmt.Sprintf("rotate_every=%v", time.Duration(*m.RotateEvery)))
	}
	if len(detail) == 0 {
		return nil, fmt.Errorf("%w: nothing to set", hierarchy.ErrInvalidArgument)
	}
	r := AdminRecord{Kind: "key-set", TenantName: name.Tenant, Key: name.Key, Detail: strings.Join(detail, " ")}
	done, err := a.close(ctx, m.IdempotencyId, m.NoWait, r, func(s *state.State) (*commandpb.Command, error) {
		k, err := keyByName(s, name)
		if err != nil {
			return nil, err
		}
		return &commandpb.Command{Body: &commandpb.Command_SetKey{SetKey: &commandpb.SetKey{
			TenantId: k.Tenant.ID[:], KeyId: k.ID.ID[:], MinUnwrapVersion: m.MinUnwrapVersion, RotateEvery: m.RotateEvery,
		}}}, nil
	})
	return answerClosedKey(done, name, err)
}

var versionActions = map[string]commandpb.VersionAction{
	"suspend":    commandpb.VersionAction_VERSION_ACTION_SUSPEND,
	"resume":     commandpb.VersionAction_VERSION_ACTION_RESUME,
	"compromise": commandpb.VersionAction_VERSION_ACTION_COMPROMISE,
}

// SetKeyVersionState, when it resumes, returns when this node can use the version, if it is to.
func (a *adminService) SetKeyVersionState(ctx context.Context, m *kekdv1.SetKeyVersionStateRequest) (*kekdv1.Key, error) {
	name, err := hierarchy.ParseVersionName(m.KeyVersion)
	if err != nil {
		return nil, err
	}
	action, ok := versionActions[m.Action]
	if !ok {
		return nil, fmt.Errorf("%w: action %q: use suspend, resume or compromise", hierarchy.ErrInvalidArgument, m.Action)
	}
	r := AdminRecord{Kind: "version-" + m.Action, TenantName: name.Tenant, Key: name.Key, Version: name.Version, Reason: m.Reason}
	done, err := a.close(ctx, m.IdempotencyId, m.NoWait, r, func(s *state.State) (*commandpb.Command, error) {
		k, err := keyByName(s, name.KeyName)
		if err != nil {
			return nil, err
		}
		return &commandpb.Command{Body: &commandpb.Command_SetVersionState{SetVersionState: &commandpb.SetVersionState{
			TenantId: k.Tenant.ID[:], KeyId: k.ID.ID[:], Version: name.Version, Action: action, Reason: m.Reason,
		}}}, nil
	})
	if err == nil && action == commandpb.VersionAction_VERSION_ACTION_RESUME {
		k, err := keyByName(done.state, name.KeyName)
		if err != nil {
			return nil, err
		}
		if err := a.waitServable(ctx, done, name.KeyName, k, name.Version); err != nil {
			return nil, err
		}
		done.state = a.Hierarchy.State()
	}
	return answerClosedKey(done, name.KeyName, err)
}

func (a *adminService) ListKeys(_ context.Context, m *kekdv1.ListKeysRequest) (*kekdv1.ListKeysResponse, error) {
	s := a.Hierarchy.State()
	t, err := tenantByName(s, m.Tenant)
	if err != nil {
		return nil, err
	}
	list := &kekdv1.ListKeysResponse{}
	for k := range s.Keys(t.ID) {
		list.Keys = append(list.Keys, keyMessage(s, t.Name, k, s.Index()))
	}
	return list, nil
}

func (a *adminService) GetKey(_ context.Context, m *kekdv1.GetKeyRequest) (*kekdv1.Key, error) {
	name, err := hierarchy.ParseKeyName(m.Key)
	if err != nil {
		return nil, err
	}
	s := a.Hierarchy.State()
	return answerKey(s, name, s.Index(), nil)
}

func answerKey(s *state.State, name hierarchy.KeyName, index uint64, err error) (*kekdv1.Key, error) {
	if err != nil {
		return nil, err
	}
	k, err := keyByName(s, name)
	if err != nil {
		return nil, err
	}
	return keyMessage(s, name.Tenant, k, index), nil
}

// answerClosedKey says how far it is effective, too.
func answerClosedKey(done committed, name hierarchy.KeyName, err error) (*kekdv1.Key, error) {
	m, err := answerKey(done.state, name, done.index, err)
	if err != nil {
		return nil, err
	}
	m.Fence = done.fence
	return m, nil
}

func keyMessage(s *state.State, tenant string, k *state.Key, index uint64) *kekdv1.Key {
	m := &kekdv1.Key{
		Tenant: tenant, Key: k.Name, Id: k.ID.String(), CreatedAt: nanoseconds(k.CreatedAt),
		RotateEvery: int64(k.RotateEvery), MinUnwrapVersion: k.MinUnwrapVersion, Index: index,
	}
	for _, v := range k.Versions {
		m.Versions = append(m.Versions, versionMessage(s, v))
	}
	return m
}

func versionMessage(s *state.State, v *state.Version) *kekdv1.KeyVersion {
	m := &kekdv1.KeyVersion{
		Version: v.Number, State: v.State.String(), StateReason: v.StateReason,
		CreatedAt: nanoseconds(v.CreatedAt), ActivatedAt: nanoseconds(v.ActivatedAt),
	}
	for i := range v.Regions {
		r := &v.Regions[i]
		region := &kekdv1.KeyVersionRegion{Region: regionName(s, r.Region), State: "pending", WrapsReserved: r.WrapsReserved}
		if r.Minted {
			region.State, region.CkaId, region.CheckValue = "ready", r.Object.String(), r.Check.String()
		}
		if v.State == hierarchy.Destroyed {
			region.State = "destroyed"
		}
		m.Regions = append(m.Regions, region)
	}
	return m
}
