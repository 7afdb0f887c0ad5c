package quota

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
)

// Blocks of a long limit. A node takes a 128th of the limit at once, and towards the end an eighth
// of what is left: so 10 a day go one by one, and are all had, whichever nodes they come to; of
// 10,000 a crash forfeits 78; and a limit that is used up costs some 170 reservations.
const (
	blocksOfLimit = 128
	blocksOfRest  = 8
)

// share is a node's of one long limit.
type share struct {
	left tally // of what is reserved for this node in the window
	// good is the index of a state in which no more is reserved than the limit allows, so that
	// all of left may be used by whoever was authorised by that state.
	good    atomic.Uint64
	waiting atomic.Int64 // uses that callers wait for
	flight
}

var errChanged = fmt.Errorf("%w: the limit was changed meanwhile", hierarchy.ErrStale)

// draw claims up to n uses out of what is reserved, and reserves more if it has to.
//
// What a limit allows in a window is all reserved before it is used, by the state machine, which
// sums it up. So no more is used than the limit of the time of the last reservation. If the limit
// has been lowered since, and more is reserved than it allows, nobody can tell how much of that the
// other nodes have used: then nothing is allowed any more.
func (u *Uses) draw(ctx context.Context, s *state.State, now time.Time, o owner, k *claim, n uint32) error {
	b, limit := k.counts.share(k.limit), k.limit
	for {
		start := secondsOf(limit.Window(now))
		if b.good.Load() != s.Index() {
			var reserved uint64
			if start, reserved = window(s, now, o, limit); reserved > limit.Count {
				k.in(start, 0)
				return nil
			}
			b.left.put(start, 0) // another node may have begun it: what is left of the one before is void
			b.good.Store(s.Index())
		}
		drawn, in := b.left.draw(start, n-k.n)
		if k.in(in, drawn); k.n == n {
			return nil
		}
		if _, reserved := window(s, now, o, limit); reserved >= limit.Count {
			return nil
		}
		if err := u.wait(ctx, o, b, limit.Per, n-k.n); err != nil {
			return err
		}
		var err error
		s, now = u.hierarchy.State(), u.hierarchy.Now()
		if limit, err = limitOf(s, o, limit.Per); err != nil {
			return err
		}
	}
}

// in adds what was drawn in a window.
func (k *claim) in(start, drawn uint32) {
	if start != k.start {
		k.start, k.last = start, 0
	}
	k.n += drawn
	k.last += drawn
}

// window is the one to count in: that of the time, which is not before the state's, or a later one
// that another node has begun already; and what is reserved in it.
func window(s *state.State, now time.Time, o owner, limit policy.Limit) (start uint32, reserved uint64) {
	if stamp := s.Stamp(); now.Before(stamp) {
		now = stamp
	}
	start = secondsOf(limit.Window(now))
	used, ok := s.Uses(state.LimitID{Tenant: o.tenant, Service: o.service, Pattern: o.pattern, Per: limit.Per})
	if !ok {
		return start, 0
	}
	switch at := secondsOf(used.Start); {
	case at > start:
		return at, used.Count
	case at == start:
		return start, used.Count
	}
	return start, 0
}

// limitOf is an owner's long limit as of a state.
func limitOf(s *state.State, o owner, per time.Duration) (policy.Limit, error) {
	var limits policy.Limits
	if o.service != "" {
		if r, ok := s.Rule(o.service, o.pattern); ok {
			limits = r.Limits
		}
	} else if t, ok := s.Tenant(o.tenant); ok {
		limits = t.Limits
	}
	if limits.Long.Per != per {
		return policy.Limit{}, errChanged
	}
	return limits.Long, nil
}

// wait returns when a reservation has ended, with what kept it from being made. That others were
// faster is none: the state tells what they have left.
func (u *Uses) wait(ctx context.Context, o owner, b *share, per time.Duration, n uint32) error {
	b.waiting.Add(int64(n))
	defer b.waiting.Add(-int64(n))
	select {
	case <-b.start(func() error { return u.reserve(o, b, per) }):
		return b.failure()
	case <-ctx.Done():
		return fmt.Errorf("%w: no reservation of uses in time: %w", hierarchy.ErrStale, ctx.Err())
	}
}

// clockRetry is how long a node waits whose hierarchy, or window, is not that of the cluster.
const clockRetry = 20 * time.Millisecond

// reserve takes a block for those who wait, as large as the limit and what is left of it say.
func (u *Uses) reserve(o owner, b *share, per time.Duration) error {
	s, now := u.hierarchy.State(), u.hierarchy.Now()
	limit, err := limitOf(s, o, per)
	if err != nil {
		return nil // whoever waits sees that as well
	}
	start, reserved := window(s, now, o, limit)
	if reserved >= limit.Count {
		return nil
	}
	left := limit.Count - reserved
	size := min(max(uint64(max(b.waiting.Load(), 1)), min(limit.Count/blocksOfLimit, left/blocksOfRest)), left)

	ctx, cancel := context.WithTimeout(context.Background(), reserveTimeout)
	defer cancel()
	m := &commandpb.ReserveUses{
		TenantId: o.tenant.ID[:], Service: o.service, Per: int64(per), Start: timeOf(start).UnixNano(), NodeId: u.node.ID[:], Count: size,
	}
	if o.service != "" {
		m.Pattern = o.pattern.String()
	}
	err = u.hierarchy.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_ReserveUses{ReserveUses: m}})
	switch {
	case err == nil:
		b.left.put(start, uint32(size))
		return nil
	case errors.Is(err, hierarchy.ErrRateLimited):
		return nil // another node was faster
	case errors.Is(err, hierarchy.ErrFailedPrecondition), errors.Is(err, hierarchy.ErrNotFound):
		time.Sleep(clockRetry)
		return nil // the window has ended, or has not begun, or the limit is gone: look again
	case errors.Is(err, hierarchy.ErrOutcomeUnknown):
		// The block is forfeited. The caller's own operation has not begun: its outcome is known.
		return fmt.Errorf("%w: uses of a limit were not reserved: %v", hierarchy.ErrStale, err)
	}
	return fmt.Errorf("reserve uses of a limit: %w", err)
}
