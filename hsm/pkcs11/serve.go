package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// A flight is an operation that was given to the module: its steps, and its keys in the order
// of the steps that use them.
type flight struct {
	piece
	first, steps int // in the machine
	keys         int // first of its keys in slot.uses
}

// A use is a key that an operation uses, and whether its session copy was chosen.
type use struct {
	key    *entry
	copied bool
}

// coldPiece waits for one of its keys to be looked at.
type coldPiece struct {
	piece
	key *entry
}

// trouble is a flight that failed, and how.
type trouble struct {
	piece
	key      *entry // whose key the failed step used; nil for randomness
	viaCopy  bool
	code     pkcs11.Error
	maybeTag bool // the step opened, and its code may mean a tag that does not fit
}

// work serves what waits until nothing does, or until a call has all its results: its caller, who
// works for himself here, leaves then.
func (s *slot) work(own *call) {
	for {
		if own != nil && own.finished() {
			s.t.queue.leave(s)
			return
		}
		pieces, job, ok := s.t.queue.take(s, s.pieces[:0])
		if !ok {
			return
		}
		if job != nil {
			job(s)
			continue
		}
		s.pieces = pieces
		s.serve(pieces)
		clear(s.pieces) // no call is kept alive by a slot that idles
	}
}

// serve runs one chunk: it writes the operations into the machine, runs them in one crossing,
// hands the results over, and only then looks after what did not work.
func (s *slot) serve(pieces []piece) {
	if err := s.refill(); err != nil {
		if err = s.reopen(); err == nil {
			err = s.refill()
		}
		if err != nil {
			s.t.fail(err)
			return
		}
	}
	s.load(pieces)
	s.m.run(s.session)
	s.t.use.RUnlock() // taken by load
	s.deliver()
	s.m.reset()

	s.lookAfterTrouble()
	s.lookAtCold()
	s.lookForMissing()
	s.t.copies.make(s, s.hot)
}

// lookForMissing has the token searched for keys that are not known.
func (s *slot) lookForMissing() {
	switch {
	case len(s.missing) == 0:
	case s.t.cfg.Appeals:
		for _, p := range s.missing {
			p.fail(fmt.Errorf("%w: it was not there when the token was last searched", hsm.ErrKeyNotFound))
		}
		s.t.searchFor(nil)
	default:
		s.t.searchFor(s.missing)
	}
}

// load writes what can run into the machine, and leaves Token.use read-locked.
func (s *slot) load(pieces []piece) {
	s.flights, s.uses, s.cold, s.missing, s.hot = s.flights[:0], s.uses[:0], s.cold[:0], s.missing[:0], s.hot[:0]
	s.m.reset()
	now := time.Now()
	s.t.use.RLock()
	s.t.index.mu.RLock()
	defer s.t.index.mu.RUnlock()
	var h held
	defer h.release()
	for i, p := range pieces {
		op := h.op(p)
		if op == nil {
			continue
		}
		if !s.m.fits(1+len(op.To), room(op)) {
			s.t.queue.retry(pieces[i:]...)
			return
		}
		keys := len(s.uses)
		switch cold, missing, err := s.resolve(op, p, now); {
		case err != nil:
			op.Err = err
			h.finish()
		case missing:
			s.missing = append(s.missing, p)
		case cold != nil:
			s.cold = append(s.cold, coldPiece{p, cold})
		default:
			s.encode(op, p, keys, now)
			continue
		}
		s.uses = s.uses[:keys]
	}
}

// room is how many bytes of the machine an operation takes at most.
func room(op *hsm.Operation) int {
	size := size(op)
	n := size
	if op.Open != nil {
		n = hsm.IVSize + len(op.Open.AAD) + 2*len(op.Open.Ciphertext)
	}
	for i := range op.To {
		n += hsm.IVSize + len(op.To[i].AAD) + size + hsm.TagSize
	}
	return n
}

