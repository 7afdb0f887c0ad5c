package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/identity"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

func config(h *hsmtest.SoftHSM) identity.Config {
	return identity.Config{Module: hsmtest.Module, Serial: h.Tokens[0].Serial, PIN: []byte(hsmtest.UserPIN)}
}

func closed(t *testing.T, i *identity.Identity) {
	t.Helper()
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCreateThenOpen(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	if _, err := identity.Open(config(h)); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Fatalf("open before create: %v, want ErrKeyNotFound", err)
	}
	made, err := identity.Create(config(h))
	if err != nil {
		t.Fatal(err)
	}
	public := made.Public().(*ecdsa.PublicKey)
	closed(t, made)

	if _, err := identity.Create(config(h)); !errors.Is(err, identity.ErrExists) {
		t.Fatalf("create again: %v, want ErrExists", err)
	}
	i, err := identity.Open(config(h))
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, i)
	if !public.Equal(i.Public()) {
		t.Fatal("open gives another key than create made")
	}
	digest := sha256.Sum256([]byte("statement"))
	sig, err := i.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(public, digest[:], sig) {
		t.Error("the signature does not verify")
	}
	if _, err := i.Sign(rand.Reader, digest[:31], crypto.SHA256); !errors.Is(err, hsm.ErrInvalidInput) {
		t.Errorf("a short digest: %v, want ErrInvalidInput", err)
	}
}

func TestWrongPIN(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	wrong := config(h)
	wrong.PIN = []byte("not the PIN")
	if _, err := identity.Create(wrong); !errors.Is(err, hsm.ErrPINIncorrect) {
		t.Fatalf("create: %v, want ErrPINIncorrect", err)
	}
	// One try was used, and it is not the last: the right PIN still works.
	i, err := identity.Create(config(h))
	if err != nil {
		t.Fatal(err)
	}
	closed(t, i)
}

// The identity owns the module and the login, and the serving side joins both without a PIN.
func TestServingBesideIdentity(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	i, err := identity.Create(config(h))
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, i)
	token, err := kekd.Open(t.Context(), h.Tokens[0], kekd.Config{Manager: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	if err := token.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The module is still the identity's.
	digest := sha256.Sum256(nil)
	if _, err := i.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		t.Errorf("sign after the serving side closed: %v", err)
	}
}

// raw logs in beside the package, to look at what it made.
func raw(t *testing.T, h *hsmtest.SoftHSM) (*pkcs11.Ctx, pkcs11.SessionHandle) {
	t.Helper()
	ctx := pkcs11.New(hsmtest.Module)
	if err := ctx.Initialize(); err != nil && err != pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		t.Fatal(err)
	} else if err == nil {
		t.Cleanup(func() { ctx.Finalize() })
	}
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if info, err := ctx.GetTokenInfo(slot); err != nil || info.SerialNumber != h.Tokens[0].Serial {
			continue
		}
		s, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		if err := ctx.Login(s, pkcs11.CKU_USER, hsmtest.UserPIN); err != nil && err != pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
			t.Fatal(err)
		}
		return ctx, s
	}
	t.Fatal("no slot")
	return nil, 0
}

