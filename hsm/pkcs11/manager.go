package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// manage is the goroutine that finds and changes objects. Its jobs take module.changes: one runs
// at a time, of all tokens of the module.
func (t *Token) manage(s *slot) {
	defer s.close()
	for {
		select {
		case job := <-t.manager:
			job(s)
		case <-t.dead:
			return
		}
	}
}

// change runs a job on the manager's goroutine and waits for it until ctx ends. A job that
// runs by then is not interrupted: what it changed stays changed, and is found by a retry. A
// job whose session was lost is run again, once, so every job can be run again.
func change[T any](ctx context.Context, t *Token, job func(*slot) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	answer := make(chan result, 1)
	run := func(s *slot) {
		if ctx.Err() != nil {
			return
		}
		t.m.changes.Lock()
		value, err := job(s)
		if t.judge(s, err) {
			value, err = job(s)
			t.judge(s, err)
		}
		t.m.changes.Unlock()
		answer <- result{value, err}
	}
	select {
	case t.manager <- run:
	case <-ctx.Done():
		return none, fmt.Errorf("%w: %w", hsm.ErrDeadline, context.Cause(ctx))
	case <-t.dead:
		return none, t.gone()
	}
	select {
	case r := <-answer:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("%w: %w", hsm.ErrDeadline, context.Cause(ctx))
	}
}

// judge looks at how a job ended: a session that is lost is replaced, and a module that is
// lost ends the token. It tells whether the job should be tried again.
func (t *Token) judge(s *slot, err error) (again bool) {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return false
	}
	switch {
	case moduleLost(code):
		t.fail(err)
	case sessionLost(code):
		if err := s.reopen(); err != nil {
			t.fail(err)
			return false
		}
		return true
	}
	return false
}

// settleTries is how often the token is looked at again, after 2, 4 and 8 ms, when what it shows
// may be what another process is just changing.
const settleTries = 3

// list reads the token's key objects: all of them again, or only those that are new. While it is
// not settled, what was refused is read again, and what was not there is looked for.
func (t *Token) list(s *slot, again bool) ([]record, error) {
	known := t.index.record
	if again {
		known = func(pkcs11.ObjectHandle) (record, bool) { return record{}, false }
	}
	for try := 1; ; try++ {
		listing, _, err := t.listOnce(s, searchTemplate(), known)
		if err != nil || try > settleTries || t.index.settled(listing) {
			return listing, err
		}
		good := make(map[pkcs11.ObjectHandle]record, len(listing))
		for _, r := range listing {
			if r.obj.Fault == nil {
				good[r.handle] = r
			}
		}
		known = func(h pkcs11.ObjectHandle) (record, bool) { r, ok := good[h]; return r, ok }
		pause(try)
	}
}

// listOnce finds objects, and reads those that are not known. It gives those that are keys, and the others'
// handles.
func (t *Token) listOnce(s *slot, template attributes, known func(pkcs11.ObjectHandle) (record, bool)) (listing []record, others []pkcs11.ObjectHandle, err error) {
	handles, err := t.m.search(s.session, template)
	if err != nil {
		return nil, nil, err
	}
	listing = make([]record, 0, len(handles))
	for _, h := range handles {
		if r, ok := known(h); ok {
			listing = append(listing, r)
			continue
		}
		r, err := t.readChecked(s, h)
		if errors.Is(err, hsm.ErrKeyNotFound) || err != nil && t.isGone(s, h) {
			continue // destroyed meanwhile, by another process
		}
		if err != nil {
			return nil, nil, err
		}
		if !r.isKey {
			others = append(others, h)
			continue
		}
		listing = append(listing, r)
	}
	return listing, others, nil
}

// isGone tells whether a search that finds other objects finds this one no more. SoftHSM 2.6.1 may answer
// CKR_GENERAL_ERROR for one that is being destroyed, as another node's mark is whenever it rises.
func (t *Token) isGone(s *slot, h pkcs11.ObjectHandle) bool {
	there, err := t.m.search(s.session, nil)
	return err == nil && len(there) > 0 && !slices.Contains(there, h)
}

// readChecked reads an object, and computes the check value where the token gives none.
func (t *Token) readChecked(s *slot, h pkcs11.ObjectHandle) (record, error) {
	r, err := t.m.read(s.session, h)
	if err == nil && r.isKey && !r.hasCheck && r.obj.Fault == nil && r.obj.Usable {
		r.obj.Check, err = s.checkValue(h)
	}
	return r, err
}

