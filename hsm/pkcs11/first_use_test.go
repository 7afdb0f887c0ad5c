package pkcs11_test

import (
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

// TestFirstUse: a key that this process has not tested yet is copied at its first use, and it is the copy that
// is tested. A key without a copy is tested itself, also one that had a copy.
func TestFirstUse(t *testing.T) {
	h, m, manager := openFaulty(t, kekd.Config{Manager: true})
	a, b, c := mint(t, manager, hierarchy.ObjectID{1}), mint(t, manager, hierarchy.ObjectID{2}), mint(t, manager, hierarchy.ObjectID{3})
	sealed := map[hierarchy.ObjectID]hsm.Sealed{}
	for _, key := range []hsm.KeyRef{a, b, c} {
		ops := sealOp(key)
		if err := run(manager, ops); err != nil {
			t.Fatal(err)
		}
		sealed[key.ID] = ops[0].Sealed[0]
	}
	token := h.Open(t, 0, kekd.Config{Copies: 2})
	// opens opens once, and tells how many copies were made and what was encrypted for tests.
	opens := func(key hsm.KeyRef) (copied, tests int) {
		t.Helper()
		copies, encryptions := m.Counters.Calls("C_CopyObject"), m.Counters.Calls("C_Encrypt")
		if err := run(token, openOp(key, sealed[key.ID])); err != nil {
			t.Fatalf("opening: %v", err)
		}
		return m.Counters.Calls("C_CopyObject") - copies, m.Counters.Calls("C_Encrypt") - encryptions
	}
	// A test encrypts for the check value, and what it opens again.
	if copied, tests := opens(a); copied != 1 || tests != 2 || token.CopyCount() != 1 {
		t.Errorf("first use: %d copies, %d encryptions, %d counted; want 1, 2, 1", copied, tests, token.CopyCount())
	}
	if copied, tests := opens(a); copied != 0 || tests != 0 {
		t.Errorf("second use: %d copies, %d encryptions; want none", copied, tests)
	}
	m.Control.Set("C_CopyObject error=CKR_DEVICE_MEMORY")
	if copied, tests := opens(b); copied != 1 || tests != 2 || token.CopyCount() != 1 {
		t.Errorf("first use without a copy: %d tried, %d encryptions, %d counted; want 1, 2, 1", copied, tests, token.CopyCount())
	}
	if _, tests := opens(b); tests != 0 {
		t.Errorf("second use without a copy: %d encryptions, want none", tests)
	}
	// Nobody has tested the object that the copy was made of.
	if err := token.Forget(t.Context(), []hierarchy.ObjectID{a.ID}); err != nil {
		t.Fatal(err)
	}
	if _, tests := opens(a); tests != 2 || token.CopyCount() != 0 {
		t.Errorf("after the copy went: %d encryptions, %d counted; want 2, 0", tests, token.CopyCount())
	}
	if _, tests := opens(a); tests != 0 {
		t.Errorf("after that: %d encryptions, want none", tests)
	}
	m.Control.Clear()
	if copied, tests := opens(c); copied != 1 || tests != 2 || token.CopyCount() != 1 {
		t.Errorf("first use of the third: %d copies, %d encryptions, %d counted; want 1, 2, 1", copied, tests, token.CopyCount())
	}
}

// TestFirstUseBounded: a first use makes no copy where there is no room, or beside a find.
func TestFirstUseBounded(t *testing.T) {
	h, m, manager := openFaulty(t, kekd.Config{Manager: true})
	keys := []hsm.KeyRef{mint(t, manager, hierarchy.ObjectID{1}), mint(t, manager, hierarchy.ObjectID{2})}
	token := h.Open(t, 0, kekd.Config{Copies: 1})
	for _, key := range keys {
		if err := run(token, sealOp(key)); err != nil {
			t.Fatal(err)
		}
	}
	r := newRaw(t, h.Tokens[0])
	if n := len(r.find(attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY))); n != 1 || token.CopyCount() != 1 {
		t.Errorf("%d copies, %d counted; want the one that has room", n, token.CopyCount())
	}
	// Beside a find none is made.
	if err := token.Forget(t.Context(), []hierarchy.ObjectID{keys[0].ID, keys[1].ID}); err != nil {
		t.Fatal(err)
	}
	copied := m.Counters.Calls("C_CopyObject")
	m.Control.Set("C_FindObjectsInit hang")
	listed := make(chan error, 1)
	go func() {
		_, err := manager.List(t.Context())
		listed <- err
	}()
	m.Counters.AwaitInside("C_FindObjectsInit", 1)
	if err := run(token, sealOp(keys[0])); err != nil {
		t.Error(err)
	}
	if n := m.Counters.Calls("C_CopyObject") - copied; n != 0 {
		t.Errorf("%d copies were made beside a find", n)
	}
	m.Control.Clear()
	if err := <-listed; err != nil {
		t.Error(err)
	}
}
