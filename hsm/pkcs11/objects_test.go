package pkcs11_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

func run(token *kekd.Token, ops []hsm.Operation) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	token.Do(ctx, ops)
	return ops[0].Err
}

// good is what a KEK reads as.
func good() map[uint][]byte {
	yes, no := []byte{1}, []byte{0}
	id := hierarchy.ObjectID{1}
	return map[uint][]byte{
		pkcs11.CKA_ID: id[:], pkcs11.CKA_LABEL: []byte("kekd/a"), pkcs11.CKA_CHECK_VALUE: {1, 2, 3},
		pkcs11.CKA_KEY_TYPE: {0x1f, 0, 0, 0, 0, 0, 0, 0}, pkcs11.CKA_VALUE_LEN: {32, 0, 0, 0, 0, 0, 0, 0},
		pkcs11.CKA_ENCRYPT: yes, pkcs11.CKA_DECRYPT: yes, pkcs11.CKA_LOCAL: yes,
		pkcs11.CKA_PRIVATE: yes, pkcs11.CKA_SENSITIVE: yes, pkcs11.CKA_ALWAYS_SENSITIVE: yes, pkcs11.CKA_NEVER_EXTRACTABLE: yes,
		pkcs11.CKA_EXTRACTABLE: no, pkcs11.CKA_WRAP: no, pkcs11.CKA_UNWRAP: no, pkcs11.CKA_DERIVE: no, pkcs11.CKA_SIGN: no, pkcs11.CKA_VERIFY: no,
	}
}

func TestExamine(t *testing.T) {
	if bridge, half, fault := kekd.Examine(good()); fault != nil || bridge || half {
		t.Fatalf("a good KEK: %v, bridge %t, half-made %t", fault, bridge, half)
	}
	bridge := good()
	bridge[pkcs11.CKA_LOCAL] = []byte{0}
	if isBridge, half, fault := kekd.Examine(bridge); fault != nil || !isBridge || half {
		t.Errorf("a good bridge: %v, bridge %t, half-made %t", fault, isBridge, half)
	}
	half := maps.Clone(bridge)
	half[pkcs11.CKA_CHECK_VALUE] = nil
	if _, isHalf, fault := kekd.Examine(half); !errors.Is(fault, hsm.ErrKeyRefused) || !isHalf {
		t.Errorf("a half-made key: %v, half-made %t", fault, isHalf)
	}
	// Every attribute counts: altered or not readable, the key is refused.
	for typ, value := range good() {
		switch typ {
		case pkcs11.CKA_LABEL, pkcs11.CKA_CHECK_VALUE, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_LOCAL:
			continue // tested above, or not a matter of being refused
		}
		altered := good()
		altered[typ] = append([]byte{value[0] ^ 1}, value[1:]...)
		if typ != pkcs11.CKA_ID {
			if _, _, fault := kekd.Examine(altered); !errors.Is(fault, hsm.ErrKeyRefused) {
				t.Errorf("attribute 0x%X altered: %v, want ErrKeyRefused", typ, fault)
			}
		}
		delete(altered, typ)
		if _, _, fault := kekd.Examine(altered); !errors.Is(fault, hsm.ErrKeyRefused) {
			t.Errorf("attribute 0x%X not readable: %v, want ErrKeyRefused", typ, fault)
		}
	}
}

// weaker generates a key under an ID with one attribute changed.
func (r raw) weaker(id hierarchy.ObjectID, changes ...*pkcs11.Attribute) pkcs11.ObjectHandle {
	r.t.Helper()
	template := kekd.KEKTemplate(id, "kekd/weaker")
	for _, c := range changes {
		for i, a := range template {
			if a.Type == c.Type {
				template[i] = c
			}
		}
	}
	h, err := r.ctx.GenerateKey(r.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, template)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func listed(t *testing.T, token *kekd.Token, id hierarchy.ObjectID) (found []hsm.Object) {
	t.Helper()
	objects, err := token.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if o.ID == id {
			found = append(found, o)
		}
	}
	return found
}

