package state

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
)

// maxAhead is how far a node's cluster time may be ahead of a command's stamp: it runs on between
// ticks by the node's own clock, and a new leader's may be a little behind.
const maxAhead = time.Second

// reserveUses hands a node a block of uses of a long limit, so that all nodes together stay below
// it. Of each limit only the latest window is counted: a window is over when the next has begun,
// though a node's clock may still be in it.
//
// The count is the limit's, and not the rule's that sets it: it stays when the rule is replaced,
// and until the window's end when it is taken back, so that a limit cannot be had twice a day by
// setting it twice.
func (d *draft) reserveUses(m *commandpb.ReserveUses) error {
	t, err := d.tenant(m.GetTenantId())
	if err != nil {
		return err
	}
	nid, err := idOf("node ID", m.GetNodeId())
	if err != nil {
		return err
	}
	if _, ok := d.Node(hierarchy.NodeID{ID: nid}); !ok {
		return fmt.Errorf("%w: node %s is no member", hierarchy.ErrNotFound, nid)
	}
	next, err := usesFromPB(&commandpb.Uses{
		TenantId: m.GetTenantId(), Service: m.GetService(), Pattern: m.GetPattern(), Per: m.GetPer(), Start: m.GetStart(), Count: m.GetCount(),
	})
	if err != nil {
		return err
	}
	limit, err := d.longLimit(t, next.LimitID)
	if err != nil {
		return err
	}
	if err := mustBeEnabled(t); err != nil {
		return err
	}
	switch now := d.now(); {
	case !next.Start.Add(next.Per).After(now):
		return fmt.Errorf("%w: the window from %s is over", hierarchy.ErrFailedPrecondition, next.Start)
	case next.Start.After(now.Add(maxAhead)):
		return fmt.Errorf("%w: the window from %s has not begun", hierarchy.ErrFailedPrecondition, next.Start)
	}
	if last, ok := d.Uses(next.LimitID); ok {
		if last.Start.After(next.Start) {
			return fmt.Errorf("%w: the window from %s is over", hierarchy.ErrFailedPrecondition, next.Start)
		}
		if last.Start.Equal(next.Start) {
			next.Count += last.Count
		}
	}
	if next.Count > limit.Count {
		return fmt.Errorf("%w: %s of tenant %s: %d uses were asked for, more than are left", hierarchy.ErrRateLimited, limit, t.Name, m.GetCount())
	}
	d.putUses(next)
	return nil
}

// longLimit finds the limit that a command is about, as it is now.
func (d *draft) longLimit(t *Tenant, id LimitID) (policy.Limit, error) {
	limits := t.Limits
	if id.Service != "" {
		rule, ok := d.Rule(id.Service, id.Pattern)
		if !ok {
			return policy.Limit{}, fmt.Errorf("%w: service %s has no rule for %s", hierarchy.ErrNotFound, id.Service, id.Pattern)
		}
		limits = rule.Limits
		if id.Pattern.Tenant != policy.Any && id.Pattern.Tenant != t.Name {
			return policy.Limit{}, fmt.Errorf("%w: a rule for %s is not about tenant %s", hierarchy.ErrInvalidArgument, id.Pattern, t.Name)
		}
	}
	if limits.Long.Per != id.Per {
		return policy.Limit{}, fmt.Errorf("%w: there is no such limit per %v", hierarchy.ErrNotFound, id.Per)
	}
	return limits.Long, nil
}

// forgetUses drops counts whose windows have ended. What is left over does no harm: it counts for
// nothing.
func (d *draft) forgetUses() {
	for range maxForgotten {
		_, first, ok := d.uses.Root().Minimum()
		if !ok || first.Start.Add(first.Per).After(d.now()) {
			return
		}
		d.deleteUses(first)
	}
}

func (d *draft) putUses(u *Uses) {
	if old, ok := d.Uses(u.LimitID); ok {
		d.deleteUses(old)
	}
	d.account(nil, record(hashUses, usesToPB(u)))
	d.uses, _, _ = d.uses.Insert(usesKey(u), u)
	d.usesOf = d.usesOf.set(u.LimitID, u)
}

