package pkcs11_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// openFaulty opens a token through the fault module.
func openFaulty(t *testing.T, cfg kekd.Config) (*hsmtest.SoftHSM, *faultmodule.Module, *kekd.Token) {
	t.Helper()
	m := faultmodule.New(t)
	m.Setenv()
	h := hsmtest.NewSoftHSM(t)
	h.Tokens[0].Module = m.Path
	return h, m, h.Open(t, 0, cfg)
}

// TestNoCopyBesideAFind: while the manager finds objects, keys get no copies, and are served all
// the same.
func TestNoCopyBesideAFind(t *testing.T) {
	_, m, token := openFaulty(t, kekd.Config{Manager: true})
	key := mint(t, token, hierarchy.ObjectID{1})
	copied := m.Counters.Calls("C_CopyObject")
	m.Control.Set("C_FindObjectsInit hang")
	listed := make(chan error, 1)
	go func() {
		_, err := token.List(t.Context())
		listed <- err
	}()
	m.Counters.AwaitInside("C_FindObjectsInit", 1)
	heat(t, token, key)
	if n := m.Counters.Calls("C_CopyObject") - copied; n != 0 {
		t.Errorf("%d copies were made beside a find", n)
	}
	m.Control.Clear()
	if err := <-listed; err != nil {
		t.Error(err)
	}
	heat(t, token, key)
	if n := token.CopyCount(); n != 1 {
		t.Errorf("%d copies after the find, want 1", n)
	}
}

// TestForgottenKeysAreReadAgain: after Forget a server holds nothing against a key that it has
// from before: not that it was missing, nor that it was half-made, nor its handle.
func TestForgottenKeysAreReadAgain(t *testing.T) {
	h, m, manager := openFaulty(t, kekd.Config{Manager: true})
	server := h.Open(t, 0, kekd.Config{})
	forget := func(id hierarchy.ObjectID) {
		t.Helper()
		if err := server.Forget(t.Context(), []hierarchy.ObjectID{id}); err != nil {
			t.Fatal(err)
		}
	}
	id := hierarchy.ObjectID{3}
	if err := run(server, sealOp(hsm.KeyRef{ID: id})); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Fatalf("no such key: %v, want ErrKeyNotFound", err)
	}
	halfMade(t, newRaw(t, h.Tokens[0]), id)
	forget(id)
	if err := run(server, sealOp(hsm.KeyRef{ID: id})); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Fatalf("a half-made key: %v, want ErrKeyRefused", err)
	}
	key := mint(t, manager, id)
	forget(id)
	if err := run(server, sealOp(key)); err != nil {
		t.Fatalf("a key that was half-made: %v", err)
	}

	if err := manager.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	forget(id)
	tried := m.Counters.Calls("C_EncryptInit")
	if err := run(server, sealOp(key)); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("a key destroyed since: %v, want ErrKeyNotFound", err)
	}
	// The canary is asked whether the token is there, and that is all.
	if n := m.Counters.Calls("C_EncryptInit") - tried; n > 1 {
		t.Errorf("the handle of a destroyed key was tried: %d encryptions", n)
	}
	again := mint(t, manager, id)
	forget(id)
	if err := run(server, sealOp(key)); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Errorf("the old key's reference: %v, want ErrKeyRefused", err)
	}
	if err := run(server, sealOp(again)); err != nil {
		t.Errorf("the key made in its place: %v", err)
	}
}

// vanish makes an object vanish from a SoftHSM token, as one does for a moment that another
// process rewrites, and gives what brings it back.
func vanish(t *testing.T, path string) (back func()) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	touch := func() { // SoftHSM lists the directory again when this number has changed
		t.Helper()
		generation := filepath.Join(filepath.Dir(path), "generation")
		b, err := os.ReadFile(generation)
		must(err)
		must(os.WriteFile(generation, binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(b)+1), 0o600))
	}
	must(os.Rename(path, path+".away"))
	touch()
	return func() {
		t.Helper()
		must(os.Rename(path+".away", path))
		touch()
	}
}

// objectFiles are the files of the token's objects.
func objectFiles(t *testing.T, h *hsmtest.SoftHSM) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.TokenDir, "*", "*-*.object"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestKeyMissingForAMoment: a key that was there is looked for again before it is called gone.
func TestKeyMissingForAMoment(t *testing.T) {
	h, m, token := openFaulty(t, kekd.Config{Manager: true})
	canary := objectFiles(t, h)
	key := mint(t, token, hierarchy.ObjectID{4})
	file := slices.DeleteFunc(objectFiles(t, h), func(f string) bool { return slices.Contains(canary, f) })
	if len(file) != 1 {
		t.Fatalf("%d files of the key, want 1", len(file))
	}
	for _, c := range []struct {
		name string
		look func() error
	}{
		{"list", func() error {
			if n := len(listed(t, token, key.ID)); n != 1 {
				return fmt.Errorf("the key is listed %d times", n)
			}
			return nil
		}},
		{"generate", func() error {
			obj, err := token.Generate(t.Context(), key.ID, "again")
			if err == nil && obj.Check != key.Check {
				err = errors.New("a second key was made")
			}
			return err
		}},
		{"latch", func() error { return token.SetUsable(t.Context(), key.ID, true) }},
		{"destroy", func() error {
			err := token.Destroy(t.Context(), key.ID)
			if left := objectFiles(t, h); err == nil && len(left) != len(canary) {
				err = fmt.Errorf("%d objects are left, want the canary", len(left))
			}
			return err
		}},
	} {
		if err := beside(m, vanish(t, file[0]), c.look); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// beside brings a key back after the first look has missed it, and before the second.
func beside(m *faultmodule.Module, back func(), look func() error) error {
	m.Control.Set("C_FindObjectsInit hang after=1")
	looked := make(chan error, 1)
	go func() { looked <- look() }()
	m.Counters.AwaitInside("C_FindObjectsInit", 1)
	back()
	m.Control.Clear()
	return <-looked
}

// TestCopiesAreNotTakenAway: when the copies' session is lost, what runs on a copy ends first.
func TestCopiesAreNotTakenAway(t *testing.T) {
	h, m, token := openFaulty(t, kekd.Config{Manager: true, Slots: 2})
	newRaw(t, h.Tokens[0]) // keeps the login
	copied, other := mint(t, token, hierarchy.ObjectID{5}), mint(t, token, hierarchy.ObjectID{6})
	var sealed hsm.Sealed
	heated := func() error { // by a slot that may not have ended with it when another is asked
		sealed = heat(t, token, copied)
		if token.CopyCount() == 0 {
			return errors.New("the key gets no copy")
		}
		return nil
	}
	eventually(t, heated)
	m.Control.Set("C_Decrypt hang", "C_CopyObject error=CKR_SESSION_HANDLE_INVALID")
	opened := make(chan error, 1)
	go func() { opened <- run(token, openOp(copied, sealed)) }()
	m.Counters.AwaitInside("C_Decrypt", 1)
	closed, tried := m.Counters.Calls("C_CloseSession"), m.Counters.Calls("C_CopyObject")
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		op := sealOp(other)
		token.Do(ctx, op)
		if m.Counters.Calls("C_CopyObject") == tried || op[0].Err == nil {
			return errors.New("no copy was tried, or the slots go on")
		}
		return nil
	})
	if n := m.Counters.Calls("C_CloseSession") - closed; n != 0 {
		t.Error("the session was closed beside an operation on one of its copies")
	}
	m.Control.Clear()
	if err := <-opened; err != nil {
		t.Errorf("opening: %v", err)
	}
	eventually(t, heated)
}
