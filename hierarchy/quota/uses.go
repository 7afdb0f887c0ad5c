package quota

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
)

// Hierarchy is this node's copy of the hierarchy, its clock, and the way to change it. When
// Propose has returned nil, State has the command in it.
type Hierarchy interface {
	Proposer
	State() *state.State
	// Now is cluster time as this node knows it.
	Now() time.Time
}

// Uses counts what this node does against the limits of rules and tenants.
//
// Short windows are counted in memory, each node for itself: with n nodes a limit of 100/s allows
// n times 100, and a node that starts begins with nothing used. Long windows hold over all nodes
// and restarts: a node takes what it uses out of blocks that it reserves in the hierarchy. What it
// has left of one when the window ends, or when it crashes, is void.
type Uses struct {
	node      hierarchy.NodeID
	hierarchy Hierarchy

	counts   sync.Map // owner -> *counts
	size     atomic.Int64
	sweepAt  atomic.Int64 // the size at which what has not been used for long is dropped
	sweeping atomic.Bool
}

// owner is who sets a limit for a tenant: a rule of a service, or with neither the tenant itself.
type owner struct {
	tenant  hierarchy.TenantID
	service string
	pattern policy.Pattern
}

// counts are a node's own of one owner's limits. Each length of window has one of its own, so that
// a limit which changes from hours to days and back finds what was counted.
type counts struct {
	second, minute tally // used
	hour, day      share
	refused        [4]tally // by the order of the lengths
	since          time.Time
}

// NewUses starts with nothing counted.
func NewUses(node hierarchy.NodeID, h Hierarchy) *Uses {
	u := &Uses{node: node, hierarchy: h}
	u.sweepAt.Store(firstSweep)
	return u
}

// Take allows up to n uses of a rule for a tenant, both of the state s, at cluster time now. All
// that it does not allow exceeds a limit, or cannot be reserved; the error says which. An error
// that is a [hierarchy.OverLimit] has a Detail if it is the first of its window.
//
// A use counts against the limits of the rule and of the tenant, or against none.
func (u *Uses) Take(ctx context.Context, s *state.State, now time.Time, t *state.Tenant, r *policy.Rule, n int) (int, error) {
	var (
		taken   [4]claim
		claims  = taken[:0]
		allowed = uint32(n)
		err     error
	)
	for _, set := range [...]struct {
		owner
		policy.Limits
	}{
		{owner{t.ID, r.Service, r.Pattern}, r.Limits},
		{owner{tenant: t.ID}, t.Limits},
	} {
		if set.None() {
			continue
		}
		c := u.countsOf(set.owner)
		for _, limit := range [...]policy.Limit{set.Short, set.Long} {
			if limit.Count == 0 || allowed == 0 {
				continue
			}
			k := claim{limit: limit, counts: c}
			var refused error
			if limit.Short() {
				k.n, k.start = c.used(limit).add(secondsOf(limit.Window(now)), uint32(limit.Count), allowed)
				k.last = k.n
			} else {
				refused = u.draw(ctx, s, now, set.owner, &k, allowed)
			}
			if k.n < allowed {
				if err = refused; err == nil {
					err = u.refuse(set.owner, t, k, now, allowed-k.n)
				}
				allowed = k.n
			}
			claims = append(claims, k)
		}
	}
	for _, k := range claims {
		k.giveBack(allowed)
	}
	return int(allowed), err
}

// claim is what was taken of one limit.
type claim struct {
	limit  policy.Limit
	counts *counts
	n      uint32
	start  uint32 // of the window; if it ended on the way, of the last one
	last   uint32 // how much was taken in that
}

// giveBack keeps only what the other limits allow as well. What was taken in a window that has
// ended is void.
func (k *claim) giveBack(keep uint32) {
	switch rest := min(k.n-keep, k.last); {
	case rest == 0:
	case k.limit.Short():
		k.counts.used(k.limit).takeBack(k.start, rest)
	default:
		k.counts.share(k.limit).left.put(k.start, rest)
	}
}

func (c *counts) used(l policy.Limit) *tally {
	if l.Per == policy.Second {
		return &c.second
	}
	return &c.minute
}

func (c *counts) share(l policy.Limit) *share {
	if l.Per == policy.Hour {
		return &c.hour
	}
	return &c.day
}

func (c *counts) refusals(l policy.Limit) *tally {
	switch l.Per {
	case policy.Second:
		return &c.refused[0]
	case policy.Minute:
		return &c.refused[1]
	case policy.Hour:
		return &c.refused[2]
	}
	return &c.refused[3]
}

// refuse counts n refusals and makes the error of all of them.
func (u *Uses) refuse(o owner, t *state.Tenant, k claim, now time.Time, n uint32) error {
	e := &hierarchy.OverLimit{Limit: fmt.Sprintf("tenant %s allows %s", t.Name, k.limit)}
	if o.service != "" {
		e.Limit = fmt.Sprintf("the rule of %s for %s allows %s", o.service, o.pattern, k.limit)
		if o.pattern.Tenant == policy.Any {
			e.Limit += " for each tenant"
		}
	}
	// To the next millisecond, so that who waits so long is not early.
	wait := timeOf(k.start).Add(k.limit.Per).Sub(now)
	e.Wait = max(wait.Truncate(time.Millisecond)+time.Millisecond, time.Millisecond)
	first, before, count := k.counts.refusals(k.limit).mark(k.start, n)
	if first {
		e.Detail = e.Limit
		if count > 1 {
			e.Detail += fmt.Sprintf("; in the window from %s it refused %d", timeOf(before).Format(time.RFC3339), count)
		}
	}
	return e
}

func (u *Uses) countsOf(o owner) *counts {
	if v, ok := u.counts.Load(o); ok {
		return v.(*counts)
	}
	now := u.hierarchy.Now()
	v, loaded := u.counts.LoadOrStore(o, &counts{since: now})
	if !loaded && u.size.Add(1) >= u.sweepAt.Load() && u.sweeping.CompareAndSwap(false, true) {
		u.sweep(now)
		u.sweeping.Store(false)
	}
	return v.(*counts)
}

// What has not been counted in for long is dropped, when there are twice as many as there were.
// A request that still counts in the window of then would find a count of nothing, so long is
// longer than any request may last.
const (
	firstSweep = 4096
	idle       = time.Hour
)

func (u *Uses) sweep(now time.Time) {
	u.counts.Range(func(o, v any) bool {
		if v.(*counts).ended(now.Add(-idle)) {
			u.counts.Delete(o)
			u.size.Add(-1)
		}
		return true
	})
	u.sweepAt.Store(max(firstSweep, 2*u.size.Load()))
}

// ended tells whether all windows that something was counted in had ended at a time. Who has just
// made the counts is about to count.
func (c *counts) ended(at time.Time) bool {
	if c.since.After(at) {
		return false
	}
	for _, w := range [...]struct {
		tally *tally
		per   time.Duration
	}{
		{&c.second, policy.Second}, {&c.minute, policy.Minute}, {&c.hour.left, policy.Hour}, {&c.day.left, policy.Day},
		{&c.refused[0], policy.Second}, {&c.refused[1], policy.Minute}, {&c.refused[2], policy.Hour}, {&c.refused[3], policy.Day},
	} {
		if start, _ := w.tally.load(); timeOf(start).Add(w.per).After(at) {
			return false
		}
	}
	return true
}
