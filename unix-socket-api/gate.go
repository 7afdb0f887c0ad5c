package socketapi

import (
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/vtcodec"
)

// gate counts what callers hold, and refuses what is over a limit.
type gate struct {
	limits Limits
	calls  atomic.Int64
	ops    atomic.Int64

	mu    sync.Mutex
	conns int
	uids  map[uint32]*account

	// Refusals are made once: a flood of them has to be cheap.
	tooManyCalls, tooManyOps, uidCalls, uidOps, unread *apierr.Error
}

// account is what one uid holds.
type account struct {
	conns int // guarded by the gate's mutex
	calls atomic.Int64
	ops   atomic.Int64
}

// idle accounts may be forgotten. One without connections may still have calls that run, and
// counts them until they end: connecting again buys no second allowance.
func (a *account) idle() bool {
	return a.conns == 0 && a.calls.Load() == 0 && a.ops.Load() == 0
}

// conn is one connection of a known peer. It is also the pool that the bytes of its answers
// come from, so that it knows how many of them nobody has read.
type conn struct {
	*net.UnixConn
	principal hierarchy.Principal
	groups    []uint32
	gate      *gate
	account   *account
	close     sync.Once
	unsent    atomic.Int64 // bytes
	fullSince atomic.Int64 // Unix nanoseconds; 0: unsent was below its limit when last looked at
}

func newGate(l Limits) *gate {
	refusal := func(err error, hint, format string, args ...any) *apierr.Error {
		return apierr.From(apierr.WithHint(fmt.Errorf("%w: "+format, append([]any{err}, args...)...), hint))
	}
	const retry = "retry after a moment, with back-off"
	return &gate{
		limits:       l,
		uids:         make(map[uint32]*account),
		tooManyCalls: refusal(hierarchy.ErrCapacity, retry, "the daemon has its %d calls open", l.Calls),
		tooManyOps:   refusal(hierarchy.ErrCapacity, retry, "the daemon has its %d operations in flight", l.Ops),
		uidCalls:     refusal(hierarchy.ErrRateLimited, retry, "this uid has its %d calls open", l.CallsPerUID),
		uidOps:       refusal(hierarchy.ErrRateLimited, retry, "this uid has its %d operations in flight", l.OpsPerUID),
		unread:       refusal(hierarchy.ErrRateLimited, "read the answers", "this connection has %d bytes of answers that were not read", l.Unsent),
	}
}

// admit takes a connection in, or says that there are too many.
func (g *gate) admit(c *net.UnixConn) (*conn, error) {
	p, groups, err := credentialsOf(c)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conns >= g.limits.Conns {
		return nil, fmt.Errorf("%w: %d connections", hierarchy.ErrCapacity, g.conns)
	}
	a := g.uids[p.UID]
	if a == nil {
		if len(g.uids) > g.limits.Conns {
			maps.DeleteFunc(g.uids, func(_ uint32, a *account) bool { return a.idle() })
		}
		a = new(account)
		g.uids[p.UID] = a
	}
	if a.conns >= g.limits.ConnsPerUID {
		return nil, fmt.Errorf("%w: uid %d has %d connections", hierarchy.ErrRateLimited, p.UID, a.conns)
	}
	g.conns++
	a.conns++
	return &conn{UnixConn: c, principal: p, groups: groups, gate: g, account: a}, nil
}

func (c *conn) Close() error {
	c.close.Do(func() {
		g := c.gate
		g.mu.Lock()
		defer g.mu.Unlock()
		g.conns--
		c.account.conns--
	})
	return c.UnixConn.Close()
}

// enter opens a call; leave closes it.
func (c *conn) enter() error {
	if c.unsent.Load() > c.gate.limits.Unsent {
		return c.full()
	}
	if c.account.calls.Add(1) > int64(c.gate.limits.CallsPerUID) {
		c.account.calls.Add(-1)
		return c.gate.uidCalls
	}
	if c.gate.calls.Add(1) > int64(c.gate.limits.Calls) {
		c.leave()
		return c.gate.tooManyCalls
	}
	return nil
}

func (c *conn) leave() {
	c.account.calls.Add(-1)
	c.gate.calls.Add(-1)
}

// full refuses a call on a connection whose caller does not read, and in the end closes it.
// gRPC can lose count of an answer whose call is cancelled just then; a connection on which
// that happened for long enough to matter is cured by the same end.
func (c *conn) full() error {
	now := time.Now().UnixNano()
	if !c.fullSince.CompareAndSwap(0, now) && now-c.fullSince.Load() > int64(c.gate.limits.SendTimeout) {
		c.Close()
	}
	return c.gate.unread
}

// take lets n operations in; give lets them out.
func (c *conn) take(n int) error {
	if c.account.ops.Add(int64(n)) > int64(c.gate.limits.OpsPerUID) {
		c.account.ops.Add(-int64(n))
		return c.gate.uidOps
	}
	if c.gate.ops.Add(int64(n)) > int64(c.gate.limits.Ops) {
		c.give(n)
		return c.gate.tooManyOps
	}
	return nil
}

func (c *conn) give(n int) {
	c.account.ops.Add(-int64(n))
	c.gate.ops.Add(-int64(n))
}

// Get and Put make the connection a mem.BufferPool. gRPC gives a buffer back when its bytes
// have gone to the socket, or its call has ended.
func (c *conn) Get(n int) *[]byte {
	c.unsent.Add(int64(n))
	return vtcodec.Pool.Get(n)
}

func (c *conn) Put(b *[]byte) {
	if c.unsent.Add(-int64(len(*b))) <= c.gate.limits.Unsent && c.fullSince.Load() != 0 {
		c.fullSince.Store(0)
	}
	vtcodec.Pool.Put(b)
}
