package socketapi

import (
	"context"
	"time"

	"github.com/kekd/kekd/hierarchy/custody"
)

// Whoever has much in flight waits here before more of it is read: what was not read costs nothing.
//
// A call with a thousand operations keeps one of the daemon's processors busy for ten
// milliseconds, in which a caller who wants one operation waits several times: to be read, for
// the token's answer, for the journal's, to be written. So while others call, each uid has about
// one such call under way at a time. Alone it has as many as it is allowed.

// turn waits until the uid may have more in flight, and adds n to that. A caller who set no
// deadline waits for the default one.
func (c *conn) turn(ctx context.Context, n int64) (inFlight int64, err error) {
	ops := &c.account.ops
	c.account.called.Store(time.Now().UnixNano())
	add := func() bool {
		for {
			now := ops.Load()
			if !c.room(now) {
				return false
			}
			if ops.CompareAndSwap(now, now+n) {
				inFlight = now + n
				return true
			}
		}
	}
	if add() {
		return inFlight, nil
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.gate.limits.DefaultDeadline)
		defer cancel()
	}
	err = c.await(ctx, add)
	return inFlight, err
}

func (c *conn) room(inFlight int64) bool {
	return inFlight < int64(c.gate.limits.ShareOps) || !c.gate.inCompany(c.account)
}

// streamTurn waits until the next message of a stream may be read: that is not before there is
// room for it, and not before the caller has read what he was answered, for which he has a while.
func (c *conn) streamTurn(ctx context.Context) error {
	limits := &c.gate.limits
	c.account.called.Store(time.Now().UnixNano())
	read := func() bool {
		return c.unsent.Load() <= limits.Unsent && c.account.unsent.Load() <= limits.UnsentPerUID
	}
	if !read() {
		late, cancel := context.WithTimeout(ctx, limits.SendTimeout)
		defer cancel()
		if err := c.await(late, read); err != nil && ctx.Err() == nil {
			return c.gate.unread
		}
	}
	return c.await(ctx, func() bool {
		ops := c.account.ops.Load()
		return ops == 0 || ops+custody.MaxBatch <= int64(limits.OpsPerUID) && c.room(ops)
	})
}

// await waits for a condition that is about the uid's account.
func (c *conn) await(ctx context.Context, ok func() bool) error {
	if ok() {
		return nil
	}
	// That others have stopped to call makes room without a word, so that is looked for.
	look := time.NewTicker(c.gate.limits.Company/2 + time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-c.account.freed:
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.account.wake() // the next who waits
	return nil
}

// inCompany tells whether somebody whom a service names calls besides this uid.
func (g *gate) inCompany(mine *account) bool {
	since := time.Now().Add(-g.limits.Company).UnixNano()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.uids {
		if a != mine && a.called.Load() > since && g.known(a.principal) {
			return true
		}
	}
	return false
}

// wake lets one who waits look again; he wakes the next.
func (a *account) wake() {
	select {
	case a.freed <- struct{}{}:
	default:
	}
}
