package pkcs11_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

// checkup runs a checkup and gives its verdicts, in their order.
func checkup(t *testing.T, u kekd.URI, module, pin string) (checks []hsm.Check, selected kekd.Selected) {
	t.Helper()
	var p kekd.PIN
	if pin != "" {
		var err error
		if p, err = kekd.NewPIN([]byte(pin)); err != nil {
			t.Fatal(err)
		}
	}
	selected = kekd.Checkup(t.Context(), u, module, p, nil, func(c hsm.Check) { checks = append(checks, c) })
	return checks, selected
}

func verdicts(checks []hsm.Check) (all []string) {
	for _, c := range checks {
		all = append(all, c.Name+" "+string(c.Verdict))
	}
	return all
}

// A fresh token, which nobody but its tool has used, is all that kekd needs, and is left as it was.
func TestCheckup(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	before := tokenFiles(t, h)
	checks, selected := checkup(t, kekd.URI{}, hsmtest.Module, hsmtest.UserPIN)
	want := []string{"module ok", "login ok", "token ok", "mechanisms ok", "sessions ok", "attributes ok", "limits ok", "latch ok", "copies ok", "kdf ok", "room ok"}
	if diff := cmp.Diff(want, verdicts(checks)); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
	if selected != h.Tokens[0] || !selected.IsSoftHSM() {
		t.Errorf("it looked at %+v, want %+v", selected, h.Tokens[0])
	}
	if diff := cmp.Diff(before, tokenFiles(t, h)); diff != "" {
		t.Errorf("files of the token (-before +after):\n%s", diff)
	}
}

func tokenFiles(t *testing.T, h *hsmtest.SoftHSM) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.TokenDir, "*", "*.object"))
	if err != nil || len(files) == 0 {
		t.Fatalf("files of the token: %q %v", files, err)
	}
	return files
}

func TestCheckupFindsWhatIsWrong(t *testing.T) {
	h := hsmtest.NewSoftHSM(t, "east", "west")
	for name, c := range map[string]struct {
		uri         kekd.URI
		module, pin string
		want        []string // the last of what is told
		words       string
	}{
		"no module":    {kekd.URI{}, "/nonexistent.so", hsmtest.UserPIN, []string{"module missing"}, "/nonexistent.so"},
		"not a module": {kekd.URI{}, h.Conf, hsmtest.UserPIN, []string{"module missing"}, h.Conf},
		"no token":     {kekd.URI{Token: "north"}, hsmtest.Module, hsmtest.UserPIN, []string{"module ok", "token missing"}, `label "east"`},
		"two tokens":   {kekd.URI{}, hsmtest.Module, hsmtest.UserPIN, []string{"module ok", "token missing"}, `label "west"`},
		"wrong PIN":    {kekd.URI{Token: "west"}, hsmtest.Module, "another", []string{"module ok", "login missing"}, "refuses the PIN"},
		"no PIN":       {kekd.URI{Token: "east"}, hsmtest.Module, "", []string{"module ok", "mechanisms ok", "login missing"}, "not opened"},
	} {
		t.Run(name, func(t *testing.T) {
			checks, _ := checkup(t, c.uri, c.module, c.pin)
			if diff := cmp.Diff(c.want, verdicts(checks)); diff != "" {
				t.Fatalf("checks (-want +got):\n%s", diff)
			}
			if last := checks[len(checks)-1]; !strings.Contains(last.Meaning, c.words) || last.Action == "" {
				t.Errorf("it says %q, and what to do: %q", last.Meaning, last.Action)
			}
			for _, check := range checks {
				if c.pin != "" && (strings.Contains(check.Meaning, c.pin) || strings.Contains(check.Action, c.pin)) {
					t.Errorf("the PIN is in %+v", check)
				}
			}
		})
	}
	// A wrong try before is told, until a right one has wiped it from the token's record.
	checkup(t, kekd.URI{Token: "west"}, hsmtest.Module, "another")
	for _, want := range []string{"login degraded", "login ok"} {
		checks, _ := checkup(t, kekd.URI{Token: "west"}, hsmtest.Module, hsmtest.UserPIN)
		if got := verdicts(checks); !slices.Contains(got, want) {
			t.Errorf("%q is not among %q", want, got)
		}
	}
}

// What an examination that was killed has left is swept by the next one.
func TestExamineSweeps(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	for range 2 {
		if _, err := r.ctx.GenerateKey(r.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, kekd.KEKTemplate(kekd.TrialID, "kekd/trial")); err != nil {
			t.Fatal(err)
		}
	}
	checks, err := token.Examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks {
		if c.Verdict != hsm.OK {
			t.Errorf("%s is %s: %s", c.Name, c.Verdict, c.Meaning)
		}
	}
	if left := r.find(kekd.SearchByID(kekd.TrialID)...); len(left) != 0 {
		t.Errorf("%d keys of trials are left", len(left))
	}
	if copies := r.find(attr(pkcs11.CKA_TOKEN, false)); len(copies) != 0 {
		t.Errorf("%d session objects are left", len(copies))
	}
}

// The canary, the identity's pair and what others keep are counted, once.
func TestInfoCountsOthers(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	r := newRaw(t, h.Tokens[0])
	if _, err := r.ctx.CreateObject(r.session, []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_VALUE, []byte("a note")),
	}); err != nil {
		t.Fatal(err)
	}
	mint(t, token, [20]byte{1})
	if err := token.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := h.Open(t, 0, kekd.Config{Manager: true}).Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Others != 2 { // the canary and the note
		t.Errorf("%d other objects, want 2", info.Others)
	}
	if info.FreeObjects != ^uint64(0) || info.MaxObjects != 32_768 {
		t.Errorf("%d objects fit by memory and %d by the model; SoftHSM does not tell the former", info.FreeObjects, info.MaxObjects)
	}
	if other := (kekd.Selected{Manufacturer: "Cavium", Model: "NITROX-III"}).MaxObjects(); other != 4_096 {
		t.Errorf("a token of another model is to hold %d objects", other)
	}
}

// An examination whose caller has left does not begin.
func TestExamineOfNobody(t *testing.T) {
	h := hsmtest.NewSoftHSM(t)
	token := h.Open(t, 0, kekd.Config{Manager: true})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := dirState(t, h)
	if _, err := token.Examine(ctx); err == nil {
		t.Error("it has examined the token for nobody")
	}
	if diff := cmp.Diff(before, dirState(t, h)); diff != "" {
		t.Errorf("files of the token (-before +after):\n%s", diff)
	}
}

func dirState(t *testing.T, h *hsmtest.SoftHSM) (all []string) {
	t.Helper()
	for _, f := range tokenFiles(t, h) {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f+" "+info.ModTime().String())
	}
	return all
}
