package hierarchy_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
)

const someID = "000102030405060708090a0b0c0d0eff"

func TestParseID(t *testing.T) {
	want := hierarchy.ID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255}
	got, err := hierarchy.ParseID(someID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got.String() != someID {
		t.Errorf("reads back as %s", got)
	}
}

func TestParseIDRefuses(t *testing.T) {
	for s, reason := range map[string]string{
		"":                      "got 0 characters",
		someID[1:]:              "got 31 characters",
		someID + "00":           "got 34 characters",
		someID + "\n":           "got 33 characters",
		strings.ToUpper(someID): "lower case",
		"A" + someID[1:]:        "lower case",
		"F" + someID[1:]:        "lower case",
		"g" + someID[1:]:        "hex digits",
		" " + someID[1:]:        "hex digits",
		someID[:30] + "é":       "hex digits",
	} {
		_, err := hierarchy.ParseID(s)
		if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: got %v, want an invalid argument that says %q", s, err, reason)
		}
	}
}

func TestIDFromBytes(t *testing.T) {
	b := []byte("0123456789abcdef")
	got, err := hierarchy.IDFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(hierarchy.ID(b), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, n := range []int{0, 15, 17} {
		if _, err := hierarchy.IDFromBytes(make([]byte, n)); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("%d bytes: got %v, want an invalid argument", n, err)
		}
	}
}

func TestNewID(t *testing.T) {
	a, b := hierarchy.NewID(), hierarchy.NewID()
	if a == b {
		t.Errorf("drew %s twice", a)
	}
	if a.IsZero() || !(hierarchy.ID{}).IsZero() {
		t.Error("IsZero is not true for the zero ID alone")
	}
}

// The typed identifiers stand in configuration and JSON as plain hex.
func TestTypedIDsAreText(t *testing.T) {
	id, err := hierarchy.ParseID(someID)
	if err != nil {
		t.Fatal(err)
	}
	type document struct {
		Tenant hierarchy.TenantID
		Region hierarchy.RegionID
	}
	want := document{hierarchy.TenantID{ID: id}, hierarchy.RegionID{ID: hierarchy.ID{1}}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if text := `{"Tenant":"` + someID + `","Region":"01000000000000000000000000000000"}`; string(b) != text {
		t.Errorf("got %s, want %s", b, text)
	}
	var got document
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(someID)
	f.Add(strings.ToUpper(someID))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := hierarchy.ParseID(s)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%q: %v is no invalid argument", s, err)
			}
			return
		}
		if id.String() != s {
			t.Fatalf("%q reads back as %q", s, id)
		}
	})
}
