package socketapi

import (
	"context"
	"fmt"
	"strings"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func (a *adminService) CreateService(ctx context.Context, m *kekdv1.CreateServiceRequest) (*kekdv1.Service, error) {
	var match []string
	if m.Uid != nil {
		match = append(match, fmt.Sprintf("uid=%d", *m.Uid))
	}
	if m.Gid != nil {
		match = append(match, fmt.Sprintf("gid=%d", *m.Gid))
	}
	r := AdminRecord{Kind: "service-create", Service: m.Name, Detail: strings.Join(match, " ")}
	done, err := a.change(ctx, m.IdempotencyId, r, func(*state.State) (*commandpb.Command, error) {
		return &commandpb.Command{Body: &commandpb.Command_CreateService{CreateService: &commandpb.CreateService{
			Name: m.Name, Uid: m.Uid, Gid: m.Gid,
		}}}, nil
	})
	if err != nil {
		return nil, err
	}
	svc, err := serviceByName(done.state, m.Name)
	if err != nil {
		return nil, err
	}
	return serviceMessage(svc), nil
}

func (a *adminService) DeleteService(ctx context.Context, m *kekdv1.DeleteServiceRequest) (*kekdv1.DeleteServiceResponse, error) {
	r := AdminRecord{Kind: "service-delete", Service: m.Name}
	done, err := a.close(ctx, m.IdempotencyId, m.NoWait, r, func(*state.State) (*commandpb.Command, error) {
		return &commandpb.Command{Body: &commandpb.Command_DeleteService{DeleteService: &commandpb.DeleteService{Name: m.Name}}}, nil
	})
	if err != nil {
		return nil, err
	}
	return &kekdv1.DeleteServiceResponse{Index: done.index, Fence: done.fence}, nil
}

func (a *adminService) ListServices(context.Context, *kekdv1.ListServicesRequest) (*kekdv1.ListServicesResponse, error) {
	m := &kekdv1.ListServicesResponse{}
	for svc := range a.Hierarchy.State().Services() {
		m.Services = append(m.Services, serviceMessage(svc))
	}
	return m, nil
}

func serviceByName(s *state.State, name string) (*state.Service, error) {
	if svc, ok := s.Service(name); ok {
		return svc, nil
	}
	if err := hierarchy.ValidateName(name); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: service %s", hierarchy.ErrNotFound, name)
}

func serviceMessage(s *state.Service) *kekdv1.Service {
	return &kekdv1.Service{Name: s.Name, Uid: s.UID, Gid: s.GID, CreatedAt: nanoseconds(s.CreatedAt)}
}
