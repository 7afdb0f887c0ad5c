package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRegions(t *testing.T) {
	for _, c := range []struct {
		flags string
		want  []devRegion
		wrong string
	}{
		{flags: ""},
		{flags: "eu=voting", want: []devRegion{{"eu", "voting", 1}}},
		{flags: "eu-west=voting*3 us=replica*2 w=witness", want: []devRegion{{"eu-west", "voting", 3}, {"us", "replica", 2}, {"w", "witness", 1}}},
		{flags: "eu", wrong: "NAME=ROLE"},
		{flags: "=voting", wrong: "name"},
		{flags: "EU=voting", wrong: "name"},
		{flags: "eu=", wrong: "role"},
		{flags: "eu=leader", wrong: "role"},
		{flags: "eu=voting*", wrong: "count"},
		{flags: "eu=voting*0", wrong: "count"},
		{flags: "eu=voting*-1", wrong: "count"},
		{flags: "eu=voting*3*3", wrong: "count"},
		{flags: "eu=voting*99", wrong: "count"},
		{flags: "eu=voting*20 us=replica*20", wrong: "40 nodes"},
		{flags: "eu=replica", wrong: "first region"},
		{flags: "w=witness eu=voting", wrong: "first region"},
		{flags: "eu=voting eu=replica", wrong: "twice"},
		{flags: strings.Repeat("a", 62) + "=voting", wrong: "name"}, // its node's would be too long
	} {
		got, err := parseRegions(strings.Fields(c.flags))
		switch {
		case c.wrong != "":
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: %v, want an error about %q", c.flags, err, c.wrong)
			}
		case err != nil:
			t.Errorf("%s: %v", c.flags, err)
		default:
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.flags, diff)
			}
		}
	}
}

// A directory keeps the regions that it was made with.
func TestRegionsOfADirectory(t *testing.T) {
	three, err := parseRegions([]string{"eu=voting*3"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		first, then, want []devRegion
		refused           bool
	}{
		"said nothing":            {nil, nil, oneNode, false},
		"said it twice":           {three, three, three, false},
		"said it once":            {three, nil, three, false},
		"the default, in words":   {nil, oneNode, oneNode, false},
		"others":                  {three, oneNode, nil, true},
		"more than there are":     {nil, three, nil, true},
		"another order of things": {[]devRegion{three[0], {"us", "replica", 1}}, []devRegion{{"us", "voting", 1}, three[0]}, nil, true},
	} {
		dir := t.TempDir()
		if _, err := keepRegions(dir, c.first); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := keepRegions(dir, c.then)
		if diff := cmp.Diff(c.want, got); diff != "" || (err != nil) != c.refused {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if c.refused && !strings.Contains(err.Error(), flagsOf(c.first)) && c.first != nil {
			t.Errorf("%s: it does not say what is there: %v", name, err)
		}
	}

	old := t.TempDir() // made before there was a list
	if err := os.MkdirAll(filepath.Join(old, "nodes", "local-1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := keepRegions(old, three); err == nil {
		t.Error("three nodes in a directory of one")
	}
	if got, err := keepRegions(old, nil); err != nil || !cmp.Equal(got, oneNode) {
		t.Errorf("the directory of one: %v, %v", got, err)
	}
}
