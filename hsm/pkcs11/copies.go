package pkcs11

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

const (
	// copyAfter is the use at which a key gets its copy that was tested without one. To make and verify
	// one costs what ten uses of it save, and it takes 9 kB of memory (SoftHSM 2.6.1).
	copyAfter = 8
	// copyIdle is how long a copy must have been idle before another key may have its place.
	// Without it, more busy keys than places would make and destroy a copy for each operation.
	copyIdle = time.Second
	// copyRetry is how long no place is looked for after none was found.
	copyRetry = 100 * time.Millisecond
)

// copies are the session copies of hot keys. They live in one session that no slot uses, and
// die with it. A copy is made with Token.use read-locked and destroyed with it write-locked,
// so that no operation runs on a copy while it goes.
type copies struct {
	mu      sync.Mutex
	session pkcs11.SessionHandle  // guarded by mu; 0: none
	orphans []pkcs11.ObjectHandle // guarded by mu; their entries are gone, they are not used

	n       atomic.Int64 // how many entries have one
	fullTil atomic.Int64 // unix nanoseconds until which no place is looked for
	off     atomic.Bool  // the token cannot copy
}

// wanted tells whether a key may ask for a copy now.
func (c *copies) wanted(t *Token, now time.Time) bool {
	return t.cfg.Copies > 0 && t.can.copy && !c.off.Load() &&
		(c.n.Load() < int64(t.cfg.Copies) || now.UnixNano() >= c.fullTil.Load())
}

// make copies keys, on a slot's thread.
//
// No find runs meanwhile: SoftHSM 2.6.1 gives a copy the attributes of its original one by one,
// CKA_TOKEN among them, before it applies the template. Of finds beside copying one in five saw
// such a copy as a second key object under the ID, whole or in part. Nobody waits for this: while
// the manager is at work, the token objects serve.
func (c *copies) make(s *slot, keys []*entry) {
	t := s.t
	if len(keys) == 0 || !t.m.changes.TryLock() {
		return
	}
	defer t.m.changes.Unlock()
	c.sweep(t)
	for _, e := range keys {
		if c.n.Load() >= int64(t.cfg.Copies) && !c.evict(t) {
			return
		}
		err := c.makeOne(s, e)
		var code pkcs11.Error
		switch errors.As(err, &code); {
		case err == nil:
		case sessionLost(code):
			c.restart(t)
			return
		case code == pkcs11.CKR_FUNCTION_NOT_SUPPORTED:
			c.off.Store(true)
			return
		case !transient(code) && !moduleLost(code): // those say nothing about the key
			t.index.mu.Lock()
			e.noCopy = true // the token object serves
			t.index.mu.Unlock()
		}
	}
}

// first copies a key that was not tested yet, as long as there is room, and tests the copy: with 10,000 keys
// that is what the first minutes of a node consist of. A copy and its test cost SoftHSM 2.6.1 two looks at files,
// the test of the token object ten, and each use of it two more. The token object itself stays untested, and is
// tested before its own first use, should the copy go. 0: there is no copy, for whatever reason, and the token
// object is to be tested, which also finds out what the reason means.
//
// The caller holds Token.use for reading, and puts the copy into the entry, which does not show it before.
func (c *copies) first(s *slot, e *entry, handle pkcs11.ObjectHandle, obj hsm.Object) pkcs11.ObjectHandle {
	t := s.t
	if !c.wanted(t, time.Now()) || c.n.Load() >= int64(t.cfg.Copies) || !t.m.changes.TryLock() {
		return 0
	}
	defer t.m.changes.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open(t) != nil {
		return 0
	}
	made, err := t.m.ctx.CopyObject(c.session, handle, copyTemplate())
	if err != nil {
		return 0
	}
	if err := c.accept(s, made, obj); err != nil {
		_ = t.m.ctx.DestroyObject(c.session, made)
		if errors.Is(err, hsm.ErrKeyRefused) {
			t.index.mu.Lock()
			e.noCopy = true // a token that weakens what it copies
			t.index.mu.Unlock()
		}
		return 0
	}
	return made
}

// accept judges a copy as a key is judged before its first use: no attribute weaker than it may be, the check
// value that the key has, and a known-answer test.
func (c *copies) accept(s *slot, made pkcs11.ObjectHandle, obj hsm.Object) error {
	r, err := s.t.m.read(c.session, made)
	switch {
	case err != nil:
		return err
	case r.obj.Fault != nil:
		return r.obj.Fault
	case !r.obj.Usable || r.obj.ID != obj.ID || r.obj.Check != obj.Check:
		return fmt.Errorf("%w: its copy is another key", hsm.ErrKeyRefused)
	}
	return s.test(made, obj)
}

func (c *copies) makeOne(s *slot, e *entry) error {
	t := s.t
	t.use.RLock()
	defer t.use.RUnlock()
	c.mu.Lock()
	defer c.mu.Unlock()

	t.index.mu.RLock()
	handle := e.handle
	fit := t.index.byID[e.id] == e && e.copy == 0 && e.tested && e.obj.Usable && e.obj.Fault == nil && !e.stale
	t.index.mu.RUnlock()
	if !fit {
		return nil
	}
	if err := c.open(t); err != nil {
		return err
	}
	made, err := t.m.ctx.CopyObject(c.session, handle, copyTemplate())
	if err != nil {
		return failure("copy a key", err)
	}
	if err := c.verify(s, made, handle); err != nil {
		_ = t.m.ctx.DestroyObject(c.session, made)
		return err
	}
	t.index.mu.Lock()
	defer t.index.mu.Unlock()
	if t.index.byID[e.id] != e { // another slot has found it gone
		c.orphans = append(c.orphans, made)
		return nil
	}
	e.copy = made
	c.n.Add(1)
	return nil
}