// size is how many bytes the operation's data key has.
func size(op *hsm.Operation) int {
	switch {
	case op.Open != nil:
		return len(op.Open.Ciphertext) - hsm.TagSize
	case op.Random != 0:
		return op.Random
	}
	return len(op.Plaintext)
}

// resolve appends the operation's keys to s.uses, in the order of use.
func (s *slot) resolve(op *hsm.Operation, p piece, now time.Time) (cold *entry, missing bool, err error) {
	if op.Open != nil {
		if cold, missing, err = s.key(op.Open.Key, p, now); cold != nil || missing || err != nil {
			return cold, missing, err
		}
	}
	for i := range op.To {
		if cold, missing, err = s.key(op.To[i].Key, p, now); cold != nil || missing || err != nil {
			return cold, missing, err
		}
	}
	return nil, false, nil
}

// key resolves one reference. The caller holds index.mu for reading.
func (s *slot) key(ref hsm.KeyRef, p piece, now time.Time) (cold *entry, missing bool, err error) {
	x := s.t.index
	e := x.byID[ref.ID]
	switch {
	case e == nil:
		if since, ok := x.absent[ref.ID]; p.searched || ok && now.Sub(since) < absentFor {
			return nil, false, fmt.Errorf("%w: %s", hsm.ErrKeyNotFound, ref.ID)
		}
		return nil, true, nil
	case e.stale && !p.rechecked:
		return e, false, nil
	case e.obj.Fault != nil:
		return nil, false, fmt.Errorf("key %s: %w", ref.ID, e.obj.Fault)
	case !e.obj.Usable:
		if !p.rechecked && now.Sub(e.checked) > latchedFor {
			return e, false, nil
		}
		return nil, false, fmt.Errorf("%w: %s", hsm.ErrKeyLatched, ref.ID)
	case e.untested():
		return e, false, nil
	case e.obj.Check != ref.Check:
		return nil, false, fmt.Errorf("%w: %s has the check value %s, not %s", hsm.ErrKeyRefused, ref.ID, e.obj.Check, ref.Check)
	case e.obj.Bridge && !ref.Bridge:
		return nil, false, fmt.Errorf("%w: %s was derived (CKA_LOCAL is 0), a KEK is generated", hsm.ErrKeyRefused, ref.ID)
	case !e.obj.Bridge && ref.Bridge:
		return nil, false, fmt.Errorf("%w: %s was generated (CKA_LOCAL is 1), a bridge is derived", hsm.ErrKeyRefused, ref.ID)
	}
	s.uses = append(s.uses, use{key: e})
	return nil, false, nil
}

// encode writes one operation into the machine. Its keys are s.uses from keys on.
func (s *slot) encode(op *hsm.Operation, p piece, keys int, now time.Time) {
	f := flight{piece: p, first: s.m.n, keys: keys}
	next := keys
	handle := func() pkcs11.ObjectHandle {
		u := &s.uses[next]
		next++
		return s.handle(u, now)
	}
	var source int
	switch {
	case op.Open != nil:
		source = s.m.open(handle(), op.Open.IV, op.Open.AAD, op.Open.Ciphertext)
	case op.Random != 0:
		source = s.m.random(op.Random)
	default:
		source = s.m.given(op.Plaintext)
	}
	n := size(op)
	for i := range op.To {
		s.m.seal(handle(), s.iv(), op.To[i].AAD, source, n)
	}
	f.steps = s.m.n - f.first
	s.flights = append(s.flights, f)
}

// handle chooses the session copy, if there is one, and notes a key that should have one.
func (s *slot) handle(u *use, now time.Time) pkcs11.ObjectHandle {
	e := u.key
	e.lastUse.Store(now.UnixNano())
	if e.copy != 0 {
		u.copied = true
		return e.copy
	}
	if e.uses.Add(1) >= copyAfter && !e.noCopy && s.t.copies.wanted(s.t, now) && !slices.Contains(s.hot, e) {
		s.hot = append(s.hot, e)
	}
	return e.handle
}