func (d *draft) deleteUses(u *Uses) {
	d.account(record(hashUses, usesToPB(u)), nil)
	d.uses, _, _ = d.uses.Delete(usesKey(u))
	d.usesOf = d.usesOf.delete(u.LimitID)
}

// usesKey sorts by the end of the window: what ends first is forgotten first.
func usesKey(u *Uses) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(u.Start.Add(u.Per).UnixNano()))
	b = append(b, u.Tenant.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(u.Per))
	b = append(b, u.Service...)
	b = append(b, 0) // no name has it
	return append(b, patternText(u.LimitID)...)
}

func patternText(id LimitID) string {
	if id.Service == "" {
		return ""
	}
	return id.Pattern.String()
}

func usesToPB(u *Uses) *commandpb.Uses {
	return &commandpb.Uses{
		TenantId: u.Tenant.ID[:], Service: u.Service, Pattern: patternText(u.LimitID), Per: int64(u.Per), Start: u.Start.UnixNano(), Count: u.Count,
	}
}

func usesFromPB(m *commandpb.Uses) (*Uses, error) {
	tenant, err := idOf("tenant ID of a limit", m.GetTenantId())
	if err != nil {
		return nil, err
	}
	u := &Uses{
		LimitID: LimitID{Tenant: hierarchy.TenantID{ID: tenant}, Service: m.GetService(), Per: time.Duration(m.GetPer())},
		Start:   time.Unix(0, m.GetStart()).UTC(), Count: m.GetCount(),
	}
	if m.GetService() != "" {
		if err := checkName("service", m.GetService()); err != nil {
			return nil, err
		}
		if u.Pattern, err = policy.ParsePattern(m.GetPattern()); err != nil {
			return nil, err
		}
	} else if m.GetPattern() != "" {
		return nil, fmt.Errorf("%w: a limit names a pattern and no service", hierarchy.ErrInvalidArgument)
	}
	switch {
	case u.Per != policy.Hour && u.Per != policy.Day:
		return nil, fmt.Errorf("%w: uses of a limit per %v are not reserved", hierarchy.ErrInvalidArgument, u.Per)
	case m.GetStart() < 0 || m.GetStart() > maxStart || !u.Start.Equal(policy.WindowOf(u.Start, u.Per)):
		return nil, fmt.Errorf("%w: no window of %v begins at %s", hierarchy.ErrInvalidArgument, u.Per, u.Start)
	case u.Count == 0 || u.Count > policy.MaxLimit:
		return nil, fmt.Errorf("%w: %d uses of a limit: it must be 1 to %d", hierarchy.ErrInvalidArgument, u.Count, uint64(policy.MaxLimit))
	}
	return u, nil
}

// maxStart leaves room for the window's end in the nanoseconds of an int64.
const maxStart = int64(1<<63-1) - int64(policy.Day)

func limitsToPB(ls policy.Limits) (list []*commandpb.Limit) {
	for _, l := range ls.List() {
		list = append(list, &commandpb.Limit{Count: l.Count, Per: int64(l.Per)})
	}
	return list
}

func limitsFromPB(list []*commandpb.Limit) (policy.Limits, error) {
	var ls []policy.Limit
	for _, m := range list {
		ls = append(ls, policy.Limit{Count: m.GetCount(), Per: time.Duration(m.GetPer())})
	}
	return policy.NewLimits(ls...)
}

func usesRecord(u *Uses) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Uses{Uses: usesToPB(u)}}
}

// loadUses takes a record of a snapshot. The rule may be gone.
func (d *draft) loadUses(m *commandpb.Uses) (*Uses, error) {
	u, err := usesFromPB(m)
	if err != nil {
		return nil, err
	}
	if _, ok := d.Tenant(u.Tenant); !ok {
		return nil, fmt.Errorf("uses are counted of tenant %s, which is not there", u.Tenant)
	}
	if _, ok := d.Uses(u.LimitID); ok {
		return nil, fmt.Errorf("two windows are counted of one limit of tenant %s", u.Tenant)
	}
	d.putUses(u)
	return u, nil
}
