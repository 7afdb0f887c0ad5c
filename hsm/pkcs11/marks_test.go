package pkcs11_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// openAgain opens a token of h; each call closes what an earlier one opened.
func openAgain(t *testing.T, h *hsmtest.SoftHSM) func() hsm.Marks {
	var token *kekd.Token
	t.Cleanup(func() { closeToken(t, token) })
	return func() hsm.Marks {
		t.Helper()
		closeToken(t, token)
		pin, err := kekd.NewPIN([]byte(hsmtest.UserPIN))
		if err != nil {
			t.Fatal(err)
		}
		if token, err = kekd.Open(t.Context(), h.Tokens[0], kekd.Config{PIN: pin, Manager: true}); err != nil {
			t.Fatal(err)
		}
		return token
	}
}

func closeToken(t *testing.T, token *kekd.Token) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if token != nil {
		if err := token.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}

func TestMarks(t *testing.T) {
	hsmtest.RunMarks(t, func(t *testing.T) func() hsm.Marks { return openAgain(t, hsmtest.NewSoftHSM(t)) })
}

func TestMarksOfShapes(t *testing.T) {
	for _, shape := range faultmodule.Shapes() {
		t.Run(shape.Name, func(t *testing.T) {
			m := faultmodule.New(t)
			m.Setenv()
			m.Control.Set(shape.Rules...)
			hsmtest.RunMarks(t, func(t *testing.T) func() hsm.Marks {
				h := hsmtest.NewSoftHSM(t)
				h.Tokens[0].Module = m.Path
				return openAgain(t, h)
			})
			if m.Counters.Calls("C_CreateObject") == 0 {
				t.Error("the shape was not asked")
			}
		})
	}
}

var owner = hsmtest.MarkOwner

func mark(term, lastTerm, lastIndex uint64) hsm.Mark {
	return hsm.Mark{Term: term, LastTerm: lastTerm, LastIndex: lastIndex}
}

func raise(t *testing.T, marks hsm.Marks, m hsm.Mark) {
	t.Helper()
	if err := marks.RaiseMark(t.Context(), owner, m); err != nil {
		t.Fatal(err)
	}
}

func (r raw) marks() []pkcs11.ObjectHandle { return r.find(kekd.SearchMark(owner)...) }

// TestMarksLeaveOneObject: higher marks take the place of lower ones, and are no keys.
func TestMarksLeaveOneObject(t *testing.T) {
	h, m, token := openFaulty(t, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	for i := range uint64(30) {
		raise(t, token, hsm.Mark{Term: i + 1})
		raise(t, token, hsm.Mark{Term: i}) // which costs nothing
	}
	if n := len(r.marks()); n != 1 {
		t.Errorf("%d objects, want 1", n)
	}
	if n := m.Counters.Calls("C_CreateObject"); n != 30 {
		t.Errorf("%d objects were written for 30 marks", n)
	}
	if objects, err := token.List(t.Context()); err != nil || len(objects) != 0 {
		t.Errorf("marks are listed as keys: %+v, %v", objects, err)
	}
}

// TestMarksOfACrash: of several marks the highest of each half counts, and one object is left.
func TestMarksOfACrash(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	for _, raised := range []bool{false, true} {
		for _, m := range []hsm.Mark{mark(5, 1, 9), mark(6, 1, 8), mark(4, 2, 1), mark(6, 1, 8)} {
			if _, err := r.ctx.CreateObject(r.session, kekd.MarkTemplate(owner, m)); err != nil {
				t.Fatal(err)
			}
		}
		token := h.Open(t, 0, kekd.Config{Manager: true})
		if raised {
			raise(t, token, hsm.Mark{})
		}
		got, found, err := token.Mark(t.Context(), owner)
		if want := mark(6, 2, 1); err != nil || !found || got != want {
			t.Errorf("read: {%v}, %t, %v, want {%v}", got, found, err, want)
		}
		if n := len(r.marks()); n != 1 {
			t.Errorf("%d objects are left, want 1", n)
		}
	}
}

// TestMarkWithoutASearch: what was there when the token was opened is not searched for.
func TestMarkWithoutASearch(t *testing.T) {
	h, m, maker := openFaulty(t, kekd.Config{Manager: true})
	raise(t, maker, mark(1, 1, 1))
	token := h.Open(t, 0, kekd.Config{Manager: true})
	searches := m.Counters.Calls("C_FindObjectsInit")
	if got, found, err := token.Mark(t.Context(), owner); err != nil || !found || got != mark(1, 1, 1) {
		t.Errorf("read: {%v}, %t, %v", got, found, err)
	}
	raise(t, token, mark(2, 1, 1))
	if n := m.Counters.Calls("C_FindObjectsInit") - searches; n != 0 {
		t.Errorf("%d searches", n)
	}
	if _, found, err := token.Mark(t.Context(), hsm.MarkOwner{}); err != nil || found {
		t.Errorf("somebody else's: %t, %v", found, err)
	}
}

// TestMarkUnreadable: a mark that cannot be read, or is another's, is told by name and stays.
func TestMarkUnreadable(t *testing.T) {
	other := owner
	other.Cluster.ID[3] = 1
	good := hsm.AppendMark(nil, owner, hsm.Mark{Term: 3})
	for name, value := range map[string][]byte{
		"damaged": append(good[:20:20], make([]byte, hsm.MarkSize-20)...), "empty": nil,
		"of another cluster": hsm.AppendMark(nil, other, hsm.Mark{Term: 9}),
	} {
		t.Run(name, func(t *testing.T) {
			h := hsmtest.NewSoftHSM(t)
			token := h.Open(t, 0, kekd.Config{Manager: true})
			r := newRaw(t, h.Tokens[0])
			for _, v := range [][]byte{good, value} {
				template := kekd.MarkTemplate(owner, hsm.Mark{})
				template[len(template)-1] = pkcs11.NewAttribute(pkcs11.CKA_VALUE, v)
				if _, err := r.ctx.CreateObject(r.session, template); err != nil {
					t.Fatal(err)
				}
			}
			_, _, err := token.Mark(t.Context(), owner)
			for what, err := range map[string]error{"read": err, "raise": token.RaiseMark(t.Context(), owner, hsm.Mark{Term: 20})} {
				if !errors.Is(err, hsm.ErrMarkUnreadable) || !strings.Contains(err.Error(), "kekd/mark/"+owner.Node.String()) {
					t.Errorf("%s: %v, want ErrMarkUnreadable and the object's name", what, err)
				}
			}
			if n := len(r.marks()); n != 2 {
				t.Errorf("%d objects are left, want both", n)
			}
		})
	}
}

// TestMarksNeedTheBracket: a mark is not reported, nor taken for done later, if the bracket fails.
func TestMarksNeedTheBracket(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	guard := &countingGuard{}
	token := h.Open(t, 0, kekd.Config{Manager: true, Guard: guard})
	raise(t, token, hsm.Mark{Term: 1})
	guard.fail = errors.New("disk on fire")
	for range 2 {
		if err := token.RaiseMark(t.Context(), owner, hsm.Mark{Term: 2}); !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, guard.fail) {
			t.Errorf("a mark that is not durable: %v", err)
		}
	}
	guard.fail = nil
	before := guard.destructions
	raise(t, token, hsm.Mark{Term: 2}) // the object is there; whether it is on disk is not known
	raise(t, token, hsm.Mark{Term: 2})
	if n := guard.destructions - before; n != 1 {
		t.Errorf("%d brackets for a mark that was not known to be durable, want 1", n)
	}
}