// deliver hands the results to the callers who still wait.
func (s *slot) deliver() {
	s.trouble = s.trouble[:0]
	var h held
	for _, f := range s.flights {
		failed := -1
		for i := f.first; i < f.first+f.steps; i++ {
			if code, _ := s.m.rv(i); code != 0 && !s.m.skipped(i) {
				failed = i
				break
			}
		}
		if failed >= 0 {
			s.trouble = append(s.trouble, s.diagnose(f, failed))
			continue
		}
		if op := h.op(f.piece); op != nil {
			op.Err = s.result(op, f)
			h.finish()
		}
	}
	h.release()
}

// result copies what the module gave into the operation.
func (s *slot) result(op *hsm.Operation, f flight) error {
	sealed := make([]hsm.Sealed, 0, len(op.To))
	for i := range op.To {
		step := f.first + 1 + i
		iv, ciphertext := s.m.iv(step), s.m.out(step)
		if len(iv) != hsm.IVSize || len(ciphertext) <= hsm.TagSize {
			return fmt.Errorf("%w: it sealed with an IV of %d bytes and gave %d bytes", hsm.ErrUnsupported, len(iv), len(ciphertext))
		}
		b := append(make([]byte, 0, len(iv)+len(ciphertext)), iv...)
		b = append(b, ciphertext...)
		sealed = append(sealed, hsm.Sealed{IV: b[:len(iv):len(iv)], Ciphertext: b[len(iv):]})
	}
	if len(sealed) > 0 {
		op.Sealed = sealed
	}
	if op.Reveal {
		op.Revealed = bytes.Clone(s.m.out(f.first))
	}
	return nil
}

func (s *slot) diagnose(f flight, step int) trouble {
	code, atInit := s.m.rv(step)
	t := trouble{piece: f.piece, code: code, maybeTag: s.m.isOpen(step) && !atInit && perhapsTag(code)}
	key := f.keys + step - f.first
	if !s.m.isOpen(f.first) {
		key-- // the first step uses no key
	}
	if key >= f.keys {
		t.key, t.viaCopy = s.uses[key].key, s.uses[key].copied
	}
	return t
}

// lookAfterTrouble retries what may be retried, and ends the rest with what its code means.
func (s *slot) lookAfterTrouble() {
	if len(s.trouble) == 0 {
		return
	}
	asked, alive := false, error(nil)
	reopened := false
	for _, p := range s.trouble {
		err := failure("key operation", p.code)
		switch {
		case sessionLost(p.code):
			if !reopened {
				reopened = true
				if err := s.reopen(); err != nil {
					s.t.fail(err)
					return
				}
			}
			if p.sessions++; p.sessions > 1 {
				p.fail(err)
			} else {
				s.t.queue.retry(p.piece)
			}
		case moduleLost(p.code):
			s.t.fail(fmt.Errorf("%w: %w", hsm.ErrUnavailable, p.code))
			return
		case transient(p.code):
			s.later(p, err)
		case perhapsTag(p.code):
			// Asked after the failure, and once for the whole chunk: an earlier answer would
			// vouch for nothing, and garbage costs no more than twice what an operation does.
			if !asked {
				asked, alive = true, s.canary()
			}
			switch {
			case alive != nil:
				s.t.fail(alive)
				return
			case p.maybeTag:
				p.fail(fmt.Errorf("%w (%w)", hsm.ErrTagMismatch, p.code))
			default:
				p.fail(err)
			}
		default:
			p.fail(err)
		}
	}
}

// later tries again what failed with a code that may pass: after 1, 2, 4 and 8 ms, then once
// more after the key's attributes were read again.
func (s *slot) later(p trouble, err error) {
	switch {
	case p.viaCopy:
		// The copy went, not the key: its session was lost.
		s.t.copies.lost(s.t, p.key)
		if p.tries++; p.tries > 8 {
			p.fail(err)
			return
		}
		s.t.queue.retry(p.piece)
	case p.rechecked || p.key == nil:
		p.fail(err)
	case p.tries >= 4:
		s.t.index.mu.Lock()
		p.key.stale = true
		s.t.index.mu.Unlock()
		s.t.queue.retry(p.piece)
	default:
		wait := time.Millisecond << p.tries
		p.tries++
		time.AfterFunc(wait, func() { s.t.queue.retry(p.piece) })
	}
}