// TestForeignObjects: what others put on the token is listed with its fault, and never used.
func TestForeignObjects(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	for name, c := range map[string]*pkcs11.Attribute{
		"extractable":   attr(pkcs11.CKA_EXTRACTABLE, true),
		"not sensitive": attr(pkcs11.CKA_SENSITIVE, false),
		"not private":   attr(pkcs11.CKA_PRIVATE, false),
		"wraps":         attr(pkcs11.CKA_WRAP, true),
		"unwraps":       attr(pkcs11.CKA_UNWRAP, true),
		"derives":       attr(pkcs11.CKA_DERIVE, true),
		"AES-128":       attr(pkcs11.CKA_VALUE_LEN, 16),
	} {
		id := hierarchy.ObjectID{0xf0}
		copy(id[1:], name)
		r.weaker(id, c)
		objects := listed(t, token, id)
		if len(objects) != 1 || !errors.Is(objects[0].Fault, hsm.ErrKeyRefused) {
			t.Fatalf("%s: listed as %+v, want ErrKeyRefused", name, objects)
		}
		if err := run(token, sealOp(hsm.KeyRef{ID: id, Check: objects[0].Check})); !errors.Is(err, hsm.ErrKeyRefused) {
			t.Errorf("%s: sealing: %v, want ErrKeyRefused", name, err)
		}
		if _, err := token.Generate(t.Context(), id, "x"); !errors.Is(err, hsm.ErrKeyRefused) {
			t.Errorf("%s: generating where it is: %v, want ErrKeyRefused", name, err)
		}
	}

	// An imported key has a known value. It says CKA_LOCAL 0, as a bridge does.
	imported := hierarchy.ObjectID{0xf1}
	template := append(kekd.KEKTemplate(imported, "kekd/imported"), attr(pkcs11.CKA_VALUE, make([]byte, 32)))
	for i, a := range template {
		if a.Type == pkcs11.CKA_VALUE_LEN {
			template = append(template[:i], template[i+1:]...)
			break
		}
	}
	if _, err := r.ctx.CreateObject(r.session, template); err != nil {
		t.Fatal(err)
	}
	if objects := listed(t, token, imported); len(objects) != 1 || !errors.Is(objects[0].Fault, hsm.ErrKeyRefused) {
		t.Errorf("an imported key: listed as %+v, want ErrKeyRefused", objects)
	}

	// An ID of another length is nobody's of ours.
	template = kekd.KEKTemplate(hierarchy.ObjectID{}, "somebody's")
	for _, a := range template {
		if a.Type == pkcs11.CKA_ID {
			a.Value = []byte("short")
		}
	}
	if _, err := r.ctx.GenerateKey(r.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, template); err != nil {
		t.Fatal(err)
	}
	found := false
	objects, err := token.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if string(o.RawID) == "short" && errors.Is(o.Fault, hsm.ErrKeyRefused) && strings.Contains(o.Fault.Error(), "foreign") {
			found = true
		}
	}
	if !found {
		t.Errorf("the foreign object is not listed with its fault: %+v", objects)
	}
}

// TestDerivedKeyIsNoKEK: with the PIN one can agree a key with oneself and know its value. It
// reads as never extractable; only that it was not generated tells.
func TestDerivedKeyIsNoKEK(t *testing.T) {
	h := hsmtest.NewSoftHSM(t, "east", "west")
	east, west := h.Open(t, 0, kekd.Config{Manager: true}), h.Open(t, 1, kekd.Config{Manager: true})
	mine, err := east.BeginAgreement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := west.BeginAgreement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	obj, err := mine.Derive(t.Context(), theirs.Public(), hsm.KDFECDHAESCBC, []byte("info"), hierarchy.ObjectID{3}, "kekd/acme/orders/v1/kek")
	if err != nil {
		t.Fatal(err)
	}
	if err := run(east, sealOp(hsm.KeyRef{ID: obj.ID, Check: obj.Check})); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Errorf("a derived key used as a KEK: %v, want ErrKeyRefused", err)
	}
	if err := run(east, sealOp(hsm.KeyRef{ID: obj.ID, Check: obj.Check, Bridge: true})); err != nil {
		t.Errorf("and as a bridge: %v", err)
	}
}

