package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// Config says how a token is driven. The zero value of each number is a default that suits the
// token: see [Selected.Profile].
type Config struct {
	// PIN logs in. It is not needed, and not looked at, where package identity has logged in
	// already in this process. Its owner wipes it after Open.
	PIN PIN

	// Manager is set in the one process that changes objects: it makes the canary if the
	// token has none yet.
	Manager bool

	// Appeals is set where callers ask the manager's process for a key that this one does not know: then
	// they are told so at once, and it is searched for meanwhile.
	Appeals bool

	// Before is called when Open has listed the token, before it changes anything on the token or in a
	// session. Nil: nothing has to be waited for. An error of it ends Open. Whoever searches the token in this
	// process meanwhile has ended when it returns: with SoftHSM 2.6.1 a generation beside a search fails.
	Before func() error

	// Slots is how many sessions serve, one operation each at a time if there are several. A token
	// that does n things at once is kept busy by half as many sessions more: each has something to
	// do between two answers. (16 at once of 1 ms, so at most 16,000 a second: 13,600 with 16
	// sessions, 15,400 with 24, on two busy cores.)
	Slots int

	// Copies is how many hot keys are copied into the session at most; less than 0: none.
	Copies int

	// Guard brackets changes, so that what is reported is on disk. Nil for tokens that see to
	// it themselves.
	Guard Guard
}

// Profile gives the numbers that suit a token. SoftHSM has one lock for the whole process:
// more than one thread makes it slower (GCM decrypt of 32 bytes on 1, 2, 4 threads: 76, 52,
// 60 thousand a second). A network HSM waits for its network.
func (s Selected) Profile() (slots, copies int) {
	if s.IsSoftHSM() {
		return 1, 16 << 10 // 9 kB each, and only for keys that are hot
	}
	return 8, 1024
}

// IsSoftHSM tells SoftHSM2, which is the embedded default.
func (s Selected) IsSoftHSM() bool {
	return s.Manufacturer == "SoftHSM project" && s.Model == "SoftHSM v2"
}

// A Token is an open token. It is a [hsm.Token], [hsm.Manager], [hsm.Agreer], [hsm.Marks] and
// [hsm.Examiner].
type Token struct {
	cfg    Config
	m      *module
	slotID uint

	queue  *queue
	index  *index
	canary record

	// use is held for reading while handles are used, and for writing while objects and
	// copies are destroyed or latched.
	use    sync.RWMutex
	copies copies

	manager chan func(*slot)           // to the goroutine that finds and changes objects
	opened  time.Time                  // when the attributes of all keys were read by Open; zero: List has told. That goroutine's alone
	marks   map[hsm.MarkOwner]keptMark // which that goroutine alone looks at: what this process made durable
	noKeys  []pkcs11.ObjectHandle      // what that goroutine has found besides keys at the start, until it writes a mark
	search  search
	can     capabilities
	others  uint64                    // see hsm.Info; of the manager's process
	kdfs    atomic.Pointer[[]hsm.KDF] // nil until tried

	dead    chan struct{} // closed when nothing is served any more
	failed  chan error
	failure atomic.Pointer[error]
	ending  sync.Once
	closing sync.Once
	closed  error          // how closing went
	running sync.WaitGroup // what finds and changes objects
}

var (
	_ hsm.Token    = (*Token)(nil)
	_ hsm.Manager  = (*Token)(nil)
	_ hsm.Agreer   = (*Token)(nil)
	_ hsm.Marks    = (*Token)(nil)
	_ hsm.Examiner = (*Token)(nil)
)

// Open opens the token, logs in if nobody in this process has, lists the key objects and
// judges their attributes. It tries the PIN once.
func Open(ctx context.Context, selected Selected, cfg Config) (*Token, error) {
	slots, copies := selected.Profile()
	if cfg.Slots <= 0 {
		cfg.Slots = slots
	}
	if cfg.Copies == 0 {
		cfg.Copies = copies
	}
	if cfg.Guard == nil {
		cfg.Guard = unguarded{}
	}
	m, err := acquire(selected.Module)
	if err != nil {
		return nil, err
	}
	t := &Token{
		cfg: cfg, m: m, queue: newQueue(cfg.Slots), index: newIndex(),
		manager: make(chan func(*slot)), marks: map[hsm.MarkOwner]keptMark{},
		dead: make(chan struct{}), failed: make(chan error, 1),
	}
	if err := t.start(ctx, selected); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return nil, errors.Join(err, t.Close(ctx))
	}
	return t, nil
}