// lookAtCold tests keys before their first use, and reads those again that were latched or
// gone when they were last looked at.
func (s *slot) lookAtCold() {
	for i, c := range s.cold {
		if c.key == nil {
			continue
		}
		err := s.look(c.key)
		for j := i; j < len(s.cold); j++ {
			p := &s.cold[j]
			if p.key != c.key {
				continue
			}
			s.afterLook(p.piece, c.key, err)
			if j > i {
				p.key = nil
			}
		}
	}
}

func (s *slot) afterLook(p piece, e *entry, err error) {
	var code pkcs11.Error
	switch {
	case err == nil:
		p.rechecked = true
		s.t.queue.retry(p)
	case errors.As(err, &code) && moduleLost(code):
		s.t.fail(err)
	case errors.As(err, &code) && (transient(code) || sessionLost(code)):
		if sessionLost(code) {
			if err := s.reopen(); err != nil {
				s.t.fail(err)
				return
			}
		}
		s.later(trouble{piece: p, key: e, code: code}, err)
	default:
		p.fail(err)
	}
}

// look reads a key's attributes again, and tests it if it is usable and not tested yet. What it
// finds is in the entry; an error is the token's.
func (s *slot) look(e *entry) error {
	t := s.t
	t.use.RLock()
	defer t.use.RUnlock()
	t.index.mu.RLock()
	handle, twins, tested, computed := e.handle, e.twins, !e.untested(), !e.hasCheck
	check, plain := e.obj.Check, e.hasCheck && len(e.twins) == 0 && e.copy == 0 && !e.noCopy
	t.index.mu.RUnlock()

	r, err := t.m.read(s.session, handle)
	if errors.Is(err, hsm.ErrKeyNotFound) {
		// Under this handle there is nothing any more: forget it, and a search will tell.
		t.index.mu.Lock()
		orphans := t.index.drop(e, nil)
		t.index.mu.Unlock()
		t.copies.orphan(orphans)
		return nil
	}
	if err != nil {
		return err
	}
	if computed {
		r.obj.Check, r.hasCheck = check, false
	}
	fault, made := r.obj.Fault, pkcs11.ObjectHandle(0)
	if fault == nil && r.obj.Usable && !tested {
		// The check value of a bridge proves nothing of its copy: see test.
		if plain && !r.obj.Bridge {
			made = t.copies.first(s, e, handle, r.obj)
		}
		if made == 0 {
			err = s.test(handle, r.obj, twins...)
		}
		switch {
		case errors.Is(err, hsm.ErrKeyRefused), errors.Is(err, hsm.ErrAmbiguous):
			fault = err
		case err != nil:
			return err
		}
	}
	if spare := s.noteLook(e, handle, r, fault, made, tested); spare != 0 {
		t.copies.orphan([]pkcs11.ObjectHandle{spare})
	}
	return nil
}

// noteLook takes what a look has found into the entry, unless that is of another object now. A copy that was
// made counts from now on; one that nobody needs is given back.
func (s *slot) noteLook(e *entry, handle pkcs11.ObjectHandle, r record, fault error, made pkcs11.ObjectHandle, tested bool) (spare pkcs11.ObjectHandle) {
	t := s.t
	t.index.mu.Lock()
	defer t.index.mu.Unlock()
	if made != 0 {
		t.copies.n.Add(1)
	}
	if e.handle != handle || t.index.byID[e.id] != e {
		return made
	}
	e.obj.Usable, e.obj.Fault, e.checked, e.stale = r.obj.Usable, fault, time.Now(), false
	t.index.records[handle] = r
	switch {
	case fault != nil:
		e.tested, e.proved = false, false
	case made != 0 && e.copy == 0:
		e.copy, e.proved = made, true
		return 0
	case made == 0 && !tested && r.obj.Usable:
		e.tested = true
	}
	return made
}