// TestTwoKeysUnderOneID: PKCS#11 does not keep IDs unique.
func TestTwoKeysUnderOneID(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	id := hierarchy.ObjectID{5}
	key := mint(t, token, id)
	sealed := heat(t, token, key)
	r.weaker(id) // another key, as good as the first
	if objects := listed(t, token, id); len(objects) != 2 || !errors.Is(objects[0].Fault, hsm.ErrAmbiguous) || !errors.Is(objects[1].Fault, hsm.ErrAmbiguous) {
		t.Fatalf("listed as %+v, want two that are ambiguous", objects)
	}
	if err := run(token, openOp(key, sealed)); !errors.Is(err, hsm.ErrAmbiguous) {
		t.Errorf("opening: %v, want ErrAmbiguous", err)
	}
	if _, err := token.Generate(t.Context(), id, "x"); !errors.Is(err, hsm.ErrAmbiguous) {
		t.Errorf("generating: %v, want ErrAmbiguous", err)
	}
	if err := token.SetUsable(t.Context(), id, false); err != nil {
		t.Errorf("latching closes, so it is done to both: %v", err)
	}
	if err := token.SetUsable(t.Context(), id, true); !errors.Is(err, hsm.ErrAmbiguous) {
		t.Errorf("unlatching: %v, want ErrAmbiguous", err)
	}
	if err := token.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := r.find(kekd.SearchByID(id)...); len(left) != 0 {
		t.Errorf("%d objects are left", len(left))
	}
}

// TestTwoHandlesOfOneKey: the same key under two handles is one key.
func TestTwoHandlesOfOneKey(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	id := hierarchy.ObjectID{6}
	key := mint(t, token, id)
	sealed := heat(t, token, key)
	if _, err := r.ctx.CopyObject(r.session, r.byID(id), []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true)}); err != nil {
		t.Fatal(err)
	}
	if objects := listed(t, token, id); len(objects) != 1 || objects[0].Fault != nil {
		t.Errorf("listed as %+v, want one", objects)
	}
	if err := run(token, openOp(key, sealed)); err != nil {
		t.Errorf("opening: %v", err)
	}
	if obj, err := token.Generate(t.Context(), id, "x"); err != nil || obj.Check != key.Check {
		t.Errorf("generating finds %+v, %v", obj, err)
	}
	for _, usable := range []bool{false, true} {
		if err := token.SetUsable(t.Context(), id, usable); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(token, openOp(key, sealed)); err != nil {
		t.Errorf("opening after both were latched and unlatched: %v", err)
	}
	if err := token.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := r.find(kekd.SearchByID(id)...); len(left) != 0 {
		t.Errorf("%d objects are left", len(left))
	}
}

// halfMade leaves what a crash during generation does: SoftHSM sets CKA_LOCAL and the check value
// last, together with the value.
func halfMade(t *testing.T, r raw, id hierarchy.ObjectID) {
	t.Helper()
	template := append(kekd.KEKTemplate(id, "kekd/half"), attr(pkcs11.CKA_VALUE, make([]byte, 32)), attr(pkcs11.CKA_CHECK_VALUE, []byte{}))
	for i, a := range template {
		if a.Type == pkcs11.CKA_VALUE_LEN {
			template = append(template[:i], template[i+1:]...)
			break
		}
	}
	if _, err := r.ctx.CreateObject(r.session, template); err != nil {
		t.Fatal(err)
	}
}