// TestMarksOfAFaultyToken: whatever fails, an error comes in time, and the mark does not go back.
func TestMarksOfAFaultyToken(t *testing.T) {
	for rule, want := range map[string]error{
		"C_CreateObject hang":                            hsm.ErrDeadline,
		"C_DestroyObject hang":                           hsm.ErrDeadline,
		"C_CreateObject error=CKR_DEVICE_MEMORY":         hsm.ErrCapacity,
		"C_CreateObject error=CKR_TEMPLATE_INCONSISTENT": hsm.ErrUnsupported,
		"C_DestroyObject error=CKR_FUNCTION_FAILED":      hsm.ErrUnavailable,
		"C_CreateObject error=CKR_DEVICE_REMOVED":        hsm.ErrUnavailable,
	} {
		t.Run(strings.ReplaceAll(rule, "=", " "), func(t *testing.T) { // SoftHSM reads no path with one
			h, m, token := openFaulty(t, kekd.Config{Manager: true})
			raise(t, token, hsm.Mark{Term: 7})
			m.Control.Set(rule)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			from := time.Now()
			if err := token.RaiseMark(ctx, owner, hsm.Mark{Term: 8}); !errors.Is(err, want) {
				t.Errorf("raise: %v, want %v", err, want)
			}
			if took := time.Since(from); took > time.Second {
				t.Errorf("the error came after %v", took)
			}
			m.Control.Clear()
			closeToken(t, token)
			again := h.Open(t, 0, kekd.Config{Manager: true})
			if got, found, err := again.Mark(t.Context(), owner); err != nil || !found || !got.Covers(hsm.Mark{Term: 7}) {
				t.Errorf("read: {%v}, %t, %v", got, found, err)
			}
			raise(t, again, hsm.Mark{Term: 8})
			if n := len(newRaw(t, h.Tokens[0]).marks()); n != 1 {
				t.Errorf("%d objects are left, want 1", n)
			}
		})
	}
}

// TestNoMarkOfAGoneToken: a token that shows nothing since it is gone has no word on marks.
func TestNoMarkOfAGoneToken(t *testing.T) {
	_, m, token := openFaulty(t, kekd.Config{Manager: true})
	m.Control.Set("C_FindObjects error=CKR_OK", "C_EncryptInit error=CKR_DEVICE_ERROR")
	if got, found, err := token.Mark(t.Context(), owner); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("read {%v}, %t, %v, want ErrUnavailable", got, found, err)
	}
	m.Control.Clear()
}
