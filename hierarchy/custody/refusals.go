package custody

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/quota"
)

// countRefusals leaves those without a record of their own that a user has had too many of: they
// are counted instead, and a record tells how many there were.
func (c *Custody) countRefusals(who hierarchy.Principal, items []item) {
	now := time.Time{}
	for i := range items {
		it := &items[i]
		if !it.known || it.asked != 0 || !errors.Is(it.err, hierarchy.ErrPermissionDenied) {
			continue
		}
		if now.IsZero() {
			now = c.now()
		}
		var tenant hierarchy.TenantID
		if it.grant.tenant != nil {
			tenant = it.grant.tenant.ID
		}
		it.known = c.refusals.Admit(who, tenant, now)
	}
}

// RecordRefusals writes, durably, how many refusals have no record of their own, also those of a
// second that is not over. It is for the end: the journal is to be closed next, and nothing is
// served any more. An error means that the numbers may be lost.
func (c *Custody) RecordRefusals(ctx context.Context) error {
	counted := c.refusals.All()
	if len(counted) == 0 {
		return nil
	}
	p, err := c.appendRefusals(ctx, counted)
	if err == nil {
		err = c.journal.Wait(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("record how many refusals were not recorded one by one: %w", err)
	}
	return nil
}

// appendRefusals returns where the records of them end.
func (c *Custody) appendRefusals(ctx context.Context, counted []quota.Uncounted) (end audit.Position, err error) {
	now := c.replica.View().State
	for some := range slices.Chunk(counted, audit.MaxAppend) {
		records := make([]audit.Record, len(some))
		for i, more := range some {
			records[i] = audit.Record{
				Kind: "refusals", At: c.now(), Caller: &more.Caller, Tenant: more.Tenant,
				Outcome: audit.OutcomeDenied, Code: hierarchy.Code(hierarchy.ErrPermissionDenied),
				Detail: fmt.Sprintf("%d more refusals of this user in the second from %s", more.Count, more.Since.UTC().Format(time.RFC3339Nano)),
			}
			if t, ok := now.Tenant(more.Tenant); ok {
				records[i].TenantName = t.Name
			}
		}
		if end, err = c.journal.Append(ctx, records); err != nil {
			return end, err
		}
	}
	return end, nil
}