// TestHalfMadeKey: what a crash during generation left is not used and is cleared away by the
// next try.
func TestHalfMadeKey(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	id := hierarchy.ObjectID{7}
	halfMade(t, r, id)
	if objects := listed(t, token, id); len(objects) != 1 || !errors.Is(objects[0].Fault, hsm.ErrKeyRefused) || !strings.Contains(objects[0].Fault.Error(), "half-made") {
		t.Fatalf("listed as %+v, want half-made", objects)
	}
	if err := run(token, sealOp(hsm.KeyRef{ID: id, Bridge: true})); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Errorf("sealing: %v, want ErrKeyRefused", err)
	}
	key := mint(t, token, id)
	if err := run(token, sealOp(key)); err != nil {
		t.Errorf("sealing with the key made in its place: %v", err)
	}
	r.byID(id) // exactly one
}

// TestAnotherProcess: keys that another process mints, latches, unlatches and destroys. A second
// Token stands for it: it has an index and sessions of its own.
func TestAnotherProcess(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	manager := h.Open(t, 0, kekd.Config{Manager: true})
	worker := h.Open(t, 0, kekd.Config{})
	var keys []hsm.KeyRef
	var all []hsm.Operation
	for i := range 20 {
		keys = append(keys, mint(t, manager, hierarchy.ObjectID{8, byte(i)}))
		all = append(all, sealOp(keys[i])...)
	}
	start := time.Now()
	run(worker, all) // one search for all of them
	for i := range all {
		if all[i].Err != nil {
			t.Fatalf("a key minted since: %v", all[i].Err)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	key := keys[0]
	sealed := all[0].Sealed[0]
	for range 2 {
		if err := manager.SetUsable(t.Context(), key.ID, false); err != nil {
			t.Fatal(err)
		}
		if err := worker.Forget(t.Context(), []hierarchy.ObjectID{key.ID}); err != nil {
			t.Fatal(err)
		}
		if err := run(worker, openOp(key, sealed)); !errors.Is(err, hsm.ErrKeyLatched) {
			t.Fatalf("a key latched since: %v, want ErrKeyLatched", err)
		}
		start := time.Now()
		for range 50 {
			if err := run(worker, openOp(key, sealed)); !errors.Is(err, hsm.ErrKeyLatched) {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("50 uses of a latched key took %v: each was retried", took)
		}
		if err := manager.SetUsable(t.Context(), key.ID, true); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error { return run(worker, openOp(key, sealed)) })
	}
	if err := manager.Destroy(t.Context(), key.ID); err != nil {
		t.Fatal(err)
	}
	if err := worker.Forget(t.Context(), []hierarchy.ObjectID{key.ID}); err != nil {
		t.Fatal(err)
	}
	if err := run(worker, openOp(key, sealed)); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("a key destroyed since: %v, want ErrKeyNotFound", err)
	}
	if err := run(worker, sealOp(keys[1])); err != nil {
		t.Errorf("the others: %v", err)
	}
}

// TestMissingKeys: a key that is not there costs no search for each use, and hides no other.
func TestMissingKeys(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	key := mint(t, token, hierarchy.ObjectID{1})
	start := time.Now()
	for i := range 400 {
		missing := sealOp(hsm.KeyRef{ID: hierarchy.ObjectID{0xee, byte(i % 3)}})
		if err := run(token, append(missing, sealOp(key)...)); !errors.Is(err, hsm.ErrKeyNotFound) {
			t.Fatalf("%v, want ErrKeyNotFound", err)
		}
	}
	// Searches are 50 ms apart at least: one for each use would take 20 s.
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("400 uses of missing keys took %v", took)
	}
}

