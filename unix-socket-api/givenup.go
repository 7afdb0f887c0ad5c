package socketapi

import (
	"context"
	"time"
)

// Opening a call and giving it up costs its caller a few bytes, and the daemon as much as a call
// that it answers. Who does that too often is not read for a while: what was not read costs nothing.

// gaveUp counts a call if its caller did not wait for the answer.
func (c *conn) gaveUp(ctx context.Context) {
	if ctx.Err() == nil {
		return
	}
	perSecond := c.gate.limits.GivenUpPerSecond
	if c.stranger {
		perSecond = c.gate.limits.StrangerGivenUpPerSecond
	}
	for debt := &c.account.debt; ; {
		now := debt.Load()
		if debt.CompareAndSwap(now, max(now, time.Now().UnixNano())+int64(time.Second)/int64(perSecond)) {
			return
		}
	}
}

// Read waits while the uid has given up a second's worth of calls more than it may.
func (c *conn) Read(b []byte) (int, error) {
	for c.account.debt.Load() != 0 {
		wait := time.Until(time.Unix(0, c.account.debt.Load()).Add(-time.Second))
		if wait <= 0 {
			break
		}
		select {
		case <-time.After(wait):
		case <-c.gone: // the read says so
			return c.UnixConn.Read(b)
		}
	}
	if len(c.peeked) > 0 {
		n := copy(b, c.peeked)
		c.peeked = c.peeked[n:]
		return n, nil
	}
	return c.UnixConn.Read(b)
}
