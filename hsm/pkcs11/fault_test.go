package pkcs11_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

func TestProbe(t *testing.T) {
	h := hsmtest.NewSoftHSM(t, "one", "two")
	got, err := kekd.Probe(h.URI(1), "")
	if err != nil {
		t.Fatal(err)
	}
	if got != h.Tokens[1] || got.Label != "two" || got.Manufacturer != "SoftHSM project" || got.Model != "SoftHSM v2" {
		t.Errorf("selected %+v", got)
	}
	if slots, copies := got.Profile(); slots != 1 || copies <= 0 {
		t.Errorf("SoftHSM's profile: %d slots, %d copies", slots, copies)
	}
	if slots, _ := (kekd.Selected{Manufacturer: "Thales", Model: "Luna K7"}).Profile(); slots < 2 {
		t.Errorf("a network HSM's profile: %d slots", slots)
	}
	for name, c := range map[string]struct {
		uri    kekd.URI
		module string
		want   error
		hint   string
	}{
		"no such label":          {kekd.URI{Token: "three"}, hsmtest.Module, hsm.ErrNoToken, `"one"`},
		"label and serial clash": {kekd.URI{Token: "one", Serial: h.Tokens[1].Serial}, hsmtest.Module, hsm.ErrNoToken, h.Tokens[1].Serial},
		"two fit":                {kekd.URI{Manufacturer: "SoftHSM project"}, hsmtest.Module, hsm.ErrTwoTokens, "serial="},
		"no module":              {kekd.URI{Token: "one"}, "", hsm.ErrNoModule, "module-path"},
		"relative module":        {kekd.URI{Token: "one"}, "lib.so", hsm.ErrNoModule, "absolute"},
		"missing module":         {kekd.URI{Token: "one"}, "/nowhere/lib.so", hsm.ErrNoModule, "/nowhere/lib.so"},
		"not a module":           {kekd.URI{Token: "one"}, "/lib/x86_64-linux-gnu/libc.so.6", hsm.ErrNoModule, "libc"},
	} {
		_, err := kekd.Probe(c.uri, c.module)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: %v, want %v and a word about %s", name, err, c.want, c.hint)
		}
	}
}