// find reads what answers to an ID.
func (t *Token) find(s *slot, id hierarchy.ObjectID) ([]record, error) {
	handles, err := t.findHandles(s, id)
	if err != nil {
		return nil, err
	}
	var found []record
	for _, h := range handles {
		r, err := t.readChecked(s, h)
		if errors.Is(err, hsm.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, r)
	}
	return found, nil
}

// findHandles searches for an ID. A key that was there is missed only if it stays away.
func (t *Token) findHandles(s *slot, id hierarchy.ObjectID) ([]pkcs11.ObjectHandle, error) {
	for try := 1; ; try++ {
		handles, err := t.m.search(s.session, searchByID(id))
		if err != nil || len(handles) > 0 || try > settleTries || !t.index.knows(id) {
			return handles, err
		}
		pause(try)
	}
}

// listedAnew is how long after Open the first List believes the attributes that Open has read: who opens a token
// lists it at once, and until the first uses have gone round it has much to do.
const listedAnew = time.Minute

// List is [hsm.Manager]'s. It leaves out the canary.
func (t *Token) List(ctx context.Context) ([]hsm.Object, error) {
	return change(ctx, t, func(s *slot) ([]hsm.Object, error) {
		listing, err := t.list(s, time.Since(t.opened) > listedAnew)
		if err != nil {
			return nil, err
		}
		t.opened = time.Time{}
		t.copies.orphan(t.index.replace(listing, time.Now()))

		t.index.mu.RLock()
		defer t.index.mu.RUnlock()
		objects := make([]hsm.Object, 0, len(listing))
		for _, r := range listing {
			e := t.index.byID[r.obj.ID]
			switch {
			case e != nil && e.id == canaryID:
				continue
			case e != nil && e.obj.Fault != nil:
				if r.obj.Fault == nil {
					r.obj.Fault = e.obj.Fault
				}
			case e != nil && e.handle != r.handle:
				continue // another handle of the same key
			}
			objects = append(objects, r.obj)
		}
		return objects, nil
	})
}

// Generate is [hsm.Manager]'s.
func (t *Token) Generate(ctx context.Context, id hierarchy.ObjectID, label string) (hsm.Object, error) {
	return change(ctx, t, func(s *slot) (hsm.Object, error) {
		r, err := t.generate(ctx, s, id, label)
		return r.obj, err
	})
}

func (t *Token) generate(ctx context.Context, s *slot, id hierarchy.ObjectID, label string) (record, error) {
	return t.create(ctx, s, id, func(found []record) ([]record, error) {
		if len(found) == 0 {
			mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}
			h, err := t.m.ctx.GenerateKey(s.session, mechanism, kekTemplate(id, label))
			if err != nil {
				return nil, failure("generate a key", err)
			}
			r, err := t.readChecked(s, h)
			if err != nil {
				return nil, err
			}
			found = []record{r}
		}
		if found[0].obj.Bridge && found[0].obj.Fault == nil {
			found[0].obj.Fault = fmt.Errorf("%w: CKA_LOCAL is 0: it was not generated in the token", hsm.ErrKeyRefused)
		}
		return found, nil
	})
}

// create is how a key comes to be under an ID. It looks for what is there, clears away what a
// crash left, has produce use or make the key, tests it, and takes it into the index, all
// in one bracket of the guard.
func (t *Token) create(ctx context.Context, s *slot, id hierarchy.ObjectID, produce func(found []record) ([]record, error)) (record, error) {
	found, err := t.find(s, id)
	if err != nil {
		return record{}, err
	}
	whole, halves := separate(found)
	bracket := t.cfg.Guard.Change
	if len(halves) > 0 {
		bracket = t.cfg.Guard.Destroy
	}
	return guarded(ctx, bracket, func() (record, error) {
		if err := t.clear(s, halves); err != nil {
			return record{}, err
		}
		found, err := produce(whole)
		if err != nil {
			return record{}, err
		}
		return t.admit(s, id, found)
	})
}

// admit tests what answers to an ID and takes it into the index.
func (t *Token) admit(s *slot, id hierarchy.ObjectID, found []record) (record, error) {
	first, twins := group(found)
	switch {
	case first.obj.Fault != nil:
		return record{}, first.obj.Fault
	case !first.obj.Usable:
		return record{}, fmt.Errorf("%w: %s", hsm.ErrKeyLatched, id)
	}
	if err := s.test(first.handle, first.obj, twins...); err != nil {
		return record{}, err
	}
	t.take(id, found, true)
	return first, nil
}

