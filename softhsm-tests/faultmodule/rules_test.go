package faultmodule_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"
)

func TestWithoutRulesItForwards(t *testing.T) {
	tok := newToken(t)
	key := tok.key()
	before := tok.Counters.Calls("C_Encrypt")
	for range 3 {
		tok.works(key)
	}
	if got := tok.Counters.Calls("C_Encrypt") - before; got != 3 {
		t.Errorf("%d calls of C_Encrypt, want 3: the question for the length is none", got)
	}
	if tok.find("key") != 1 || tok.Counters.Calls("C_FindObjects") != 1 {
		t.Error("the search was not done or not counted")
	}
	if got := tok.Counters.Calls("C_CopyObject"); got != 0 {
		t.Errorf("%d calls of C_CopyObject, want none", got)
	}
	if got := tok.Counters.Inside("C_Encrypt"); got != 0 {
		t.Errorf("%d calls inside of C_Encrypt, want none", got)
	}
}

// results calls C_GenerateRandom n times.
func results(tok *token, n int) []uint {
	var codes []uint
	for range n {
		_, err := tok.GenerateRandom(tok.session, 16)
		code, _ := err.(pkcs11.Error)
		codes = append(codes, uint(code))
	}
	return codes
}

func TestErrorByCount(t *testing.T) {
	const device, removed, own = pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, 0x80000123
	tests := []struct {
		name  string
		rules []string
		want  []uint
	}{
		{"all", []string{"C_GenerateRandom error=CKR_DEVICE_ERROR"}, []uint{device, device, device, device, device}},
		{"after", []string{"C_GenerateRandom error=CKR_DEVICE_ERROR after=2"}, []uint{0, 0, device, device, device}},
		{"count", []string{"C_GenerateRandom error=CKR_DEVICE_ERROR count=2"}, []uint{device, device, 0, 0, 0}},
		{"both", []string{"C_GenerateRandom error=CKR_DEVICE_ERROR after=1 count=2"}, []uint{0, device, device, 0, 0}},
		{"hex", []string{"C_GenerateRandom error=0x80000123 after=4"}, []uint{0, 0, 0, 0, own}},
		{"every function", []string{"* error=CKR_DEVICE_REMOVED after=3"}, []uint{0, 0, 0, removed, removed}},
		{"another function", []string{"C_SeedRandom error=CKR_DEVICE_REMOVED"}, []uint{0, 0, 0, 0, 0}},
		{"two rules count each", []string{
			"C_GenerateRandom error=CKR_DEVICE_ERROR after=1 count=1",
			"C_GenerateRandom error=CKR_DEVICE_REMOVED after=3 count=1",
		}, []uint{0, device, 0, removed, 0}},
		{"the later rule", []string{
			"* error=CKR_DEVICE_ERROR",
			"C_GenerateRandom error=CKR_DEVICE_REMOVED count=1 # this one",
		}, []uint{removed, device, device, device, device}},
	}
	tok := newToken(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tok.Control.Set(tt.rules...)
			defer tok.Control.Clear()
			if diff := cmp.Diff(tt.want, results(tok, 5)); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrorsByName(t *testing.T) {
	tok := newToken(t)
	for name, code := range map[string]uint{
		"CKR_DEVICE_ERROR":               pkcs11.CKR_DEVICE_ERROR,
		"CKR_DEVICE_REMOVED":             pkcs11.CKR_DEVICE_REMOVED,
		"CKR_DEVICE_MEMORY":              pkcs11.CKR_DEVICE_MEMORY,
		"CKR_TOKEN_NOT_PRESENT":          pkcs11.CKR_TOKEN_NOT_PRESENT,
		"CKR_SESSION_HANDLE_INVALID":     pkcs11.CKR_SESSION_HANDLE_INVALID,
		"CKR_SESSION_CLOSED":             pkcs11.CKR_SESSION_CLOSED,
		"CKR_USER_NOT_LOGGED_IN":         pkcs11.CKR_USER_NOT_LOGGED_IN,
		"CKR_HOST_MEMORY":                pkcs11.CKR_HOST_MEMORY,
		"CKR_GENERAL_ERROR":              pkcs11.CKR_GENERAL_ERROR,
		"CKR_OBJECT_HANDLE_INVALID":      pkcs11.CKR_OBJECT_HANDLE_INVALID,
		"CKR_KEY_FUNCTION_NOT_PERMITTED": pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED,
		"CKR_FUNCTION_NOT_SUPPORTED":     pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
		"CKR_ACTION_PROHIBITED":          0x1b,
		"CKR_PIN_INCORRECT":              pkcs11.CKR_PIN_INCORRECT,
		"CKR_PIN_LOCKED":                 pkcs11.CKR_PIN_LOCKED,
	} {
		tok.Control.Set("C_Login error=" + name)
		err := tok.Login(tok.session, pkcs11.CKU_USER, testPIN)
		if err == nil {
			t.Fatalf("no error %s", name)
		}
		wantCode(t, err, code)
	}
	tok.Control.Clear()
	wantCode(t, tok.Login(tok.session, pkcs11.CKU_USER, testPIN), pkcs11.CKR_USER_ALREADY_LOGGED_IN)
}

// The two halves of an unanswered call: it was not done, or it was.
func TestErrorBeforeAndAfter(t *testing.T) {
	tok := newToken(t)
	for when, want := range map[string]int{"before": 0, "after": 1} {
		tok.Control.Set("C_GenerateKey error=CKR_DEVICE_ERROR when=" + when)
		_, err := tok.generate(when, true)
		wantCode(t, err, pkcs11.CKR_DEVICE_ERROR)
		tok.Control.Clear()
		if got := tok.find(when); got != want {
			t.Errorf("%d keys after an error %s, want %d", got, when, want)
		}
	}
}

// A token that says done and did nothing.
func TestErrorOK(t *testing.T) {
	tok := newToken(t)
	key := tok.key()
	tok.Control.Set("C_DestroyObject error=CKR_OK count=1")
	check(t, tok.DestroyObject(tok.session, key))
	if tok.find("key") != 1 {
		t.Error("it was destroyed")
	}
	check(t, tok.DestroyObject(tok.session, key))
	if tok.find("key") != 0 {
		t.Error("it was not destroyed")
	}
}

// An error before C_Encrypt leaves the operation active, one after it does not.
func TestErrorAndTheActiveOperation(t *testing.T) {
	tok := newToken(t)
	key := tok.key()
	for when, want := range map[string]uint{"before": pkcs11.CKR_OPERATION_ACTIVE, "after": pkcs11.CKR_OK} {
		s := tok.open()
		tok.Control.Set("C_Encrypt error=CKR_DEVICE_ERROR count=1 when=" + when)
		_, err := tok.encrypt(s, key, random(32), random(12))
		wantCode(t, err, pkcs11.CKR_DEVICE_ERROR)
		_, err = tok.encrypt(s, key, random(32), random(12))
		wantCode(t, err, want)
	}
}

func TestHangUntilCleared(t *testing.T) {
	tok := newToken(t)
	for _, when := range []string{"before", "after"} {
		s := tok.open()
		closed := func() bool {
			_, err := tok.GetSessionInfo(s)
			return err == pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)
		}
		tok.Control.Set("C_CloseSession hang count=1 when=" + when)
		answered := make(chan error, 1)
		go func() { answered <- tok.CloseSession(s) }()
		tok.Counters.AwaitInside("C_CloseSession", 1)

		// Other rules do not let it go, and other calls pass.
		tok.Control.Set("C_CloseSession hang after=1000", "C_SeedRandom error=CKR_DEVICE_ERROR")
		if when == "after" {
			await(t, "the real module was not called", closed)
		} else if closed() {
			t.Error("the real module was called")
		}
		select {
		case err := <-answered:
			t.Fatalf("it returned (%v) while the file had a hang", err)
		case <-time.After(20 * time.Millisecond):
		}

		tok.Control.Clear()
		check(t, <-answered)
		if !closed() {
			t.Error("it was let go, and the real module was not called")
		}
		if got := tok.Counters.Inside("C_CloseSession"); got != 0 {
			t.Errorf("%d calls inside, want none", got)
		}
	}
}

func await(t *testing.T, otherwise string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(otherwise)
		}
	}
}
