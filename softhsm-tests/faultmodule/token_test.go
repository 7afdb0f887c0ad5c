package faultmodule_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

const testPIN = "1234"

// token is SoftHSM2 behind the fault module, logged in.
type token struct {
	*pkcs11.Ctx
	*faultmodule.Module

	t       testing.TB
	slot    uint
	session pkcs11.SessionHandle
}

// newToken makes a token in a directory of its own, loads the module into this process, and logs in.
func newToken(t testing.TB) *token {
	t.Helper()
	m := faultmodule.New(t)
	m.Setenv()
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)

	p := load(t, m.Path)
	slots := must(p.GetSlotList(false))(t)
	check(t, p.InitToken(slots[0], testPIN, "fault"))
	slots = must(p.GetSlotList(true))(t)
	tok := &token{Ctx: p, Module: m, t: t, slot: slots[0]}
	s := tok.open()
	check(t, p.Login(s, pkcs11.CKU_SO, testPIN))
	check(t, p.InitPIN(s, testPIN))
	check(t, p.Logout(s))
	check(t, p.Login(s, pkcs11.CKU_USER, testPIN))
	tok.session = s
	return tok
}

// load initialises the module at path in this process until the test ends.
func load(t testing.TB, path string) *pkcs11.Ctx {
	t.Helper()
	p := pkcs11.New(path)
	if p == nil {
		t.Fatalf("cannot load %s", path)
	}
	check(t, p.Initialize())
	t.Cleanup(func() {
		check(t, p.Finalize())
		p.Destroy()
	})
	return p
}

func (tok *token) open() pkcs11.SessionHandle {
	tok.t.Helper()
	return must(tok.OpenSession(tok.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION))(tok.t)
}

// generate makes an AES-256 key under the label, on the token or in the session.
func (tok *token) generate(label string, onToken bool) (pkcs11.ObjectHandle, error) {
	return tok.GenerateKey(tok.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, onToken),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
	})
}

func (tok *token) key() pkcs11.ObjectHandle {
	tok.t.Helper()
	return must(tok.generate("key", true))(tok.t)
}

// find counts the objects under the label.
func (tok *token) find(label string) int {
	tok.t.Helper()
	check(tok.t, tok.FindObjectsInit(tok.session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}))
	found, _, err := tok.FindObjects(tok.session, 100)
	check(tok.t, err)
	check(tok.t, tok.FindObjectsFinal(tok.session))
	return len(found)
}

// sealed is what AES-GCM made, and the IV that the token says it used.
type sealed struct{ iv, ciphertext []byte }

var testAAD = []byte("context")

func (tok *token) encrypt(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, plaintext, iv []byte) (sealed, error) {
	params := pkcs11.NewGCMParams(iv, testAAD, 128)
	defer params.Free()
	if err := tok.EncryptInit(s, mechanism(pkcs11.CKM_AES_GCM, params), key); err != nil {
		return sealed{}, err
	}
	ciphertext, err := tok.Encrypt(s, plaintext)
	return sealed{params.IV(), ciphertext}, err
}

func (tok *token) decrypt(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, in sealed) ([]byte, error) {
	params := pkcs11.NewGCMParams(in.iv, testAAD, 128)
	defer params.Free()
	if err := tok.DecryptInit(s, mechanism(pkcs11.CKM_AES_GCM, params), key); err != nil {
		return nil, err
	}
	return tok.Decrypt(s, in.ciphertext)
}

// works shows that the token seals and opens.
func (tok *token) works(key pkcs11.ObjectHandle) {
	tok.t.Helper()
	s := tok.open()
	defer func() { check(tok.t, tok.CloseSession(s)) }()
	plaintext := random(32)
	out := must(tok.encrypt(s, key, plaintext, random(12)))(tok.t)
	if got := must(tok.decrypt(s, key, out))(tok.t); !bytes.Equal(got, plaintext) {
		tok.t.Error("the token opens to something else")
	}
}

func mechanism(m uint, params any) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, params)}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

// wantCode fails the test unless err is this PKCS#11 return code.
func wantCode(t testing.TB, err error, code uint) {
	t.Helper()
	got := pkcs11.Error(pkcs11.CKR_OK)
	if err != nil && !errors.As(err, &got) {
		t.Fatalf("error %v, want code 0x%x", err, code)
	}
	if got != pkcs11.Error(code) {
		t.Fatalf("code 0x%x, want 0x%x", uint(got), code)
	}
}
