package hsmtest

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hsm"
)

// testExamine holds an examination to what the token says of itself otherwise, and to leaving nothing
// behind.
func testExamine(t *testing.T, d Device) {
	x, ok := d.Manager.(hsm.Examiner)
	if !ok {
		t.Fatalf("%T cannot be examined", d.Manager)
	}
	key := mint(t, d, kekID(acme, 1))
	dek := []byte("0123456789abcdef")
	sealed := seal(t, d, key, "a", dek)
	before, i := list(t, d), info(t, d)

	want := map[string]hsm.Verdict{
		"token": hsm.OK, "mechanisms": hsm.OK, "sessions": hsm.OK, "attributes": hsm.OK, "limits": hsm.OK,
		"latch": lacking(!i.CanLatch), "copies": lacking(!i.CanCopy), "kdf": lacking(len(i.KDFs) == 0),
	}
	for range 2 { // what the first one left would be in the way of the second
		checks, err := x.Examine(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]hsm.Verdict{}
		for _, c := range checks {
			got[c.Name] = c.Verdict
			if c.Meaning == "" || (c.Action == "") != (c.Verdict == hsm.OK) {
				t.Errorf("%s is %s: %q; what to do: %q", c.Name, c.Verdict, c.Meaning, c.Action)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("checks (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(before, list(t, d)); diff != "" {
			t.Errorf("the token's keys before and after (-before +after):\n%s", diff)
		}
	}
	mustOpen(t, d, key, "a", sealed, dek)
	if _, err := x.Examine(over()); err == nil {
		t.Error("an examination whose time is up")
	}
	healthy(t, d)
}

func lacking(yes bool) hsm.Verdict {
	if yes {
		return hsm.Degraded
	}
	return hsm.OK
}
