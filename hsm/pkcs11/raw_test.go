package pkcs11_test

import (
	"errors"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

// raw is access to a token beside the package, as somebody else with the PIN has it.
type raw struct {
	t       *testing.T
	ctx     *pkcs11.Ctx
	session pkcs11.SessionHandle
}

// newRaw joins the process's login, so a Token is open already.
func newRaw(t *testing.T, selected kekd.Selected) raw {
	t.Helper()
	ctx := pkcs11.New(hsmtest.Module)
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if info, err := ctx.GetTokenInfo(slot); err != nil || info.SerialNumber != selected.Serial {
			continue
		}
		session, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ctx.CloseSession(session) })
		return raw{t, ctx, session}
	}
	t.Fatal("the token is not there")
	return raw{}
}

func (r raw) find(template ...*pkcs11.Attribute) []pkcs11.ObjectHandle {
	r.t.Helper()
	if err := r.ctx.FindObjectsInit(r.session, template); err != nil {
		r.t.Fatal(err)
	}
	found, _, err := r.ctx.FindObjects(r.session, 100)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.ctx.FindObjectsFinal(r.session); err != nil {
		r.t.Fatal(err)
	}
	return found
}

func (r raw) byID(id hierarchy.ObjectID) pkcs11.ObjectHandle {
	r.t.Helper()
	found := r.find(kekd.SearchByID(id)...)
	if len(found) != 1 {
		r.t.Fatalf("%d objects under %s, want 1", len(found), id)
	}
	return found[0]
}

// refusesExport tries the ways in which a key could leave the token.
func (r raw) refusesExport(name string, key pkcs11.ObjectHandle) {
	r.t.Helper()
	if v, err := r.ctx.GetAttributeValue(r.session, key, []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)}); !errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE)) {
		r.t.Errorf("CKA_VALUE of %s: %v (%d attributes), want CKR_ATTRIBUTE_SENSITIVE", name, err, len(v))
	}
	for change, template := range map[string][]*pkcs11.Attribute{
		"extractable":   {attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_EXTRACTABLE, true)},
		"not sensitive": {attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_SENSITIVE, false)},
		"not private":   {attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, false)},
	} {
		if made, err := r.ctx.CopyObject(r.session, key, template); err == nil {
			r.t.Errorf("a copy of %s that is %s was made: %d", name, change, made)
		}
	}
	for change, a := range map[string]*pkcs11.Attribute{
		"extractable":   attr(pkcs11.CKA_EXTRACTABLE, true),
		"not sensitive": attr(pkcs11.CKA_SENSITIVE, false),
	} {
		if err := r.ctx.SetAttributeValue(r.session, key, []*pkcs11.Attribute{a}); err == nil {
			r.t.Errorf("%s was made %s", name, change)
		}
	}
}

func attr(typ uint, value any) *pkcs11.Attribute { return pkcs11.NewAttribute(typ, value) }

// TestNothingLeavesTheToken: KEKs, session copies, agreement pairs, the intermediate secret and
// bridges refuse to give their value.
func TestNothingLeavesTheToken(t *testing.T) {
	h := hsmtest.NewSoftHSM(t, "east", "west")
	east, west := h.Open(t, 0, kekd.Config{Manager: true}), h.Open(t, 1, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])

	key := mint(t, east, hierarchy.ObjectID{1})
	r.refusesExport("a KEK", r.byID(key.ID))
	heat(t, east, key)
	copies := r.find(attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY))
	if len(copies) != 1 || east.CopyCount() != 1 {
		t.Fatalf("%d session keys, %d copies counted, want 1", len(copies), east.CopyCount())
	}
	r.refusesExport("a session copy", copies[0])

	mine, err := east.BeginAgreement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := west.BeginAgreement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pairs := r.find(attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
	if len(pairs) != 1 {
		t.Fatalf("%d private keys, want the pair's", len(pairs))
	}
	r.refusesExport("an agreement pair", pairs[0])

	// The intermediate, by the template that the package uses: it lives too short to be met.
	ecdh := pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, theirs.Public()))
	agreed, err := r.ctx.DeriveKey(r.session, []*pkcs11.Mechanism{ecdh}, pairs[0], kekd.IntermediateTemplate())
	if err != nil {
		t.Fatal(err)
	}
	r.refusesExport("the agreed secret", agreed)
	if err := r.ctx.EncryptInit(r.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil)}, agreed); err == nil {
		t.Error("the agreed secret encrypts")
	}
	if err := r.ctx.DestroyObject(r.session, agreed); err != nil {
		t.Fatal(err)
	}

	bridge, err := mine.Derive(t.Context(), theirs.Public(), hsm.KDFECDHAESCBC, []byte("info"), hierarchy.ObjectID{2}, "bridge")
	if err != nil {
		t.Fatal(err)
	}
	r.refusesExport("a bridge", r.byID(bridge.ID))

	// Nothing that could derive the bridge again is left.
	if err := mine.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := r.find(attr(pkcs11.CKA_DERIVE, true)); len(left) != 0 {
		t.Errorf("%d objects that can derive are left", len(left))
	}
	if left := r.find(attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)); len(left) != 0 {
		t.Errorf("%d private keys are left", len(left))
	}
	if session := r.find(attr(pkcs11.CKA_TOKEN, false)); len(session) != 1 {
		t.Errorf("%d session objects are left, want the one copy", len(session))
	}
}

// mint generates a key and gives the reference to it.
func mint(t testing.TB, token *kekd.Token, id hierarchy.ObjectID) hsm.KeyRef {
	t.Helper()
	obj, err := token.Generate(t.Context(), id, "kekd/test")
	if err != nil {
		t.Fatal(err)
	}
	return hsm.KeyRef{ID: obj.ID, Check: obj.Check}
}

// heat uses a key until it has its copy, and gives what it sealed.
func heat(t testing.TB, token *kekd.Token, key hsm.KeyRef) hsm.Sealed {
	t.Helper()
	var sealed hsm.Sealed
	for range 10 {
		op := sealOp(key)
		run(token, op)
		if op[0].Err != nil {
			t.Fatal(op[0].Err)
		}
		sealed = op[0].Sealed[0]
	}
	// A copy is made after the results are out, so it may take one more chunk to be there.
	if err := token.Healthy(t.Context()); err != nil {
		t.Fatal(err)
	}
	return sealed
}

func sealOp(key hsm.KeyRef) []hsm.Operation {
	return []hsm.Operation{{Plaintext: make([]byte, 32), To: []hsm.Target{{Key: key, AAD: []byte("a")}}}}
}

func openOp(key hsm.KeyRef, sealed hsm.Sealed) []hsm.Operation {
	return []hsm.Operation{{Reveal: true, Open: &hsm.Opening{Key: key, AAD: []byte("a"), Sealed: sealed}}}
}
