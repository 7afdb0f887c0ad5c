package socketapi

import (
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

// WatchTenant lasts until the caller ends it, or the daemon stops.
func (a *adminService) WatchTenant(m *kekdv1.WatchTenantRequest, ss grpc.ServerStreamingServer[kekdv1.TenantEvent]) error {
	t, err := tenantByName(a.Hierarchy.State(), m.Name)
	if err != nil {
		return err
	}
	for event, err := range a.Audit.Watch(ss.Context(), t.ID) {
		if err != nil {
			return err
		}
		if err := ss.Send(event); err != nil {
			return err
		}
	}
	return ss.Context().Err()
}
