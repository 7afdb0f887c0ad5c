package socketapi

import (
	"context"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

// defaultTail is how many of the past records are sent if the caller does not say.
const defaultTail = 20

func (a *adminService) TailAudit(m *kekdv1.TailAuditRequest, ss grpc.ServerStreamingServer[kekdv1.AuditRecord]) error {
	var tenant hierarchy.TenantID
	if m.Tenant != "" {
		t, err := tenantByName(a.Hierarchy.State(), m.Tenant)
		if err != nil {
			return err
		}
		tenant = t.ID
	}
	last := int(m.Last)
	if last == 0 {
		last = defaultTail
	}
	for line, err := range a.Audit.Tail(ss.Context(), tenant, last, m.Follow) {
		if err != nil {
			return err
		}
		if err := ss.Send(&kekdv1.AuditRecord{Json: string(line)}); err != nil {
			return err
		}
	}
	return ss.Context().Err()
}

func (a *adminService) VerifyAudit(ctx context.Context, _ *kekdv1.VerifyAuditRequest) (*kekdv1.VerifyAuditResponse, error) {
	return a.Audit.Verify(ctx)
}