func (t *Token) start(ctx context.Context, selected Selected) error {
	slotID, info, err := t.m.find(URI{Token: selected.Label, Serial: selected.Serial})
	if err != nil {
		return err
	}
	t.slotID = slotID
	manager, err := t.newSlot(pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	t.running.Go(func() { t.manage(manager) })
	if err := t.logIn(ctx, manager.session, info); err != nil {
		return err
	}
	if _, err := change(ctx, t, func(s *slot) (struct{}, error) { return struct{}{}, t.load(ctx, s) }); err != nil {
		return err
	}
	for range t.cfg.Slots {
		// Read-only: what serves cannot change an object on the token.
		s, err := t.newSlot(0)
		if err != nil {
			return err
		}
		t.queue.join(s)
	}
	return nil
}

// logIn logs in, once, unless somebody in this process has.
func (t *Token) logIn(ctx context.Context, session pkcs11.SessionHandle, info pkcs11.TokenInfo) error {
	state, err := t.m.ctx.GetSessionInfo(session)
	if err != nil {
		return failure("look at a session", err)
	}
	if state.State == pkcs11.CKS_RW_USER_FUNCTIONS {
		return nil
	}
	if len(t.cfg.PIN.b) == 0 {
		return fmt.Errorf("%w: nobody in this process has logged in to token %q", hsm.ErrPINMissing, info.Label)
	}
	if err := mayLogIn(info); err != nil {
		return err
	}
	_, err = guarded(ctx, t.cfg.Guard.Change, func() (struct{}, error) {
		return struct{}{}, t.m.ctx.Login(session, pkcs11.CKU_USER, string(t.cfg.PIN.b))
	})
	if err != nil {
		return failure("log in to token "+info.Label, err)
	}
	return nil
}

// load fills the index, finds or makes the canary, and tries what the token can do.
func (t *Token) load(ctx context.Context, s *slot) error {
	listing, err := t.firstListing(s)
	if err != nil {
		return err
	}
	t.opened = time.Now()
	t.index.replace(listing, t.opened)
	for _, r := range listing {
		if r.obj.ID == canaryID && r.obj.Fault == nil && r.obj.Usable && r.hasCheck {
			t.canary = r
			break
		}
	}
	if t.cfg.Before != nil {
		if err := t.cfg.Before(); err != nil {
			return err
		}
	}
	if t.canary.handle == 0 {
		if !t.cfg.Manager {
			return fmt.Errorf("%w: the token has no canary yet: its manager has to open it first", hsm.ErrKeyNotFound)
		}
		if t.canary, err = t.generate(ctx, s, canaryID, canaryLabel); err != nil {
			return fmt.Errorf("make the canary: %w", err)
		}
	}
	t.can, err = s.tryCapabilities()
	return err
}

// firstListing lists the key objects. In the manager's process it counts the others in the same search.
func (t *Token) firstListing(s *slot) ([]record, error) {
	if !t.cfg.Manager {
		return t.list(s, true)
	}
	listing, others, err := t.listOnce(s, attributes{attr(pkcs11.CKA_TOKEN, true)}, func(pkcs11.ObjectHandle) (record, bool) { return record{}, false })
	if err == nil && !t.index.settled(listing) {
		listing, err = t.list(s, true)
	}
	t.others = uint64(len(others)) + 1 // the canary is none of hsm.Manager's keys
	t.noKeys = others
	return listing, err
}

// Failed gives the error, once, after which this process cannot serve the token any more. Its
// owner ends or replaces the process; there is no way back inside of it.
func (t *Token) Failed() <-chan error { return t.failed }

// fail ends the token for everybody.
func (t *Token) fail(err error) {
	t.failure.CompareAndSwap(nil, &err)
	t.ending.Do(func() {
		t.failed <- *t.failure.Load()
		close(t.failed)
		close(t.dead)
	})
}

// gone is what callers get once the token has failed or was closed.
func (t *Token) gone() error {
	if err := t.failure.Load(); err != nil {
		return *err
	}
	return fmt.Errorf("%w: it was closed", hsm.ErrUnavailable)
}

// Close ends the slots, and with them their sessions and the session copies. It waits for
// calls into the module until ctx ends; if one still hangs then, the module is left as it is,
// since to finalise it would be a crash. Closing again answers the same.
func (t *Token) Close(ctx context.Context) error {
	t.closing.Do(func() { t.closed = t.close(ctx) })
	return t.closed
}

func (t *Token) close(ctx context.Context) error {
	t.ending.Do(func() {
		close(t.failed)
		close(t.dead)
	})
	ended := make(chan struct{})
	go func() {
		for _, s := range t.queue.close() {
			s.close()
		}
		t.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		t.copies.close(t)
		return t.m.release(false)
	case <-ctx.Done():
		_ = t.m.release(true)
		return fmt.Errorf("%w: a call into the module has not returned", hsm.ErrDeadline)
	}
}

// Do is [hsm.Token]'s. A token's only slot takes up to 64 operations of all callers at a time. A
// module that hangs holds up no caller whose ctx ends.
func (t *Token) Do(ctx context.Context, ops []hsm.Operation) {
	c, s := t.push(ops)
	if s != nil {
		go s.work(nil)
	}
	t.wait(ctx, c)
}

// Begin is Do for a caller who has something else to do than to wait. He works with the token
// himself while there is work, held up by a module that hangs. Then it returns nil if all
// operations have their results, and else which have none yet, in order, and a function that waits
// for those: for a search, or for another try after a while. The others are the caller's again.
func (t *Token) Begin(ops []hsm.Operation) (late []int, wait func(context.Context)) {
	c, s := t.push(ops)
	if s != nil {
		s.work(c)
	}
	if c == nil || c.finished() {
		t.wait(context.Background(), c)
		return nil, nil
	}
	return c.open(), func(ctx context.Context) { t.wait(ctx, c) }
}

// push queues operations. If there is a slot, the caller has to see to it that it works. Without a
// call they have their results.
func (t *Token) push(ops []hsm.Operation) (*call, *slot) {
	n := 0
	for i := range ops {
		op := &ops[i]
		op.Revealed, op.Sealed = nil, nil
		if op.Err = op.Validate(); op.Err == nil {
			n++
		}
	}
	if n == 0 {
		return nil, nil
	}
	c := newCall(ops, n)
	s, ok := t.queue.push(c, ops, n)
	if !ok {
		c.abandon(fmt.Errorf("%w: %d operations are waiting for it", hsm.ErrUnavailable, queueLimit))
		return nil, nil
	}
	return c, s
}

// wait waits for the results of a call.
func (t *Token) wait(ctx context.Context, c *call) {
	if c == nil {
		return
	}
	select {
	case <-c.done:
		c.recycle()
	case <-ctx.Done():
		c.abandon(fmt.Errorf("%w: %w", hsm.ErrDeadline, context.Cause(ctx)))
	case <-t.dead:
		c.abandon(t.gone())
	}
}

// Healthy is [hsm.Token]'s: one encryption with the canary.
func (t *Token) Healthy(ctx context.Context) error {
	answer := make(chan error, 1)
	t.queue.do(func(s *slot) {
		err := s.canary()
		if err != nil {
			t.fail(err)
		}
		answer <- err
	})
	select {
	case err := <-answer:
		return err
	case <-t.dead:
		return t.gone()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w: %w", hsm.ErrUnavailable, hsm.ErrDeadline, context.Cause(ctx))
	}
}

// Forget is [hsm.Token]'s. It destroys the keys' copies and asks the token nothing else: it is
// waited for when a tenant with many keys is closed.
func (t *Token) Forget(ctx context.Context, keys []hierarchy.ObjectID) error {
	_, err := change(ctx, t, func(*slot) (struct{}, error) {
		t.use.Lock()
		defer t.use.Unlock()
		err := t.copies.forget(t, keys)
		t.index.forget(keys)
		return struct{}{}, err
	})
	return err
}

// pause waits between tries: 1, 2, 4, 8 ms.
func pause(try int) { time.Sleep(time.Millisecond << try) }
