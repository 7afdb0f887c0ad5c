package socketapi

import (
	"context"
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
	alien  atomic.Int64 // of the calls: those of strangers

	refusedConns, refusedCalls atomic.Uint64

	mu        sync.Mutex
	conns     int
	strangers int // of the connections
	uids      map[uint32]*account

	// Refusals are made once: a flood of them has to be cheap.
	tooManyCalls, tooManyOps, uidCalls, uidOps, uidBytes, strange, unread, uidUnread *apierr.Error
}

// account is what one uid holds.
type account struct {
	calls  atomic.Int64
	ops    atomic.Int64
	bytes  atomic.Int64  // of messages that are not answered yet
	unsent atomic.Int64  // bytes, of all its connections
	debt   atomic.Int64  // Unix nanoseconds until when its given-up calls count
	called atomic.Int64  // Unix nanoseconds of its last call
	freed  chan struct{} // of size 1: there may be room for whoever waits in turn

	// Guarded by the gate's mutex.
	conns     int
	principal hierarchy.Principal // who connected last
	rate      bucket
}

// idle accounts may be forgotten. One without connections may still have calls that run, and
// counts them until they end, and what it has opened of late: connecting again buys no second
// allowance.
func (a *account) idle(now time.Time, limits *Limits) bool {
	return a.conns == 0 && a.calls.Load() == 0 && a.ops.Load() == 0 &&
		a.bytes.Load() == 0 && a.debt.Load() <= now.UnixNano() && a.rate.full(now, limits)
}

// bucket bounds how often a uid connects: it holds ConnsPerUID, and gains ConnsPerSecond. Who finds
// it empty waits for what it gains, half of the time that a handshake may take and no longer: a
// script that runs one command after the other is slowed down, not refused.
type bucket struct {
	spent float64
	at    time.Time
}

func (b *bucket) refill(now time.Time, limits *Limits) {
	b.spent = max(0, b.spent-now.Sub(b.at).Seconds()*float64(limits.ConnsPerSecond))
	b.at = now
}

func (b *bucket) full(now time.Time, limits *Limits) bool {
	b.refill(now, limits)
	return b.spent == 0
}

func (b *bucket) take(now time.Time, limits *Limits) (wait time.Duration, ok bool) {
	b.refill(now, limits)
	if over := b.spent + 1 - float64(limits.ConnsPerUID); over > 0 {
		wait = time.Duration(over / float64(limits.ConnsPerSecond) * float64(time.Second))
	}
	if wait > limits.HandshakeTimeout/2 {
		return 0, false
	}
	b.spent++
	return wait, true
}

// conn is one connection of a known peer. It is also the pool that the bytes of its answers
// come from, so that it knows how many of them nobody has read.
type conn struct {
	*net.UnixConn
	principal hierarchy.Principal
	groups    []uint32
	gate      *gate
	account   *account
	stranger  bool          // as it was admitted
	wait      time.Duration // before anything is read
	peeked    []byte        // read to see what it speaks, and to be read again
	close     sync.Once
	gone      chan struct{} // closed by Close
	owing     sync.Mutex    // to count bytes twice as one
	unsent    atomic.Int64  // bytes
	closed    bool          // guarded by owing: they no longer count for the uid
	fullSince atomic.Int64  // Unix nanoseconds; 0: unsent was below its limit when last looked at
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
		uidBytes:     refusal(hierarchy.ErrRateLimited, retry, "this uid has %d bytes of messages in flight", l.BytesPerUID),
		strange:      refusal(hierarchy.ErrRateLimited, retry, "uids that no service names have their %d calls open, or this one has its %d", l.StrangerCalls, l.StrangerCallsPerUID),
		unread:       refusal(hierarchy.ErrRateLimited, "read the answers", "this connection has %d bytes of answers that were not read", l.Unsent),
		uidUnread:    refusal(hierarchy.ErrRateLimited, "read the answers", "this uid has %d bytes of answers that were not read", l.UnsentPerUID),
	}
}

// admit takes a connection in, or says that there are too many.
func (g *gate) admit(c *net.UnixConn) (*conn, error) {
	p, groups, err := credentialsOf(c)
	if err != nil {
		return nil, err
	}
	known, now := g.known(p), time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.account(p, now)
	switch {
	case a.conns >= g.limits.ConnsPerUID:
		return nil, fmt.Errorf("%w: uid %d has %d connections", hierarchy.ErrRateLimited, p.UID, a.conns)
	case !known && g.strangers >= g.limits.StrangerConns:
		return nil, fmt.Errorf("%w: uids that no service names have %d connections", hierarchy.ErrCapacity, g.strangers)
	case g.conns >= g.limits.Conns && !(known && a.conns < g.limits.ReservedConns):
		return nil, fmt.Errorf("%w: %d connections", hierarchy.ErrCapacity, g.conns)
	}
	wait, ok := a.rate.take(now, &g.limits)
	if !ok {
		return nil, fmt.Errorf("%w: uid %d connects more than %d times a second", hierarchy.ErrRateLimited, p.UID, g.limits.ConnsPerSecond)
	}
	g.conns++
	if !known {
		g.strangers++
	}
	a.conns++
	a.principal = p
	return &conn{UnixConn: c, principal: p, groups: groups, gate: g, account: a, stranger: !known, wait: wait, gone: make(chan struct{})}, nil
}

