package custody

import (
	"context"
	"errors"

	"github.com/kekd/kekd/hierarchy"
)

// limit counts what is authorised against the limits of rules and tenants, a run of the same rule
// and tenant at a time. What a limit refuses goes to no token, and takes no seal from the budget.
func (c *Custody) limit(ctx context.Context, v View, items []item) {
	for i := 0; i < len(items); {
		it, end := &items[i], i+1
		if it.err != nil || it.grant.rule.Limits.None() && it.grant.tenant.Limits.None() {
			i = end
			continue
		}
		for end < len(items) && items[end].err == nil && items[end].grant.rule == it.grant.rule && items[end].grant.tenant == it.grant.tenant {
			end++
		}
		allowed, err := c.quotas.Take(ctx, v.State, v.Now, it.grant.tenant, it.grant.rule, end-i)
		refuse(items[i+allowed:end], err)
		i = end
	}
}

// refuse ends items. Of those that are over a limit only the first of a window is recorded: a flood
// of refusals would else cost as much as what it is refused.
func refuse(items []item, err error) {
	for i := range items {
		items[i].err = err
	}
	over, ok := errors.AsType[*hierarchy.OverLimit](err)
	if !ok {
		return
	}
	for i := range items {
		if i == 0 && over.Detail != "" {
			items[i].detail = over.Detail
		} else {
			items[i].known = false
		}
	}
}
