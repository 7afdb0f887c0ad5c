package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// A keptMark is a mark as it is on the token. PKCS#11 lets nobody change the value of a data object
// (SoftHSM 2.6.1: CKR_ATTRIBUTE_READ_ONLY), so a higher mark is a new object, and the old one is
// destroyed after it. A crash in between leaves both, and the higher of each half counts.
type keptMark struct {
	mark   hsm.Mark
	object pkcs11.ObjectHandle
}

// Mark is [hsm.Marks]'s.
func (t *Token) Mark(ctx context.Context, owner hsm.MarkOwner) (hsm.Mark, bool, error) {
	type result struct {
		mark  hsm.Mark
		found bool
	}
	r, err := change(ctx, t, func(s *slot) (result, error) {
		kept, err := t.findMarks(s, owner)
		if err != nil || len(kept) == 0 {
			return result{}, err
		}
		if len(kept) == 1 {
			return result{kept[0].mark, true}, nil
		}
		k, err := t.raiseMark(ctx, s, owner, hsm.Mark{})
		return result{k.mark, err == nil}, err
	})
	return r.mark, r.found, err
}

// RaiseMark is [hsm.Marks]'s. A raise costs a search of the token, which grows with its objects, only after one
// that has failed, and for an owner that had no mark when the token was opened.
func (t *Token) RaiseMark(ctx context.Context, owner hsm.MarkOwner, m hsm.Mark) error {
	_, err := change(ctx, t, func(s *slot) (keptMark, error) { return t.raiseMark(ctx, s, owner, m) })
	return err
}

func (t *Token) raiseMark(ctx context.Context, s *slot, owner hsm.MarkOwner, m hsm.Mark) (keptMark, error) {
	known, ok := t.marks[owner]
	if ok && known.mark.Covers(m) {
		return known, nil
	}
	delete(t.marks, owner) // until the next one is known to be durable
	kept := []keptMark{known}
	k, err := guarded(ctx, t.cfg.Guard.Destroy, func() (keptMark, error) {
		if !ok {
			var err error
			if kept, err = t.findMarks(s, owner); err != nil {
				return keptMark{}, err
			}
		}
		t.noKeys = nil
		return t.replaceMarks(s, owner, kept, m)
	})
	if err == nil {
		t.marks[owner] = k
	}
	return k, err
}

// replaceMarks leaves one object, with the highest of each half. The old ones go last.
func (t *Token) replaceMarks(s *slot, owner hsm.MarkOwner, kept []keptMark, m hsm.Mark) (keptMark, error) {
	for _, k := range kept {
		m = m.Max(k.mark)
	}
	next := keptMark{mark: m}
	if i := slices.IndexFunc(kept, func(k keptMark) bool { return k.mark == m }); i >= 0 {
		next = kept[i]
	} else {
		var err error
		if next.object, err = t.m.ctx.CreateObject(s.session, markTemplate(owner, m)); err != nil {
			return keptMark{}, failure("write a mark", err)
		}
	}
	for _, k := range kept {
		if k.object == next.object {
			continue
		}
		err := t.m.ctx.DestroyObject(s.session, k.object)
		if err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_OBJECT_HANDLE_INVALID)) {
			return keptMark{}, failure("destroy an old mark", err)
		}
	}
	return next, nil
}

// marksOf finds the marks of an owner: among what was there when the token was opened, since nobody else writes
// them, or by a search if there is none.
func (t *Token) marksOf(s *slot, owner hsm.MarkOwner) (handles []pkcs11.ObjectHandle, err error) {
	want := searchMark(owner)
	for _, h := range t.noKeys {
		fits := true
		for _, a := range want {
			got, err := t.m.ctx.GetAttributeValue(s.session, h, attributes{attr(a.Type, nil)})
			fits = fits && err == nil && bytes.Equal(got[0].Value, a.Value)
		}
		if fits {
			handles = append(handles, h)
		}
	}
	if len(handles) > 0 {
		return handles, nil
	}
	return t.m.search(s.session, want)
}

// findMarks reads what the token keeps of an owner.
func (t *Token) findMarks(s *slot, owner hsm.MarkOwner) ([]keptMark, error) {
	handles, err := t.marksOf(s, owner)
	if err != nil {
		return nil, err
	}
	if len(handles) == 0 {
		// A token that is gone can show nothing, too.
		return nil, s.canary()
	}
	kept := make([]keptMark, len(handles))
	for i, h := range handles {
		got, err := t.m.ctx.GetAttributeValue(s.session, h, attributes{attr(pkcs11.CKA_VALUE, nil)})
		if err != nil {
			return nil, failure("read a mark", err)
		}
		kept[i].object = h
		if kept[i].mark, err = hsm.ParseMark(got[0].Value, owner); err != nil {
			return nil, fmt.Errorf("data object %q on the token: %w", markLabel(owner), err)
		}
	}
	return kept, nil
}
