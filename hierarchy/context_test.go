package hierarchy_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
)

type entry = hierarchy.ContextEntry

func manyEntries(n int) []entry {
	var es []entry
	for i := range n {
		es = append(es, entry{Key: fmt.Sprintf("k%02d", i)})
	}
	return es
}

func TestNewContext(t *testing.T) {
	for name, c := range map[string]struct {
		entries []entry
		want    hierarchy.Context
	}{
		"empty":        {nil, nil},
		"one":          {[]entry{{Key: "app", Value: "billing"}}, hierarchy.Context{{Key: "app", Value: "billing"}}},
		"empty value":  {[]entry{{Key: "app"}}, hierarchy.Context{{Key: "app"}}},
		"sorted":       {[]entry{{Key: "b", Value: "2"}, {Key: "aa", Value: "1"}, {Key: "a", Value: "3"}}, hierarchy.Context{{Key: "a", Value: "3"}, {Key: "aa", Value: "1"}, {Key: "b", Value: "2"}}},
		"most entries": {manyEntries(hierarchy.MaxContextEntries), manyEntries(hierarchy.MaxContextEntries)},
		"longest": {
			[]entry{{Key: strings.Repeat("k", hierarchy.MaxContextKeyLen), Value: strings.Repeat("v", hierarchy.MaxContextValueLen)}},
			hierarchy.Context{{Key: strings.Repeat("k", hierarchy.MaxContextKeyLen), Value: strings.Repeat("v", hierarchy.MaxContextValueLen)}},
		},
	} {
		got, err := hierarchy.NewContext(c.entries...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestNewContextRefuses(t *testing.T) {
	for reason, entries := range map[string][]entry{
		"has 17 entries":       manyEntries(hierarchy.MaxContextEntries + 1),
		"an empty key":         {{Key: "app"}, {Value: "x"}},
		`the key "app" twice`:  {{Key: "app", Value: "1"}, {Key: "b"}, {Key: "app", Value: "2"}},
		"has 129 bytes":        {{Key: strings.Repeat("k", hierarchy.MaxContextKeyLen+1)}},
		"has 1025 bytes":       {{Key: "app", Value: strings.Repeat("v", hierarchy.MaxContextValueLen+1)}},
		"is not UTF-8":         {{Key: "app", Value: "\xff"}},
		"context is not UTF-8": {{Key: "\xc3"}},
	} {
		ctx, err := hierarchy.NewContext(entries...)
		if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), reason) {
			t.Errorf("got %v, want an invalid argument that says %q", err, reason)
		}
		if ctx != nil {
			t.Errorf("%s: got a context beside the error", reason)
		}
	}
}

// Order carries no meaning, the caller's slice stays as it was, and every entry is found again.
func TestContextIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := rapid.MapOfN(rapid.StringN(1, 10, 40), rapid.StringN(0, 10, 40), 0, hierarchy.MaxContextEntries).Draw(t, "entries")
		var entries []entry
		for key, value := range m {
			entries = append(entries, entry{Key: key, Value: value})
		}
		before := slices.Clone(entries)
		ctx, err := hierarchy.NewContext(entries...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, entries); diff != "" {
			t.Fatalf("the caller's slice was changed:\n%s", diff)
		}
		slices.Reverse(entries)
		other, err := hierarchy.NewContext(entries...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ctx, other); diff != "" {
			t.Fatalf("another order gives another context:\n%s", diff)
		}
		if len(ctx) != len(m) {
			t.Fatalf("%d entries, want %d", len(ctx), len(m))
		}
		for key, value := range m {
			if got, ok := ctx.Get(key); !ok || got != value {
				t.Fatalf("%q is %q, %v; want %q", key, got, ok, value)
			}
		}
		if _, ok := ctx.Get("\xff is in no context"); ok {
			t.Fatal("found a key that is not there")
		}
	})
}

func TestParseContextEntry(t *testing.T) {
	for s, want := range map[string]entry{
		"app=billing": {Key: "app", Value: "billing"},
		"app=":        {Key: "app"},
		"expr=a=b":    {Key: "expr", Value: "a=b"},
		" a = b ":     {Key: " a ", Value: " b "},
	} {
		got, err := hierarchy.ParseContextEntry(s)
		if err != nil {
			t.Errorf("%q: %v", s, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", s, diff)
		}
	}
	for _, s := range []string{"", "app", "=", "=billing"} {
		if _, err := hierarchy.ParseContextEntry(s); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("%q: got %v, want an invalid argument", s, err)
		}
	}
}

func FuzzParseContextEntry(f *testing.F) {
	for _, s := range []string{"app=billing", "app=", "a=b=c", "=", "app"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := hierarchy.ParseContextEntry(s)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%q: %v is no invalid argument", s, err)
			}
			return
		}
		if e.Key == "" || e.Key+"="+e.Value != s {
			t.Fatalf("%q is read as %q and %q", s, e.Key, e.Value)
		}
	})
}
