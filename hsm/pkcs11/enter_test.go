package pkcs11_test

import (
	"errors"
	"maps"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// TestEnter: who looks for a token and then opens it has the module read it once.
func TestEnter(t *testing.T) {
	h, m, manager := openFaulty(t, kekd.Config{Manager: true}) // who makes the canary
	if err := manager.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	pin, err := kekd.NewPIN([]byte(hsmtest.UserPIN))
	if err != nil {
		t.Fatal(err)
	}
	begun, ended := m.Counters.Calls("C_Initialize"), m.Counters.Calls("C_Finalize")
	s, leave, err := kekd.Enter(kekd.URI{Serial: h.Tokens[0].Serial}, m.Path)
	if err != nil {
		t.Fatal(err)
	}
	token, err := kekd.Open(t.Context(), s, kekd.Config{PIN: pin})
	if err != nil {
		t.Fatal(err)
	}
	if err := leave(); err != nil {
		t.Fatal(err)
	}
	if err := token.Healthy(t.Context()); err != nil {
		t.Errorf("after the module was left: %v", err)
	}
	if n := m.Counters.Calls("C_Initialize") - begun; n != 1 {
		t.Errorf("the module was initialised %d times, want once", n)
	}
	if err := token.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := m.Counters.Calls("C_Finalize") - ended; n != 1 {
		t.Errorf("the module was finalised %d times, want once", n)
	}
	if _, _, err := kekd.Enter(kekd.URI{Token: "no such"}, m.Path); !errors.Is(err, hsm.ErrNoToken) {
		t.Errorf("no such token: %v, want ErrNoToken", err)
	}
	if n := m.Counters.Calls("C_Initialize") - m.Counters.Calls("C_Finalize"); n != begun-ended {
		t.Error("who found no token has not left the module")
	}
}

// TestBefore: until it is told, Open lists the token and makes nothing, on the token or in a session.
func TestBefore(t *testing.T) {
	m := faultmodule.New(t)
	m.Setenv()
	h := hsmtest.NewSoftHSM(t)
	h.Tokens[0].Module = m.Path
	pin, err := kekd.NewPIN([]byte(hsmtest.UserPIN))
	if err != nil {
		t.Fatal(err)
	}
	listed, made := 0, 0
	look := func() {
		listed = m.Counters.Calls("C_FindObjectsFinal")
		made = m.Counters.Calls("C_GenerateKey") + m.Counters.Calls("C_CopyObject") + m.Counters.Calls("C_SetAttributeValue")
	}
	nothing := errors.New("somebody's search has failed")
	_, err = kekd.Open(t.Context(), h.Tokens[0], kekd.Config{PIN: pin, Manager: true, Before: func() error { look(); return nothing }})
	if !errors.Is(err, nothing) || listed == 0 || made != 0 {
		t.Errorf("%v after %d listings, %d changes; want its own error after a listing, before a change", err, listed, made)
	}
	if look(); made != 0 {
		t.Errorf("%d changes though Before has failed", made)
	}
	h.Open(t, 0, kekd.Config{Manager: true, Before: func() error { return nil }})
}

// TestFirstListing: who opens a token and lists it has its keys read once; from then on each listing reads them.
func TestFirstListing(t *testing.T) {
	h, m, minter := openFaulty(t, kekd.Config{Manager: true})
	key := mint(t, minter, hierarchy.ObjectID{1})
	token := h.Open(t, 0, kekd.Config{Manager: true})
	late := mint(t, minter, hierarchy.ObjectID{2}) // after it was opened
	lists := func() (usable map[hierarchy.ObjectID]bool, reads int) {
		t.Helper()
		before := m.Counters.Calls("C_GetAttributeValue")
		objects, err := token.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		usable = map[hierarchy.ObjectID]bool{}
		for _, o := range objects {
			usable[o.ID] = o.Usable
		}
		return usable, m.Counters.Calls("C_GetAttributeValue") - before
	}
	both := map[hierarchy.ObjectID]bool{key.ID: true, late.ID: true}
	if usable, reads := lists(); !maps.Equal(usable, both) || reads != 1 {
		t.Errorf("first listing: %v after %d reads; want both keys, and to have read the one that is new", usable, reads)
	}
	if err := minter.SetUsable(t.Context(), key.ID, false); err != nil {
		t.Fatal(err)
	}
	both[key.ID] = false
	if usable, reads := lists(); !maps.Equal(usable, both) || reads < 3 {
		t.Errorf("second listing: %v after %d reads; want one latched, and to have read both and the canary", usable, reads)
	}
}