// eventually waits until f is without error.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestCopies: hot keys are copied, in bounded number, the least recently used going first, and
// forgotten when told.
func TestCopies(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true, Copies: 2})
	r := newRaw(t, h.Tokens[0])
	sessionKeys := func() int {
		return len(r.find(attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY)))
	}
	var keys []hsm.KeyRef
	for i := range 3 {
		keys = append(keys, mint(t, token, hierarchy.ObjectID{9, byte(i)}))
	}
	if err := run(token, sealOp(keys[0])); err != nil {
		t.Fatal(err)
	}
	if n := sessionKeys(); n != 0 {
		t.Errorf("%d copies after the first use", n)
	}
	heat(t, token, keys[0])
	heat(t, token, keys[1])
	heat(t, token, keys[2]) // there is no place: the others were used just now
	if n := sessionKeys(); n != 2 || token.CopyCount() != 2 {
		t.Errorf("%d copies, %d counted, want 2", n, token.CopyCount())
	}
	// After the others idle, the third gets a place.
	deadline := time.Now().Add(5 * time.Second)
	for {
		if err := run(token, sealOp(keys[2])); err != nil {
			t.Fatal(err)
		}
		if err := token.Forget(t.Context(), []hierarchy.ObjectID{keys[2].ID}); err != nil {
			t.Fatal(err)
		}
		if token.CopyCount() == 1 { // one was evicted for the third, which is forgotten again
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d copies: the third key never got a place", token.CopyCount())
		}
	}
	if n := sessionKeys(); n != 1 {
		t.Errorf("%d copies after forgetting, want 1", n)
	}
	ids := []hierarchy.ObjectID{keys[0].ID, keys[1].ID, keys[2].ID}
	if err := token.Forget(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	if n := sessionKeys(); n != 0 || token.CopyCount() != 0 {
		t.Errorf("%d copies, %d counted, after all were forgotten", n, token.CopyCount())
	}
	for _, key := range keys {
		if err := run(token, sealOp(key)); err != nil {
			t.Errorf("after forgetting: %v", err)
		}
	}
}

// TestLatchDestroysCopies: a latched key has no copy that goes on working.
func TestLatchDestroysCopies(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	key := mint(t, token, hierarchy.ObjectID{10})
	heat(t, token, key)
	copies := r.find(attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY))
	if len(copies) != 1 {
		t.Fatalf("%d copies, want 1", len(copies))
	}
	if err := token.SetUsable(t.Context(), key.ID, false); err != nil {
		t.Fatal(err)
	}
	if left := r.find(attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY)); len(left) != 0 {
		t.Errorf("%d copies are left after the latch", len(left))
	}
	gcm := pkcs11.NewGCMParams(make([]byte, 12), []byte("a"), 128)
	defer gcm.Free()
	if err := r.ctx.EncryptInit(r.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, gcm)}, r.byID(key.ID)); !errors.Is(err, pkcs11.Error(pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED)) {
		t.Errorf("another user of the token: %v, want CKR_KEY_FUNCTION_NOT_PERMITTED", err)
	}
}

// countingGuard fails after the change, as a disk does.
type countingGuard struct {
	changes, destructions int
	fail                  error
}

func (g *countingGuard) Change(_ context.Context, f func() error) error {
	g.changes++
	return errors.Join(f(), g.fail)
}

func (g *countingGuard) Destroy(_ context.Context, f func() error) error {
	g.destructions++
	return errors.Join(f(), g.fail)
}

// TestGuard: a change happens in a bracket, and is not reported if the bracket fails.
func TestGuard(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	guard := &countingGuard{}
	token := h.Open(t, 0, kekd.Config{Manager: true, Guard: guard})
	if guard.changes != 2 {
		t.Errorf("%d brackets after opening, want 2: the login and the canary", guard.changes)
	}
	key := mint(t, token, hierarchy.ObjectID{11})
	guard.fail = errors.New("disk on fire")
	for name, change := range map[string]func() error{
		"generate": func() error { _, err := token.Generate(t.Context(), hierarchy.ObjectID{12}, "x"); return err },
		"latch":    func() error { return token.SetUsable(t.Context(), key.ID, false) },
	} {
		if err := change(); !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, guard.fail) {
			t.Errorf("%s that is not durable: %v", name, err)
		}
	}
	if err := token.Destroy(t.Context(), key.ID); !errors.Is(err, guard.fail) {
		t.Errorf("a destruction that is not durable: %v", err)
	}
	guard.fail = nil
	before := guard.destructions
	if err := token.Destroy(t.Context(), key.ID); err != nil {
		t.Errorf("destroying again: %v", err)
	}
	if guard.destructions != before+1 {
		t.Errorf("destroying again made nothing durable: what the first try destroyed may not be on disk")
	}
}
