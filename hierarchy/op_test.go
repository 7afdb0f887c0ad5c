package hierarchy_test

import (
	"errors"
	"testing"

	"github.com/kekd/kekd/hierarchy"
)

// The bits stand in the replicated log and in snapshots.
func TestOpBitsAreFrozen(t *testing.T) {
	for name, bit := range map[string]hierarchy.Op{"wrap": 1, "unwrap": 2, "datakey": 4, "rewrap": 8} {
		got, err := hierarchy.ParseOp(name)
		if err != nil || got != bit {
			t.Errorf("%s is %d, %v; want %d", name, got, err, bit)
		}
		if bit.String() != name {
			t.Errorf("%d is called %s, want %s", bit, bit, name)
		}
	}
	if len(hierarchy.AllOps) != 4 {
		t.Errorf("there are %d operations, and 4 have a frozen bit", len(hierarchy.AllOps))
	}
	for _, s := range []string{"", "Wrap", "wrap ", "encrypt", "op(1)"} {
		if _, err := hierarchy.ParseOp(s); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("%q: got %v, want an invalid argument", s, err)
		}
	}
}

func TestParseOps(t *testing.T) {
	for s, want := range map[string]struct {
		set  hierarchy.Ops
		text string
	}{
		"wrap":                       {1, "wrap"},
		"unwrap,wrap":                {3, "wrap,unwrap"},
		"rewrap,datakey,unwrap,wrap": {15, "wrap,unwrap,datakey,rewrap"},
		"wrap,wrap":                  {1, "wrap"},
	} {
		got, err := hierarchy.ParseOps(s)
		if err != nil || got != want.set || got.String() != want.text {
			t.Errorf("%q: got %d (%s), %v; want %d (%s)", s, got, got, err, want.set, want.text)
		}
	}
	for _, s := range []string{"", ",", "wrap,", ",wrap", "wrap unwrap", "wrap, unwrap", "all", "*"} {
		if got, err := hierarchy.ParseOps(s); !errors.Is(err, hierarchy.ErrInvalidArgument) || got != 0 {
			t.Errorf("%q: got %d, %v; want no operation and an invalid argument", s, got, err)
		}
	}
}

// Every set has a text that reads back as the set, but for the empty one.
func TestOpsReadBack(t *testing.T) {
	for set := hierarchy.Ops(1); set < 16; set++ {
		got, err := hierarchy.ParseOps(set.String())
		if err != nil || got != set {
			t.Errorf("%s reads back as %s, %v", set, got, err)
		}
		for _, op := range hierarchy.AllOps {
			if got, want := set.Has(op), uint8(set)&uint8(op) != 0; got != want {
				t.Errorf("%s has %s: %v, want %v", set, op, got, want)
			}
		}
	}
}

func TestNoOperationIsInNoSet(t *testing.T) {
	for set := range hierarchy.Ops(16) {
		if set.Has(0) {
			t.Errorf("%s has no operation", set)
		}
	}
	if hierarchy.Ops(hierarchy.OpWrap).Has(hierarchy.OpWrap | hierarchy.OpUnwrap) {
		t.Error("wrap alone has wrap and unwrap")
	}
}

func FuzzParseOps(f *testing.F) {
	for _, s := range []string{"wrap", "wrap,unwrap", "", ",", "rewrap,x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		set, err := hierarchy.ParseOps(s)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%q: %v is no invalid argument", s, err)
			}
			return
		}
		if again, err := hierarchy.ParseOps(set.String()); err != nil || again != set {
			t.Fatalf("%q is %s, which reads back as %s, %v", s, set, again, err)
		}
	})
}
