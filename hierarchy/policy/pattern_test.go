package policy_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

func TestParsePattern(t *testing.T) {
	long := strings.Repeat("a", hierarchy.MaxNameLen)
	for _, s := range []string{"acme/orders", "acme/*", "*/orders", "*/*", "a/0", long + "/" + long} {
		p, err := policy.ParsePattern(s)
		if err != nil {
			t.Errorf("%q: %v", s, err)
		} else if p.String() != s {
			t.Errorf("%q reads back as %q", s, p)
		}
	}
}

func TestParsePatternRefuses(t *testing.T) {
	for s, reason := range map[string]string{
		"":                "TENANT/KEY",
		"acme":            "TENANT/KEY",
		"*":               "TENANT/KEY",
		"ac*/orders":      "whole name",
		"acme/ord*":       "whole name",
		"*acme/orders":    "whole name",
		"**/orders":       "whole name",
		"acme/**":         "whole name",
		"acme/*/x":        "whole name",
		"/orders":         "tenant in pattern",
		"acme/":           "key in pattern",
		"/":               "tenant in pattern",
		"acme/orders/x":   "key in pattern",
		"Acme/orders":     "tenant in pattern",
		"acme/orders\n":   "key in pattern",
		" acme/orders":    "tenant in pattern",
		"acme/{tenant}":   "key in pattern",
		"acme/orders@3":   "key in pattern",
		"-a/orders":       "tenant in pattern",
		"acme/ord\x00ers": "key in pattern",
		strings.Repeat("a", hierarchy.MaxNameLen+1) + "/*": "tenant in pattern",
	} {
		_, err := policy.ParsePattern(s)
		if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: got %v, want an invalid argument that says %q", s, err, reason)
		}
	}
}

func TestZeroPatternNamesNoKey(t *testing.T) {
	for _, key := range []hierarchy.KeyName{{}, {Tenant: "acme", Key: "orders"}} {
		if (policy.Pattern{}).Matches(key) {
			t.Errorf("the zero pattern names %q", key)
		}
	}
}

// A pattern names a key if each of its segments is * or the whole name: said here over the
// text, and not over the fields.
func TestPatternMatchesWholeSegments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, key := drawPattern(t), drawKey(t)
		want := true
		segments := strings.Split(key.String(), "/")
		for i, s := range strings.Split(p.String(), "/") {
			want = want && (s == "*" || s == segments[i])
		}
		if got := p.Matches(key); got != want {
			t.Fatalf("%q names %q: %v, want %v", p, key, got, want)
		}
	})
}

func FuzzParsePattern(f *testing.F) {
	for _, s := range []string{"acme/orders", "acme/*", "*/orders", "*/*", "ac*/x", "a//b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := policy.ParsePattern(s)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%q: %v is no invalid argument", s, err)
			}
			return
		}
		if p.String() != s {
			t.Fatalf("%q reads back as %q", s, p)
		}
		// A pattern without * is a key's name, and names that key.
		if key, err := hierarchy.ParseKeyName(s); err == nil && !p.Matches(key) {
			t.Fatalf("%q does not name itself", s)
		} else if err != nil && !strings.Contains(s, "*") {
			t.Fatalf("%q is a pattern without * and no key's name: %v", s, err)
		}
	})
}
