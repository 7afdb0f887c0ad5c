package socketapi

import (
	"context"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Doctor tries what the node and its token are needed for.
type Doctor interface {
	// Doctor never fails: what cannot be tried is missing, and says so.
	Doctor(ctx context.Context) []*kekdv1.Check
}

func (a *adminService) Doctor(ctx context.Context, _ *kekdv1.DoctorRequest) (*kekdv1.DoctorResponse, error) {
	ctx, cancel := early(ctx)
	defer cancel()
	m := &kekdv1.DoctorResponse{Checks: a.Admin.Doctor.Doctor(ctx)}
	if a.Orphans != nil {
		// That the token cannot be listed is what a check says.
		if list, err := a.Orphans.Orphans(ctx); err == nil {
			m.Orphans = orphanMessages(list)
		}
	}
	return m, nil
}
