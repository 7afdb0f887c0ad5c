package pkcs11_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hsm/pkcs11"
)

func TestParseURI(t *testing.T) {
	for s, want := range map[string]pkcs11.URI{
		"pkcs11:token=kekd":                     {Token: "kekd"},
		"pkcs11:serial=14167051f270ef98":        {Serial: "14167051f270ef98"},
		"pkcs11:serial=1;token=a":               {Token: "a", Serial: "1"},
		"pkcs11:token=My%20token%2025%25%3B%2F": {Token: "My token 25%;/"},
		"pkcs11:token=caf%C3%A9":                {Token: "café"},
		"pkcs11:token=a=b&c":                    {Token: "a=b&c"},
		"pkcs11:token=t;manufacturer=SoftHSM%20project;model=SoftHSM%20v2?module-path=/usr/lib/a.so&pin-source=file:/etc/kekd/pin": {
			Token: "t", Manufacturer: "SoftHSM project", Model: "SoftHSM v2", ModulePath: "/usr/lib/a.so", PINSource: "file:/etc/kekd/pin"},
		"pkcs11:token=t?x-vendor=1&x-vendor=2&pin-source=hsm-pin": {Token: "t", PINSource: "hsm-pin"},
	} {
		got, err := pkcs11.ParseURI(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s, diff)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	for s, hint := range map[string]string{
		"":                           "pkcs11:",
		"PKCS11:token=a":             "pkcs11:",
		"pkcs11:":                    "token=",
		"pkcs11:?pin-source=file:/p": "token=",
		"pkcs11:manufacturer=x":      "token=",
		"pkcs11:token":               "name=value",
		"pkcs11:token=":              "empty",
		"pkcs11:token=a;":            "name=value",
		"pkcs11:;token=a":            "name=value",
		"pkcs11:token=a;token=b":     "twice",
		"pkcs11:token=a?pin-source=b&pin-source=c":    "twice",
		"pkcs11:slot-id=1;token=a":                    "slot",
		"pkcs11:slot-description=x;token=a":           "slot",
		"pkcs11:object=k;token=a":                     "object",
		"pkcs11:id=%01;token=a":                       "object",
		"pkcs11:x-mine=1;token=a":                     "not understood",
		"pkcs11:library-version=2;token=a":            "not understood",
		"pkcs11:token=a b":                            "percent-encoded",
		"pkcs11:token=a/b":                            "percent-encoded",
		"pkcs11:token=caf\u00e9":                      "percent-encoded",
		"pkcs11:token=%zz":                            "percent-encoded",
		"pkcs11:token=%4":                             "percent-encoded",
		"pkcs11:token=%ff":                            "UTF-8",
		"pkcs11:token=a%00":                           "UTF-8",
		"pkcs11:tok%65n=a":                            "name",
		"pkcs11:token=" + strings.Repeat("a", 33):     "room",
		"pkcs11:token=a;serial=01234567890123456":     "room",
		"pkcs11:token=a?module-path=lib.so":           "absolute",
		"pkcs11:token=a?module-name=softhsm2":         "module-path",
		"pkcs11:token=a?pin-value=1234":               "pin-source",
		"pkcs11:token=a?":                             "name=value",
		"pkcs11:token=a#frag":                         "percent-encoded",
		"pkcs11:token=" + strings.Repeat("%41", 2000): "longer",
	} {
		_, err := pkcs11.ParseURI(s)
		if !errors.Is(err, pkcs11.ErrURI) {
			t.Errorf("%q: %v, want ErrURI", s, err)
			continue
		}
		if !strings.Contains(err.Error(), hint) {
			t.Errorf("%q: the error does not say %q: %v", s, hint, err)
		}
		if strings.Contains(err.Error(), "1234") {
			t.Errorf("%q: the error repeats a PIN: %v", s, err)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("pkcs11:token=a%20b;serial=1?module-path=/a&pin-source=file:/b")
	f.Add("pkcs11:token=a?pin-value=1")
	f.Add("pkcs11:slot-id=3")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := pkcs11.ParseURI(s)
		if err != nil {
			if u != (pkcs11.URI{}) {
				t.Fatalf("an error and a URI: %+v", u)
			}
			return
		}
		again, err := pkcs11.ParseURI(u.String())
		if err != nil || again != u {
			t.Fatalf("%q was read as %+v, written as %q, read as %+v (%v)", s, u, u.String(), again, err)
		}
	})
}
