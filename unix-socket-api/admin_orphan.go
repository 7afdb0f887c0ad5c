package socketapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

var errNoToken = fmt.Errorf("%w: this node has no HSM", hierarchy.ErrFailedPrecondition)

func (a *adminService) ListOrphans(ctx context.Context, _ *kekdv1.ListOrphansRequest) (*kekdv1.ListOrphansResponse, error) {
	if a.Orphans == nil {
		return nil, errNoToken
	}
	list, err := a.Orphans.Orphans(ctx)
	if err != nil {
		return nil, err
	}
	return &kekdv1.ListOrphansResponse{Orphans: orphanMessages(list)}, nil
}

func (a *adminService) SweepOrphans(ctx context.Context, _ *kekdv1.SweepOrphansRequest) (*kekdv1.SweepOrphansResponse, error) {
	if a.Orphans == nil {
		return nil, errNoToken
	}
	var destroyed []Orphan
	err := a.recorded(ctx, hierarchy.CommandID{}, AdminRecord{Kind: "orphan-sweep"}, func(_ hierarchy.Principal, r *AdminRecord) (string, error) {
		var err error
		destroyed, err = a.Orphans.Sweep(ctx)
		r.Detail = fmt.Sprintf("destroyed=%d", len(destroyed))
		happened := fmt.Sprintf("%d objects were destroyed", len(destroyed))
		if recordErr := a.recordDestroyed(ctx, *r, destroyed); err == nil && recordErr != nil {
			err = fmt.Errorf("%w: %s, and which ones is not in the audit journal: %w", hierarchy.ErrOutcomeUnknown, happened, recordErr)
		}
		return happened, err
	})
	if err != nil {
		return nil, err
	}
	return &kekdv1.SweepOrphansResponse{Destroyed: orphanMessages(destroyed)}, nil
}

// perRecord is how many CKA_IDs the detail of one record has room for.
const perRecord = 5

// recordDestroyed names each object in the journal. It is there before the caller is told.
func (a *adminService) recordDestroyed(ctx context.Context, r AdminRecord, destroyed []Orphan) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	r.Kind, r.Outcome = "orphan-destroyed", AdminOK
	for some := range slices.Chunk(destroyed, perRecord) {
		var ids []string
		for _, o := range some {
			ids = append(ids, o.ID.String())
		}
		r.Detail = strings.Join(ids, " ")
		if _, err := a.Audit.Append(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func orphanMessages(list []Orphan) (m []*kekdv1.Orphan) {
	for _, o := range list {
		m = append(m, &kekdv1.Orphan{CkaId: o.ID.String(), Label: o.Label})
	}
	return m
}