// account finds a uid's. The caller holds mu.
func (g *gate) account(p hierarchy.Principal, now time.Time) *account {
	a := g.uids[p.UID]
	if a == nil {
		if len(g.uids) > g.limits.Conns {
			maps.DeleteFunc(g.uids, func(_ uint32, a *account) bool { return a.idle(now, &g.limits) })
		}
		a = &account{freed: make(chan struct{}, 1), principal: p}
		g.uids[p.UID] = a
	}
	return a
}

func (g *gate) known(p hierarchy.Principal) bool {
	return g.limits.Known == nil || g.limits.Known(p)
}

func (c *conn) Close() error {
	c.close.Do(func() {
		close(c.gone)
		// What gRPC has lost count of, or never sends now, is not held against the uid.
		c.owing.Lock()
		c.account.unsent.Add(-c.unsent.Load())
		c.closed = true
		c.owing.Unlock()

		g := c.gate
		g.mu.Lock()
		defer g.mu.Unlock()
		g.conns--
		if c.stranger {
			g.strangers--
		}
		c.account.conns--
	})
	return c.UnixConn.Close()
}

// pause lets who connects too often wait, once.
func (c *conn) pause() {
	select {
	case <-time.After(c.wait):
	case <-c.gone:
	}
	c.wait = 0
}

// enter opens a call, before anything of it is read; leave closes it.
func (c *conn) enter() error {
	if c.unsent.Load() > c.gate.limits.Unsent {
		return c.gate.no(c.full())
	}
	if c.account.unsent.Load() > c.gate.limits.UnsentPerUID {
		return c.gate.no(c.gate.uidUnread)
	}
	mine := c.account.calls.Add(1)
	if mine > int64(c.gate.limits.CallsPerUID) {
		c.account.calls.Add(-1)
		return c.gate.no(c.gate.uidCalls)
	}
	all, alien := c.gate.calls.Add(1), int64(0)
	if c.stranger {
		alien = c.gate.alien.Add(1)
	}
	if err := c.over(mine, all, alien); err != nil {
		c.end()
		return c.gate.no(err)
	}
	return nil
}

// no counts a refusal.
func (g *gate) no(err error) error {
	g.refusedCalls.Add(1)
	return err
}

// over tells whether a call is too many. A service may name by now who was a stranger.
func (c *conn) over(mine, all, alien int64) error {
	l := &c.gate.limits
	switch {
	case all > int64(l.Calls) && !(mine <= int64(l.ReservedCalls) && c.gate.known(c.principal)):
		return c.gate.tooManyCalls
	case c.stranger && (mine > int64(l.StrangerCallsPerUID) || alien > int64(l.StrangerCalls)) && !c.gate.known(c.principal):
		return c.gate.strange
	}
	return nil
}

// enterAlone opens a call of one message. Where that could only be refused, it is not read.
func (c *conn) enterAlone() error {
	if c.account.ops.Load() >= int64(c.gate.limits.OpsPerUID) {
		return c.gate.no(c.gate.uidOps)
	}
	return c.enter()
}

func (c *conn) leave(ctx context.Context) {
	c.gaveUp(ctx)
	c.end()
}

func (c *conn) end() {
	if c.stranger {
		c.gate.alien.Add(-1)
	}
	c.account.calls.Add(-1)
	c.gate.calls.Add(-1)
}

// hold counts the bytes of a message that was read, and drop no longer.
func (c *conn) hold(n int) error {
	if !c.mayHold(n) {
		return c.gate.no(c.gate.uidBytes)
	}
	return nil
}

func (c *conn) mayHold(n int) bool {
	if c.account.bytes.Add(int64(n)) <= c.gate.limits.BytesPerUID {
		return true
	}
	c.account.bytes.Add(-int64(n))
	return false
}

func (c *conn) drop(n int) { c.account.bytes.Add(-int64(n)) }

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

// take lets n operations in, when it is this uid's turn; give lets them out.
func (c *conn) take(ctx context.Context, n int) error {
	mine, err := c.turn(ctx, int64(n))
	if err != nil {
		return apierr.From(err)
	}
	if mine > int64(c.gate.limits.OpsPerUID) {
		c.account.ops.Add(-int64(n))
		return c.gate.no(c.gate.uidOps)
	}
	if c.gate.ops.Add(int64(n)) > int64(c.gate.limits.Ops) && !(mine <= int64(c.gate.limits.ReservedOps) && c.gate.known(c.principal)) {
		c.give(n)
		return c.gate.no(c.gate.tooManyOps)
	}
	return nil
}

func (c *conn) give(n int) {
	c.account.ops.Add(-int64(n))
	c.gate.ops.Add(-int64(n))
	c.account.wake()
}

// Get and Put make the connection a mem.BufferPool. gRPC gives a buffer back when its bytes
// have gone to the socket, or its call has ended.
func (c *conn) Get(n int) *[]byte {
	c.owe(int64(n))
	return vtcodec.Pool.Get(n)
}

func (c *conn) Put(b *[]byte) {
	if c.owe(-int64(len(*b))) <= c.gate.limits.Unsent {
		if c.fullSince.Load() != 0 {
			c.fullSince.Store(0)
		}
		c.account.wake()
	}
	vtcodec.Pool.Put(b)
}

// owe counts bytes of answers, and returns how many this connection has not read.
func (c *conn) owe(n int64) (unsent int64) {
	c.owing.Lock()
	defer c.owing.Unlock()
	if !c.closed {
		c.account.unsent.Add(n)
	}
	return c.unsent.Add(n)
}
