package state

import (
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
)

// closing is what a command has taken away so far. It is noticed where records are written, so that no
// command can forget it.
//
// Not among it: a version that is retired since a newer one is active, and limits, which are budgets.
// Neither promises that something is refused everywhere from a moment on.
type closing struct {
	tenant        hierarchy.TenantID // zero: several
	wait, lowered time.Duration      // as those of a [Fence]; without a wait nothing was closed
}

// closes takes note that something was closed to a tenant, or to several. It has to be told before the
// tenant's record changes, since what counts is how stale it was served until then.
func (d *draft) closes(tenant hierarchy.TenantID, wait, lowered time.Duration) {
	if wait == 0 {
		return // nobody has been served by what was closed
	}
	c := &d.closing
	if c.wait > 0 && c.tenant != tenant {
		tenant = hierarchy.TenantID{}
	}
	c.tenant, c.wait, c.lowered = tenant, max(c.wait, wait), max(c.lowered, lowered)
}

// closesTenant compares states and max_staleness. A tenant that is destroyed has no max_staleness any
// more, and the one before counts until that is effective.
func (d *draft) closesTenant(old, next *Tenant) {
	wait := d.CountingStaleness(old.ID)
	switch {
	case next.MaxStaleness < old.MaxStaleness, next.State == hierarchy.TenantDestroyed && old.State != next.State:
		d.closes(old.ID, wait, wait)
	case next.State > old.State:
		d.closes(old.ID, wait, 0)
	}
}

func (d *draft) closesKey(old, next *Key) {
	if next.MinUnwrapVersion > old.MinUnwrapVersion {
		d.closes(old.Tenant, d.CountingStaleness(old.Tenant), 0)
	}
}

func (d *draft) closesVersion(k *Key, old, next *Version) {
	switch next.State {
	case old.State:
	case hierarchy.Suspended, hierarchy.Compromised, hierarchy.Destroyed:
		d.closes(k.Tenant, d.CountingStaleness(k.Tenant), 0)
	}
}

// closesRule compares a rule with the one that replaces it; nil: none does.
func (d *draft) closesRule(old, next *policy.Rule) {
	switch {
	case next != nil && !narrower(old, next):
	case old.Pattern.Tenant == policy.Any:
		d.closes(hierarchy.TenantID{}, d.LongestStaleness(), 0)
	default:
		if t, ok := d.TenantByName(old.Pattern.Tenant); ok {
			d.closes(t.ID, d.CountingStaleness(t.ID), 0)
		}
	}
}

// narrower tells whether a rule refuses anything that another of the same service and pattern allowed,
// limits left aside.
func narrower(old, next *policy.Rule) bool {
	if old.Ops&^next.Ops != 0 || next.RequireReason && !old.RequireReason {
		return true
	}
	had := make(map[string]policy.Requirement, len(old.Required))
	for _, q := range old.Required {
		had[q.Key] = q
	}
	for _, q := range next.Required {
		if before, ok := had[q.Key]; !ok || before != q && !q.AnyValue {
			return true
		}
	}
	return false
}

// fenceKind is what a command's fence is called; empty: it has none. To resume a version that was compromised before
// it was suspended opens it, as far as it goes.
func fenceKind(c *commandpb.Command) string {
	switch b := c.GetBody().(type) {
	case *commandpb.Command_SetTenantState:
		return "tenant-disable"
	case *commandpb.Command_SetTenant:
		return "max-staleness-lower"
	case *commandpb.Command_SetKey:
		return "key-set"
	case *commandpb.Command_SetVersionState:
		switch b.SetVersionState.GetAction() {
		case commandpb.VersionAction_VERSION_ACTION_SUSPEND:
			return "key-version-suspend"
		case commandpb.VersionAction_VERSION_ACTION_COMPROMISE:
			return "key-version-compromise"
		}
		return ""
	case *commandpb.Command_AllowPolicy:
		return "policy-narrow"
	case *commandpb.Command_RevokePolicy:
		return "policy-revoke"
	case *commandpb.Command_DeleteService:
		return "service-delete"
	case *commandpb.Command_RestoreRecords:
		return "restore"
	}
	return "other" // never yet: who makes another command that closes gives it a name here
}
