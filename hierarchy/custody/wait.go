package custody

import (
	"context"
	"errors"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

// leasePatience is for how long past a tenant's max_staleness requests wait for the lease: until then a lost leader has been
// followed by another. A copy that is older than that is a node's which is cut off, and nobody waits there.
const leasePatience = time.Second

// firstLook decides the requests by one view. Where a lease has just run out, it waits until that is renewed, or
// for a moment, and decides all of them again: one view goes for a batch.
func (c *Custody) firstLook(ctx context.Context, who hierarchy.Principal, items []item) View {
	v := c.replica.View()
	c.decide(v, who, items)
	if !justExpired(v, items) {
		return v
	}
	patience := time.NewTimer(leasePatience)
	defer patience.Stop()
	for {
		renewed := c.replica.Renewed() // before the view, so that no renewal is missed
		v = c.replica.View()
		c.decide(v, who, items)
		if !justExpired(v, items) {
			return v
		}
		select {
		case <-renewed:
		case <-patience.C:
			return v
		case <-ctx.Done():
			return v
		}
	}
}

// decide authorises what could be parsed.
func (c *Custody) decide(v View, who hierarchy.Principal, items []item) {
	for i := range items {
		it := &items[i]
		if !it.known {
			continue
		}
		if it.grant, it.err = authorise(v, who, it); it.err == nil {
			it.err = c.placed(v.State, &it.grant)
		}
	}
}

// justExpired tells whether a view was too old for one of the requests, and not by much.
func justExpired(v View, items []item) bool {
	if v.Fault != nil {
		return false
	}
	for i := range items {
		if t := items[i].grant.tenant; t != nil && errors.Is(items[i].err, hierarchy.ErrStale) && v.Age <= t.MaxStaleness+leasePatience {
			return true
		}
	}
	return false
}