func TestInitToken(t *testing.T) {
	h := hsmtest.NewSoftHSM(t, "kekd")
	pin, err := kekd.NewPIN([]byte("1234"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kekd.InitToken(hsmtest.Module, "kekd", pin, pin); !errors.Is(err, kekd.ErrTokenExists) {
		t.Errorf("a second token of the label: %v, want ErrTokenExists", err)
	}
	for _, label := range []string{"", " kekd2", strings.Repeat("x", 33)} {
		if _, err := kekd.InitToken(hsmtest.Module, label, pin, pin); !errors.Is(err, hsm.ErrInvalidInput) {
			t.Errorf("label %q: %v, want ErrInvalidInput", label, err)
		}
	}
	entries, err := os.ReadDir(h.TokenDir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d token directories, want the one", len(entries))
	}
}

func TestPINIsTriedOnce(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	wrong, err := kekd.NewPIN([]byte("wrong"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kekd.Open(t.Context(), h.Tokens[0], kekd.Config{}); !errors.Is(err, hsm.ErrPINMissing) {
		t.Errorf("no PIN: %v, want ErrPINMissing", err)
	}
	_, err = kekd.Open(t.Context(), h.Tokens[0], kekd.Config{PIN: wrong})
	if !errors.Is(err, hsm.ErrPINIncorrect) {
		t.Errorf("wrong PIN: %v, want ErrPINIncorrect", err)
	}
	if strings.Contains(err.Error(), "wrong") {
		t.Errorf("the error repeats the PIN: %v", err)
	}
	// A wrong try is no reason to refuse the right one. SoftHSM flags it as COUNT_LOW.
	if _, err := kekd.Probe(h.URI(0), ""); err != nil {
		t.Errorf("probe after a wrong try: %v", err)
	}
	// Without the canary, only a manager opens the token.
	right, err := kekd.NewPIN([]byte(hsmtest.UserPIN))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kekd.Open(t.Context(), h.Tokens[0], kekd.Config{PIN: right}); !errors.Is(err, hsm.ErrKeyNotFound) || !strings.Contains(err.Error(), "canary") {
		t.Errorf("no canary: %v, want ErrKeyNotFound", err)
	}
	h.Open(t, 0, kekd.Config{Manager: true})
}

func TestMayLogIn(t *testing.T) {
	const ready = pkcs11.CKF_TOKEN_INITIALIZED | pkcs11.CKF_USER_PIN_INITIALIZED
	for flags, want := range map[uint]error{
		ready:                                 nil,
		ready | pkcs11.CKF_USER_PIN_COUNT_LOW: nil,
		ready | pkcs11.CKF_USER_PIN_FINAL_TRY: hsm.ErrPINLocked,
		ready | pkcs11.CKF_USER_PIN_LOCKED:    hsm.ErrPINLocked,
		uint(pkcs11.CKF_TOKEN_INITIALIZED):    hsm.ErrPINMissing,
		ready | pkcs11.CKF_SO_PIN_FINAL_TRY:   nil,
	} {
		if err := kekd.MayLogIn(pkcs11.TokenInfo{Flags: flags}); !errors.Is(err, want) {
			t.Errorf("flags %#x: %v, want %v", flags, err, want)
		}
	}
}

func TestCodes(t *testing.T) {
	for code, want := range map[uint]error{
		pkcs11.CKR_ENCRYPTED_DATA_INVALID:     hsm.ErrTagMismatch,
		0x42:                                  hsm.ErrTagMismatch,
		pkcs11.CKR_OBJECT_HANDLE_INVALID:      hsm.ErrKeyNotFound,
		pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: hsm.ErrKeyLatched,
		pkcs11.CKR_DEVICE_MEMORY:              hsm.ErrCapacity,
		pkcs11.CKR_PIN_INCORRECT:              hsm.ErrPINIncorrect,
		pkcs11.CKR_PIN_LOCKED:                 hsm.ErrPINLocked,
		0x1B:                                  hsm.ErrUnsupported,
		pkcs11.CKR_GENERAL_ERROR:              hsm.ErrUnavailable,
		pkcs11.CKR_DEVICE_REMOVED:             hsm.ErrUnavailable,
		pkcs11.CKR_HOST_MEMORY:                hsm.ErrUnavailable,
		0x80001234:                            hsm.ErrUnavailable,
	} {
		err := kekd.Failure("do something", pkcs11.Error(code))
		if !errors.Is(err, want) || !errors.Is(err, pkcs11.Error(code)) {
			t.Errorf("0x%X: %v, want %v", code, err, want)
		}
	}
	for _, code := range []uint{pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_OPERATION_ACTIVE} {
		if !kekd.SessionLost(pkcs11.Error(code)) {
			t.Errorf("0x%X does not replace the session", code)
		}
	}
	for _, code := range []uint{pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_USER_NOT_LOGGED_IN} {
		if !kekd.ModuleLost(pkcs11.Error(code)) {
			t.Errorf("0x%X does not end the token", code)
		}
	}
}

// TestLostSessions: whoever closed them, the sessions are replaced and nobody notices. The
// session copies die with theirs.
func TestLostSessions(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0]) // this session keeps the login
	key := mint(t, token, hierarchy.ObjectID{1})
	sealed := heat(t, token, key)
	if token.CopyCount() != 1 {
		t.Fatal("the key has no copy")
	}
	for range 3 {
		closed := 0
		for session := pkcs11.SessionHandle(1); session < 200; session++ {
			if session != r.session && r.ctx.CloseSession(session) == nil {
				closed++
			}
		}
		if closed < 3 {
			t.Fatalf("%d sessions closed, want the slot's, the manager's and the copies'", closed)
		}
		for range 5 {
			if err := run(token, openOp(key, sealed)); err != nil {
				t.Fatalf("opening: %v", err)
			}
		}
		if _, err := token.List(t.Context()); err != nil {
			t.Errorf("listing: %v", err)
		}
		heat(t, token, key)
		if n := token.CopyCount(); n != 1 {
			t.Errorf("%d copies after the sessions were replaced, want 1", n)
		}
	}
	if err := token.Forget(t.Context(), []hierarchy.ObjectID{key.ID}); err != nil {
		t.Error(err)
	}
}

// TestSessionOutOfStep: a session that another operation was begun in is replaced.
func TestSessionOutOfStep(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	key := mint(t, token, hierarchy.ObjectID{1})
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil)}
	handle, begun := r.byID(key.ID), 0
	for session := pkcs11.SessionHandle(1); session < 100; session++ {
		if session != r.session && r.ctx.EncryptInit(session, mechanism, handle) == nil {
			begun++
		}
	}
	if begun < 2 {
		t.Fatalf("%d sessions are out of step", begun)
	}
	if err := run(token, sealOp(key)); err != nil {
		t.Errorf("sealing: %v", err)
	}
	if err := token.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	if obj, err := token.Generate(t.Context(), hierarchy.ObjectID{2}, "x"); err != nil {
		t.Errorf("generating: %+v, %v", obj, err)
	}
}

// failed waits until the token reports that it is lost.
func failed(t *testing.T, token *kekd.Token) error {
	t.Helper()
	select {
	case err := <-token.Failed():
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the token did not report that it is lost")
		return nil
	}
}

// TestLostLogin: a module that is lost is reported once, and everything ends at once.
func TestLostLogin(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true, Copies: -1})
	r := newRaw(t, h.Tokens[0])
	key := mint(t, token, hierarchy.ObjectID{1})
	if err := r.ctx.Logout(r.session); err != nil {
		t.Fatal(err)
	}
	if err := run(token, sealOp(key)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("sealing: %v, want ErrUnavailable", err)
	}
	if err := failed(t, token); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("failed with %v, want ErrUnavailable", err)
	}
	if _, open := <-token.Failed(); open {
		t.Error("it failed twice")
	}
	if err := run(token, sealOp(key)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("sealing after it failed: %v", err)
	}
	if err := token.Healthy(t.Context()); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("healthy after it failed: %v", err)
	}
	if _, err := token.Generate(t.Context(), hierarchy.ObjectID{2}, "x"); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("generating after it failed: %v", err)
	}
}