func find(t *testing.T, ctx *pkcs11.Ctx, s pkcs11.SessionHandle, class uint) []pkcs11.ObjectHandle {
	t.Helper()
	if err := ctx.FindObjectsInit(s, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, identity.Label),
	}); err != nil {
		t.Fatal(err)
	}
	found, _, err := ctx.FindObjects(s, 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := ctx.FindObjectsFinal(s); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestPrivateHalfOnlySigns(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	i, err := identity.Create(config(h))
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, i)
	ctx, s := raw(t, h)
	private := find(t, ctx, s, pkcs11.CKO_PRIVATE_KEY)
	if len(private) != 1 {
		t.Fatalf("%d private halves", len(private))
	}
	for typ, want := range map[uint]byte{
		pkcs11.CKA_TOKEN: 1, pkcs11.CKA_PRIVATE: 1, pkcs11.CKA_SENSITIVE: 1, pkcs11.CKA_ALWAYS_SENSITIVE: 1,
		pkcs11.CKA_NEVER_EXTRACTABLE: 1, pkcs11.CKA_LOCAL: 1, pkcs11.CKA_SIGN: 1,
		pkcs11.CKA_EXTRACTABLE: 0, pkcs11.CKA_DECRYPT: 0, pkcs11.CKA_UNWRAP: 0, pkcs11.CKA_DERIVE: 0, pkcs11.CKA_SIGN_RECOVER: 0,
	} {
		got, err := ctx.GetAttributeValue(s, private[0], []*pkcs11.Attribute{pkcs11.NewAttribute(typ, nil)})
		if err != nil || len(got[0].Value) != 1 || got[0].Value[0] != want {
			t.Errorf("attribute 0x%X: %v %v, want %d", typ, got, err, want)
		}
	}
	if _, err := ctx.GetAttributeValue(s, private[0], []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)}); err != pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
		t.Errorf("CKA_VALUE: %v, want CKR_ATTRIBUTE_SENSITIVE", err)
	}
}

// What a crash during creation leaves, and what was imported under the label, are no identity.
func TestRemainsAreNoIdentity(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	first, err := identity.Create(config(h))
	if err != nil {
		t.Fatal(err)
	}
	public := first.Public().(*ecdsa.PublicKey)
	ctx, s := raw(t, h)
	// A crash left the public half alone.
	for _, handle := range find(t, ctx, s, pkcs11.CKO_PRIVATE_KEY) {
		if err := ctx.DestroyObject(s, handle); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, first)
	if _, err := identity.Open(config(h)); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Fatalf("open with half a pair: %v, want ErrKeyNotFound", err)
	}
	second, err := identity.Create(config(h))
	if err != nil {
		t.Fatalf("create beside half a pair: %v", err)
	}
	if public.Equal(second.Public()) {
		t.Fatal("the new identity took the old public half")
	}
	closed(t, second)
	again, err := identity.Open(config(h))
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, again)
	if !second.Public().(*ecdsa.PublicKey).Equal(again.Public()) {
		t.Error("open gives another key than create made")
	}
}

func TestTwoIdentitiesAreAmbiguous(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	i, err := identity.Create(config(h))
	if err != nil {
		t.Fatal(err)
	}
	ctx, s := raw(t, h)
	generate(t, ctx, s, false)
	closed(t, i)
	if _, err := identity.Open(config(h)); !errors.Is(err, hsm.ErrAmbiguous) {
		t.Fatalf("open: %v, want ErrAmbiguous", err)
	}
}

func TestIdentityThatMayDeriveIsRefused(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	i, err := identity.Create(config(h)) // to have a login beside which to make the other
	if err != nil {
		t.Fatal(err)
	}
	ctx, s := raw(t, h)
	for _, handle := range find(t, ctx, s, pkcs11.CKO_PRIVATE_KEY) {
		if err := ctx.DestroyObject(s, handle); err != nil {
			t.Fatal(err)
		}
	}
	generate(t, ctx, s, true)
	closed(t, i)
	if _, err := identity.Open(config(h)); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Fatalf("open: %v, want ErrKeyRefused", err)
	}
}

// generate makes a pair with the identity's label, as somebody with the PIN could.
func generate(t *testing.T, ctx *pkcs11.Ctx, s pkcs11.SessionHandle, derive bool) {
	t.Helper()
	id := []byte("another id")
	p256 := []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
	attr := pkcs11.NewAttribute
	_, _, err := ctx.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
		[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_EC_PARAMS, p256), attr(pkcs11.CKA_ID, id), attr(pkcs11.CKA_LABEL, identity.Label)},
		[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
			attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_SIGN_RECOVER, false),
			attr(pkcs11.CKA_DERIVE, derive), attr(pkcs11.CKA_ID, id), attr(pkcs11.CKA_LABEL, identity.Label)})
	if err != nil {
		t.Fatal(err)
	}
}
