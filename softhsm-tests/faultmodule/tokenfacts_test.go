package faultmodule_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

func TestOwnIV(t *testing.T) {
	for _, shape := range []faultmodule.Shape{faultmodule.OwnIVAtInit(), faultmodule.OwnIVAtEncrypt()} {
		t.Run(shape.Name, func(t *testing.T) {
			tok := newToken(t)
			key := tok.key()
			tok.Control.Set(shape.Rules...)

			asked, plaintext := random(12), random(32)
			params := pkcs11.NewGCMParams(asked, testAAD, 128)
			defer params.Free()
			check(t, tok.EncryptInit(tok.session, mechanism(pkcs11.CKM_AES_GCM, params), key))
			told := !bytes.Equal(params.IV(), asked)
			if want := shape.Name == faultmodule.OwnIVAtInit().Name; told != want {
				t.Errorf("IV told in C_EncryptInit: %v, want %v", told, want)
			}
			ciphertext := must(tok.Encrypt(tok.session, plaintext))(t)
			used := params.IV()
			if bytes.Equal(used, asked) {
				t.Fatal("the IV is the caller's")
			}

			if got := must(tok.decrypt(tok.session, key, sealed{used, ciphertext}))(t); !bytes.Equal(got, plaintext) {
				t.Error("it opens to something else")
			}
			if _, err := tok.decrypt(tok.open(), key, sealed{asked, ciphertext}); err == nil {
				t.Error("it opens under the IV that the caller asked for")
			}
			again := must(tok.encrypt(tok.session, key, plaintext, used))(t)
			if bytes.Equal(again.iv, used) {
				t.Error("the same IV twice")
			}
		})
	}
}

// In every session the caller gets the IV of that session, and a failed encryption leaves none behind.
func TestOwnIVOfManySessions(t *testing.T) {
	tok := newToken(t)
	key := tok.key()
	tok.Control.Set("token iv=encrypt", "C_Encrypt error=CKR_DEVICE_ERROR count=1")
	_, err := tok.encrypt(tok.open(), key, random(32), random(12))
	wantCode(t, err, pkcs11.CKR_DEVICE_ERROR)

	type open struct {
		session   pkcs11.SessionHandle
		params    *pkcs11.GCMParams
		plaintext []byte
	}
	var all []open
	for range 5 {
		o := open{tok.open(), pkcs11.NewGCMParams(make([]byte, 12), testAAD, 128), random(32)}
		defer o.params.Free()
		check(t, tok.EncryptInit(o.session, mechanism(pkcs11.CKM_AES_GCM, o.params), key))
		all = append(all, o)
	}
	for _, o := range slices.Backward(all) {
		ciphertext := must(tok.Encrypt(o.session, o.plaintext))(t)
		got := must(tok.decrypt(o.session, key, sealed{o.params.IV(), ciphertext}))(t)
		if !bytes.Equal(got, o.plaintext) {
			t.Error("it opens to something else")
		}
	}
}

func TestOwnIVNeedsRoomForIt(t *testing.T) {
	tok := newToken(t)
	key := tok.key()
	tok.Control.Set("token iv=init")
	for _, iv := range [][]byte{nil, random(8), random(16)} {
		_, err := tok.encrypt(tok.session, key, random(32), iv)
		wantCode(t, err, pkcs11.CKR_MECHANISM_PARAM_INVALID)
	}
}

func TestWithoutFunctions(t *testing.T) {
	tok := newToken(t)
	key := tok.key()
	latched := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, false)}

	tok.Control.Set(faultmodule.Restricted().Rules...)
	_, err := tok.CopyObject(tok.session, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)})
	wantCode(t, err, pkcs11.CKR_FUNCTION_NOT_SUPPORTED)
	wantCode(t, tok.SetAttributeValue(tok.session, key, latched), 0x1b)
	tok.works(key)

	tok.Control.Clear()
	must(tok.CopyObject(tok.session, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)}))(t)
	check(t, tok.SetAttributeValue(tok.session, key, latched))
}

func TestWithoutMechanisms(t *testing.T) {
	tok := newToken(t)
	all := mechanisms(tok)
	if !slices.Contains(all, pkcs11.CKM_ECDH1_DERIVE) || !slices.Contains(all, pkcs11.CKM_AES_GCM) {
		t.Fatal("SoftHSM lacks what this test takes away")
	}
	derive := func() error {
		_, err := tok.DeriveKey(tok.session, mechanism(pkcs11.CKM_ECDH1_DERIVE, pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, random(65))), 1,
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY)})
		return err
	}

	tok.Control.Set("token without=CKM_ECDH1_DERIVE without=0x1087") // 0x1087: CKM_AES_GCM
	want := slices.DeleteFunc(slices.Clone(all), func(m uint) bool {
		return m == pkcs11.CKM_ECDH1_DERIVE || m == pkcs11.CKM_AES_GCM
	})
	if diff := cmp.Diff(want, mechanisms(tok)); diff != "" {
		t.Errorf("mechanisms (-want +got):\n%s", diff)
	}
	_, err := tok.GetMechanismInfo(tok.slot, mechanism(pkcs11.CKM_ECDH1_DERIVE, nil))
	wantCode(t, err, pkcs11.CKR_MECHANISM_INVALID)
	wantCode(t, derive(), pkcs11.CKR_MECHANISM_INVALID)
	key := tok.key()
	_, err = tok.encrypt(tok.session, key, random(32), random(12))
	wantCode(t, err, pkcs11.CKR_MECHANISM_INVALID)
	must(tok.GetMechanismInfo(tok.slot, mechanism(pkcs11.CKM_AES_KEY_GEN, nil)))(t)

	tok.Control.Clear()
	wantCode(t, derive(), pkcs11.CKR_OBJECT_HANDLE_INVALID) // SoftHSM's answer: there is no key 1
	tok.works(key)
}