// TestTokenGone: session copies go on working when the token is gone. The canary, which is on
// the token, tells; what looks like a bad tag is then no verdict about the envelope.
func TestTokenGone(t *testing.T) {
	for name, first := range map[string]func(*testing.T, *kekd.Token, hsm.KeyRef, hsm.KeyRef, hsm.Sealed){
		"Healthy": func(t *testing.T, token *kekd.Token, _, _ hsm.KeyRef, _ hsm.Sealed) {
			if err := token.Healthy(t.Context()); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("%v, want ErrUnavailable", err)
			}
		},
		"BadTag": func(t *testing.T, token *kekd.Token, hot, _ hsm.KeyRef, sealed hsm.Sealed) {
			sealed.Ciphertext = slices.Clone(sealed.Ciphertext)
			sealed.Ciphertext[0] ^= 1
			if err := run(token, openOp(hot, sealed)); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("%v, want ErrUnavailable", err)
			}
		},
		"ColdKey": func(t *testing.T, token *kekd.Token, _, cold hsm.KeyRef, _ hsm.Sealed) {
			if err := run(token, sealOp(cold)); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("%v, want ErrUnavailable: nobody knows whether the key is there", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := hsmtest.NewSoftHSM(t)
			token := h.Open(t, 0, kekd.Config{Manager: true})
			hot, cold := mint(t, token, hierarchy.ObjectID{1}), mint(t, token, hierarchy.ObjectID{2})
			sealed := heat(t, token, hot)
			if err := os.Rename(h.TokenDir, h.TokenDir+".away"); err != nil {
				t.Fatal(err)
			}
			first(t, token, hot, cold, sealed)
			if err := failed(t, token); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("failed with %v", err)
			}
		})
	}
}

// TestHang: a module that hangs keeps its thread, and no caller.
func TestHang(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true, Copies: -1})
	key, other := mint(t, token, hierarchy.ObjectID{1}), mint(t, token, hierarchy.ObjectID{4})
	if err := run(token, sealOp(key)); err != nil {
		t.Fatal(err)
	}
	generations, err := filepath.Glob(filepath.Join(h.TokenDir, "*", "generation"))
	if err != nil || len(generations) != 1 {
		t.Fatal(generations, err)
	}
	release := hang(t, generations[0])
	defer release()
	var wg sync.WaitGroup
	start := time.Now()
	for name, f := range map[string]func(context.Context) error{
		"do":       func(ctx context.Context) error { op := sealOp(key); token.Do(ctx, op); return op[0].Err },
		"do twice": func(ctx context.Context) error { op := sealOp(key); token.Do(ctx, op); return op[0].Err },
		"healthy":  token.Healthy,
		"list":     func(ctx context.Context) error { _, err := token.List(ctx); return err },
		"generate": func(ctx context.Context) error {
			_, err := token.Generate(ctx, hierarchy.ObjectID{2}, "x")
			return err
		},
		"latch":   func(ctx context.Context) error { return token.SetUsable(ctx, other.ID, false) },
		"destroy": func(ctx context.Context) error { return token.Destroy(ctx, hierarchy.ObjectID{3}) },
		"forget":  func(ctx context.Context) error { return token.Forget(ctx, []hierarchy.ObjectID{key.ID}) },
	} {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			err := f(ctx)
			if name == "forget" && err == nil {
				return // it came before all others: it asks the token nothing
			}
			if !errors.Is(err, hsm.ErrDeadline) {
				t.Errorf("%s: %v, want ErrDeadline", name, err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the callers waited for %v", took)
	}
	// What was given up is not done later behind the caller's back, and the rest goes on.
	release()
	eventually(t, func() error { return run(token, sealOp(key)) })
	if objects := listed(t, token, hierarchy.ObjectID{2}); len(objects) > 0 {
		t.Log("the generation that was running when its caller left has finished")
	}
}

// TestClose: who waits is told, and closing again does nothing.
func TestClose(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	key := mint(t, token, hierarchy.ObjectID{1})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				ops := make([]hsm.Operation, 200)
				for i := range ops {
					ops[i] = sealOp(key)[0]
				}
				if err := run(token, ops); err != nil {
					if !errors.Is(err, hsm.ErrUnavailable) {
						t.Errorf("%v, want ErrUnavailable", err)
					}
					return
				}
			}
		})
	}
	for range 2 {
		if err := token.Close(t.Context()); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	wg.Wait()
	if err, open := <-token.Failed(); open {
		t.Errorf("closing is reported as a failure: %v", err)
	}
	// The module was finalised, so it can be opened anew, and the key is still there.
	again := h.Open(t, 0, kekd.Config{})
	if err := run(again, sealOp(key)); err != nil {
		t.Error(err)
	}
}