// take puts what answers to an ID into the index.
func (t *Token) take(id hierarchy.ObjectID, found []record, tested bool) {
	t.index.mu.Lock()
	for _, r := range found {
		t.index.records[r.handle] = r
	}
	orphans := t.index.put(id, found, time.Now())
	if tested {
		t.index.byID[id].tested = true
	}
	t.index.mu.Unlock()
	t.copies.orphan(orphans)
}

// separate tells whole objects from what a crash left: that never held a key, so nothing was
// ever sealed with it.
func separate(found []record) (whole, halves []record) {
	for _, r := range found {
		if r.halfMade() {
			halves = append(halves, r)
		} else {
			whole = append(whole, r)
		}
	}
	return whole, halves
}

// clear destroys what a crash left.
func (t *Token) clear(s *slot, halves []record) error {
	for _, r := range halves {
		if err := t.m.ctx.DestroyObject(s.session, r.handle); err != nil {
			return failure("destroy a half-made key", err)
		}
	}
	return nil
}

// SetUsable is [hsm.Manager]'s.
func (t *Token) SetUsable(ctx context.Context, id hierarchy.ObjectID, usable bool) error {
	_, err := change(ctx, t, func(s *slot) (struct{}, error) { return struct{}{}, t.setUsable(ctx, s, id, usable) })
	return err
}

func (t *Token) setUsable(ctx context.Context, s *slot, id hierarchy.ObjectID, usable bool) error {
	found, err := t.find(s, id)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("%w: %s", hsm.ErrKeyNotFound, id)
	}
	if first, _ := group(found); usable && first.obj.Fault != nil {
		return first.obj.Fault
	}
	// Also if nothing has to be changed: an earlier try may not have come to the disk.
	_, err = guarded(ctx, t.cfg.Guard.Change, func() (struct{}, error) {
		return struct{}{}, t.latch(s, id, found, usable)
	})
	return err
}

// latch destroys the copies and changes the objects, while nothing uses a handle.
func (t *Token) latch(s *slot, id hierarchy.ObjectID, found []record, usable bool) error {
	t.use.Lock()
	defer t.use.Unlock()
	if err := t.copies.forget(t, []hierarchy.ObjectID{id}); err != nil {
		return err
	}
	for i, r := range found {
		if r.obj.Usable == usable && !r.halfLatched {
			continue
		}
		if err := t.m.ctx.SetAttributeValue(s.session, r.handle, latchTemplate(usable)); err != nil {
			return failure("set the latch", err)
		}
		again, err := t.readChecked(s, r.handle)
		if err != nil {
			return err
		}
		found[i] = again
		if found[i].obj.Usable != usable || found[i].halfLatched {
			return fmt.Errorf("%w: the token took the latch and did not change it", hsm.ErrUnsupported)
		}
	}
	t.take(id, found, false)
	return nil
}

// Destroy is [hsm.Manager]'s.
func (t *Token) Destroy(ctx context.Context, id hierarchy.ObjectID) error {
	_, err := change(ctx, t, func(s *slot) (struct{}, error) { return struct{}{}, t.destroy(ctx, s, id) })
	return err
}

func (t *Token) destroy(ctx context.Context, s *slot, id hierarchy.ObjectID) error {
	if id == canaryID {
		return fmt.Errorf("%w: that is the canary", hsm.ErrInvalidInput)
	}
	_, err := guarded(ctx, t.cfg.Guard.Destroy, func() (struct{}, error) {
		return struct{}{}, t.shred(s, id)
	})
	return err
}

// shred destroys the copies and the objects, while nothing uses a handle.
func (t *Token) shred(s *slot, id hierarchy.ObjectID) error {
	t.use.Lock()
	defer t.use.Unlock()
	if err := t.copies.forget(t, []hierarchy.ObjectID{id}); err != nil {
		return err
	}
	handles, err := t.findHandles(s, id)
	if err != nil {
		return err
	}
	for _, h := range handles {
		err := t.m.ctx.DestroyObject(s.session, h)
		var code pkcs11.Error
		if err != nil && !(errors.As(err, &code) && code == pkcs11.CKR_OBJECT_HANDLE_INVALID) {
			return failure("destroy a key", err)
		}
	}
	left, err := t.m.search(s.session, searchByID(id))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("%w: %s is still there after it was destroyed", hsm.ErrUnavailable, id)
	}
	t.index.mu.Lock()
	if e := t.index.byID[id]; e != nil {
		t.index.drop(e, nil)
	}
	t.index.mu.Unlock()
	return nil
}