func mechanisms(tok *token) []uint {
	tok.t.Helper()
	var all []uint
	for _, m := range must(tok.GetMechanismList(tok.slot))(tok.t) {
		all = append(all, m.Mechanism)
	}
	return all
}

func TestTokenInfo(t *testing.T) {
	tok := newToken(t)
	before := must(tok.GetTokenInfo(tok.slot))(t)
	if before.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
		t.Fatalf("flags 0x%x: without a rule they are SoftHSM's", before.Flags)
	}
	tok.Control.Set(
		"token flags=CKF_USER_PIN_FINAL_TRY flags=CKF_USER_PIN_COUNT_LOW",
		"token free_private=4096 total_private=0x10000",
		"token free_public=1 total_public=2",
	)
	want := before
	want.Flags |= pkcs11.CKF_USER_PIN_FINAL_TRY | pkcs11.CKF_USER_PIN_COUNT_LOW
	want.FreePrivateMemory, want.TotalPrivateMemory = 4096, 65536
	want.FreePublicMemory, want.TotalPublicMemory = 1, 2
	got := must(tok.GetTokenInfo(tok.slot))(t)
	want.UTCTime = got.UTCTime
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("token info (-want +got):\n%s", diff)
	}
	tok.Control.Set("token flags=CKF_USER_PIN_LOCKED")
	if must(tok.GetTokenInfo(tok.slot))(t).Flags != before.Flags|pkcs11.CKF_USER_PIN_LOCKED {
		t.Error("the flag is not set, or an earlier one has stayed")
	}
}

func TestObjectLimit(t *testing.T) {
	tok := newToken(t)
	first := tok.key()
	tok.Control.Set("token objects=2")
	second := must(tok.generate("second", true))(t)

	full := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: made on a full token", what)
			return
		}
		wantCode(t, err, pkcs11.CKR_DEVICE_MEMORY)
	}
	onToken := pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)
	_, err := tok.generate("third", true)
	full("C_GenerateKey", err)
	_, err = tok.CopyObject(tok.session, first, []*pkcs11.Attribute{onToken})
	full("C_CopyObject", err)
	_, err = tok.CreateObject(tok.session, []*pkcs11.Attribute{onToken, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA)})
	full("C_CreateObject", err)
	_, _, err = tok.GenerateKeyPair(tok.session, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil), nil, []*pkcs11.Attribute{onToken})
	full("C_GenerateKeyPair", err)

	// Objects of the session need no room, and destroying one makes room. A search that is open goes on.
	must(tok.generate("session", false))(t)
	check(t, tok.FindObjectsInit(tok.session, nil))
	check(t, tok.DestroyObject(tok.session, second))
	must(tok.generate("third", true))(t)
	_, _, err = tok.FindObjects(tok.session, 1)
	check(t, err)
	check(t, tok.FindObjectsFinal(tok.session))
}

func TestVanished(t *testing.T) {
	tok := newToken(t)
	key := tok.key()
	tok.Control.Set("token vanished")
	for _, present := range []bool{true, false} {
		if slots := must(tok.GetSlotList(present))(t); len(slots) != 0 {
			t.Errorf("slots %v, want none", slots)
		}
	}
	_, err := tok.GetTokenInfo(tok.slot)
	wantCode(t, err, pkcs11.CKR_TOKEN_NOT_PRESENT)
	_, err = tok.OpenSession(tok.slot, pkcs11.CKF_SERIAL_SESSION)
	wantCode(t, err, pkcs11.CKR_TOKEN_NOT_PRESENT)
	_, err = tok.GetMechanismList(tok.slot)
	wantCode(t, err, pkcs11.CKR_TOKEN_NOT_PRESENT)
	_, err = tok.encrypt(tok.session, key, random(32), random(12))
	check(t, err)

	tok.Control.Clear()
	if slots := must(tok.GetSlotList(true))(t); !slices.Contains(slots, tok.slot) {
		t.Errorf("slots %v, want %d among them", slots, tok.slot)
	}
	tok.works(key)
}
