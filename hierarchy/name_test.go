package hierarchy_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
)

var (
	longestName = strings.Repeat("a", hierarchy.MaxNameLen)
	tooLongName = longestName + "a"
)

func TestValidateName(t *testing.T) {
	for _, s := range []string{"a", "0", "acme", "acme-2", "a--b", "0-9", longestName} {
		if err := hierarchy.ValidateName(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{
		"", "-", "-a", "a-", "A", "acme_2", "acme.com", "a b", " a", "a\n", "a/b", "a@1", "*", "{tenant}", "é", "a\x00", "a\xff",
		"\uff41", tooLongName,
	} {
		if err := hierarchy.ValidateName(s); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("%q: got %v, want an invalid argument", s, err)
		}
	}
}

func TestParseKeyName(t *testing.T) {
	got, err := hierarchy.ParseKeyName("acme/orders-eu")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(hierarchy.KeyName{Tenant: "acme", Key: "orders-eu"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for s, reason := range map[string]string{
		"":                 "TENANT/KEY",
		"acme":             "TENANT/KEY",
		"/orders":          "tenant in",
		"acme/":            "key in",
		"acme/orders/x":    "key in",
		"acme/orders@3":    "key in",
		"acme/*":           "key in",
		"*/orders":         "tenant in",
		"Acme/orders":      "tenant in",
		"acme/orders\n":    "key in",
		tooLongName + "/a": "tenant in",
	} {
		_, err := hierarchy.ParseKeyName(s)
		if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: got %v, want an invalid argument that says %q", s, err, reason)
		}
	}
}

func TestParseVersionName(t *testing.T) {
	for s, want := range map[string]hierarchy.VersionName{
		"acme/orders@1":          {KeyName: hierarchy.KeyName{Tenant: "acme", Key: "orders"}, Version: 1},
		"acme/orders@4294967295": {KeyName: hierarchy.KeyName{Tenant: "acme", Key: "orders"}, Version: 1<<32 - 1},
	} {
		got, err := hierarchy.ParseVersionName(s)
		if err != nil {
			t.Errorf("%q: %v", s, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", s, diff)
		}
	}
	for s, reason := range map[string]string{
		"":                       "TENANT/KEY@VERSION",
		"acme/orders":            "TENANT/KEY@VERSION",
		"acme@1":                 "TENANT/KEY",
		"acme/orders@":           "a number from 1",
		"acme/orders@0":          "a number from 1",
		"acme/orders@01":         "a number from 1",
		"acme/orders@+1":         "a number from 1",
		"acme/orders@-1":         "a number from 1",
		"acme/orders@1 ":         "a number from 1",
		"acme/orders@0x1":        "a number from 1",
		"acme/orders@1_0":        "a number from 1",
		"acme/orders@1@2":        "a number from 1",
		"acme/orders@4294967296": "a number from 1",
		"acme/orders@latest":     "a number from 1",
	} {
		_, err := hierarchy.ParseVersionName(s)
		if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: got %v, want an invalid argument that says %q", s, err, reason)
		}
	}
}

// The names of the documentation, as it writes them.
var nameSyntax = regexp.MustCompile(`\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\z`)

func FuzzValidateName(f *testing.F) {
	for _, s := range []string{"acme", "a-b", "-a", "a-", "", longestName, tooLongName, "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		err := hierarchy.ValidateName(s)
		if (err == nil) != nameSyntax.MatchString(s) {
			t.Fatalf("%q: %v, and %s says %v", s, err, nameSyntax, nameSyntax.MatchString(s))
		}
		if err != nil && !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Fatalf("%q: %v is no invalid argument", s, err)
		}
	})
}

func FuzzParseKeyName(f *testing.F) {
	for _, s := range []string{"acme/orders", "acme", "acme/", "/", "a/b/c", "acme/orders@3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := hierarchy.ParseKeyName(s)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%q: %v is no invalid argument", s, err)
			}
			return
		}
		if n.String() != s || !nameSyntax.MatchString(n.Tenant) || !nameSyntax.MatchString(n.Key) {
			t.Fatalf("%q is read as %q and %q", s, n.Tenant, n.Key)
		}
	})
}

func FuzzParseVersionName(f *testing.F) {
	for _, s := range []string{"acme/orders@3", "acme/orders@03", "acme/orders@4294967296", "acme/orders", "@1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := hierarchy.ParseVersionName(s)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%q: %v is no invalid argument", s, err)
			}
			return
		}
		if n.String() != s || n.Version == 0 {
			t.Fatalf("%q reads back as %q", s, n)
		}
	})
}