// verify judges a copy as its original was judged: no attribute weaker, and the same key.
func (c *copies) verify(s *slot, made, original pkcs11.ObjectHandle) error {
	r, err := s.t.m.read(c.session, made)
	if err != nil {
		return err
	}
	if r.obj.Fault != nil {
		return r.obj.Fault
	}
	want, err := s.checkValue(original)
	if err != nil {
		return err
	}
	got, err := s.checkValue(made)
	if err != nil {
		return err
	}
	if got != want || !r.obj.Usable {
		return fmt.Errorf("%w: its copy is another key", hsm.ErrKeyRefused)
	}
	return nil
}

// open opens the session that the copies live in. It can change nothing on the token. The
// caller holds mu.
func (c *copies) open(t *Token) error {
	if c.session != 0 {
		return nil
	}
	session, err := t.m.ctx.OpenSession(t.slotID, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return failure("open a session", err)
	}
	c.session = session
	return nil
}

// restart forgets all copies after a session was lost. Whose it was is not asked: it is rare, and
// copies are made again.
func (c *copies) restart(t *Token) {
	t.use.Lock()
	defer t.use.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset(t)
}

// reset ends the session and all copies with it. The caller holds mu, and Token.use for writing:
// nothing runs on a copy, whose handle the token may give to another object now.
func (c *copies) reset(t *Token) {
	if c.session != 0 {
		_ = t.m.ctx.CloseSession(c.session) // it may be gone already
	}
	c.session, c.orphans = 0, nil
	t.index.mu.Lock()
	defer t.index.mu.Unlock()
	for _, e := range t.index.byID {
		e.copy = 0
	}
	c.n.Store(0)
}

// lost is told of a key whose copy the token does not know any more: its session is gone, and
// all copies with it. Their handles are forgotten at once, since a token may give them to
// other objects.
func (c *copies) lost(t *Token, e *entry) {
	t.use.Lock()
	defer t.use.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	t.index.mu.RLock()
	known := e.copy != 0
	t.index.mu.RUnlock()
	if known {
		c.reset(t)
	}
}

// evict makes room by destroying the copy that was idle for longest.
func (c *copies) evict(t *Token) bool {
	now := time.Now().UnixNano()
	oldest, idlest := now-int64(copyIdle), (*entry)(nil)
	t.index.mu.RLock()
	for _, e := range t.index.byID {
		if used := e.lastUse.Load(); e.copy != 0 && used < oldest {
			oldest, idlest = used, e
		}
	}
	t.index.mu.RUnlock()
	if idlest == nil {
		c.fullTil.Store(now + int64(copyRetry))
		return false
	}
	t.use.Lock()
	defer t.use.Unlock()
	return c.forget(t, []hierarchy.ObjectID{idlest.id}) == nil
}

// forget destroys the copies of these keys. The caller holds Token.use for writing. Whatever
// the token answers, the copies are not used again.
func (c *copies) forget(t *Token, keys []hierarchy.ObjectID) error {
	t.index.mu.Lock()
	var handles []pkcs11.ObjectHandle
	for _, id := range keys {
		if e := t.index.byID[id]; e != nil && e.copy != 0 {
			handles = append(handles, e.copy)
			e.copy = 0
			e.uses.Store(0)
			c.n.Add(-1)
		}
	}
	t.index.mu.Unlock()
	return c.destroy(t, handles)
}

// destroy destroys copies. The caller holds Token.use for writing.
func (c *copies) destroy(t *Token, handles []pkcs11.ObjectHandle) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, h := range handles {
		err := t.m.ctx.DestroyObject(c.session, h)
		var code pkcs11.Error
		if err == nil || errors.As(err, &code) && transient(code) {
			continue // destroyed, or gone already
		}
		if sessionLost(code) {
			c.reset(t)
			return nil // gone with their session
		}
		errs = append(errs, failure("destroy a session copy", err))
	}
	return errors.Join(errs...)
}

// orphan takes copies whose entries are gone; they are destroyed at the next occasion.
func (c *copies) orphan(handles []pkcs11.ObjectHandle) {
	if len(handles) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orphans = append(c.orphans, handles...)
	c.n.Add(-int64(len(handles)))
}

// sweep destroys the orphans.
func (c *copies) sweep(t *Token) {
	c.mu.Lock()
	handles := c.orphans
	c.orphans = nil
	c.mu.Unlock()
	if len(handles) == 0 {
		return
	}
	t.use.Lock()
	defer t.use.Unlock()
	_ = c.destroy(t, handles)
}

// close ends the session, and the copies with it.
func (c *copies) close(t *Token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != 0 {
		_ = t.m.ctx.CloseSession(c.session)
		c.session = 0
	}
}
