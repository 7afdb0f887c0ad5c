package softhsm_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hsm/softhsm"
	"pgregory.net/rapid"
)

// What is found under a name, and under its name in the shadow, in every combination.
func TestRepairDecides(t *testing.T) {
	whole, other, torn, empty := secretKey("one"), secretKey("two"), secretKey("one")[:100], []byte{}
	for _, c := range []struct {
		name         string
		file, shadow []byte
		want         []byte // the file and the copy after it
		report       string // what happens to it
	}{
		{"nothing wrong", whole, whole, whole, ""},
		{"not yet copied", whole, nil, whole, "adopted"},
		{"changed since", whole, other, whole, "adopted"},
		{"the copy is torn", whole, torn, whole, "adopted"},
		{"torn", torn, whole, whole, "restored"},
		{"empty", empty, whole, whole, "restored"},
		{"missing", nil, whole, whole, "restored"},
		{"half-made", torn, nil, nil, "quarantined"},
		{"empty and new", empty, nil, nil, "quarantined"},
		{"both torn", torn, torn, nil, "quarantined lost"},
		{"missing, the copy torn", nil, torn, nil, "lost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, path := newDir(t)
			write(t, token("t"), path, "tokens", tokenName, "token.object")
			repair(t, d)
			write(t, c.file, path, "tokens", tokenName, "k.object")
			write(t, []byte{}, path, "tokens", tokenName, "k.lock")
			writeCopy(t, c.shadow, path, "k")

			r := repair(t, d)
			var did []string
			for word, files := range map[string][]string{
				"adopted": r.Adopted, "restored": r.Restored, "quarantined": r.Quarantined, "lost": r.Lost,
			} {
				if slices.Contains(files, tokenName+"/k.object") {
					did = append(did, word)
				}
			}
			slices.Sort(did)
			wanted := strings.Fields(c.report)
			slices.Sort(wanted)
			if !slices.Equal(did, wanted) {
				t.Errorf("it was %v, not %v", did, wanted)
			}
			after := tree(t, path, false)
			for _, place := range []string{"tokens", "shadow"} {
				got, found := after[filepath.Join(place, tokenName, "k.object")]
				if found != (c.want != nil) || inner(got) != inner(string(c.want)) {
					t.Errorf("%s: there: %v, %d bytes", place, found, len(got))
				}
			}
			if kept := after[filepath.Join("quarantine", tokenName, "k.object")]; slices.Contains(wanted, "quarantined") && kept != string(c.file) {
				t.Error("what was moved aside is not what it was")
			}
			if r := repair(t, d); !r.Empty() {
				t.Errorf("a second repair: %s", r)
			}
		})
	}
}

func TestRepairOfToken(t *testing.T) {
	t.Run("torn without a copy", func(t *testing.T) {
		d, path := newDir(t)
		write(t, []byte{}, path, "tokens", tokenName, "token.object")
		write(t, secretKey("torn")[:50], path, "tokens", tokenName, "k.object")
		r, err := d.Repair(soon(t))
		if !errors.Is(err, softhsm.ErrTorn) || !strings.Contains(err.Error(), "token.object") {
			t.Fatalf("%v", err)
		}
		if diff := cmp.Diff([]string{tokenName + "/k.object"}, r.Quarantined); diff != "" {
			t.Error("the rest was not repaired:", diff)
		}
		if tree(t, path, false)[filepath.Join("tokens", tokenName, "token.object")] != "" {
			t.Error("a fresh token was made")
		}
		if _, err := d.Attach(soon(t), nil); !errors.Is(err, softhsm.ErrTorn) {
			t.Errorf("attach: %v", err)
		}
	})
	t.Run("the whole token is gone", func(t *testing.T) {
		d, path := newToken(t, "mint a")
		if err := os.RemoveAll(filepath.Join(path, "tokens")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(path, "tokens"), 0o700); err != nil {
			t.Fatal(err)
		}
		if r := repair(t, d); len(r.Restored) != 2 {
			t.Errorf("%s", r)
		}
		if got := drive(t, path, with("list")...); !strings.Contains(got, `"Works":true`) {
			t.Errorf("the key is not back: %s", got)
		}
		// Destruction needs the lock file, too.
		drive(t, path, with("destroy a")...)
	})
	t.Run("torn generation", func(t *testing.T) {
		d, path := newToken(t, "mint a")
		names, err := filepath.Glob(filepath.Join(path, "tokens", "*", "generation"))
		if err != nil || len(names) != 1 {
			t.Fatal(names, err)
		}
		if err := os.Truncate(names[0], 3); err != nil {
			t.Fatal(err)
		}
		if r := repair(t, d); len(r.Quarantined) != 1 {
			t.Errorf("%s", r)
		}
		if got := drive(t, path, with("list")...); !strings.Contains(got, `"Works":true`) {
			t.Errorf("%s", got)
		}
	})
}

// An interrupted change of several files goes as a whole, wherever it was interrupted.
func TestRepairUndoesIntent(t *testing.T) {
	d, path := newDir(t)
	write(t, token("t"), path, "tokens", tokenName, "token.object")
	write(t, secretKey("old"), path, "tokens", tokenName, "old.object")
	repair(t, d)
	before := tree(t, path, false)

	write(t, []byte(tokenName+"/token.object\n"+tokenName+"/old.object\n"), path, "intent")
	write(t, secretKey("half"), path, "tokens", tokenName, "half.object")
	write(t, []byte{}, path, "tokens", tokenName, "half.lock")
	write(t, secretKey("half"), path, "shadow", tokenName, "half.object")
	write(t, secretKey("gone already"), path, "shadow", tokenName, "other.object")
	write(t, token("new"), path, "tokens", "new-token", "token.object")
	write(t, token("new"), path, "shadow", "new-token", "token.object")

	r := repair(t, d)
	slices.Sort(r.Quarantined)
	if diff := cmp.Diff([]string{tokenName + "/half.object", "new-token"}, r.Quarantined); diff != "" {
		t.Error(diff)
	}
	after := tree(t, path, false)
	for name := range after {
		if strings.HasPrefix(name, "quarantine/") {
			delete(after, name)
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
}

func TestRepairOfHealthyChangesNothing(t *testing.T) {
	d, path := newToken(t, "mint a", "mint b", "latch a false 0", "pair p", "destroy b")
	objects, err := filepath.Glob(filepath.Join(path, "tokens", "*", "*.object"))
	if err != nil || len(objects) != 4 {
		t.Fatal(objects, err)
	}
	for _, o := range objects {
		if err := os.Chtimes(o, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	repair(t, d) // compares, and gives the copies these times
	before := tree(t, path, true)
	if r := repair(t, d); !r.Empty() {
		t.Errorf("%s", r)
	}
	if diff := cmp.Diff(before, tree(t, path, true)); diff != "" {
		t.Error(diff)
	}
}

// writeCopy puts a copy into the shadow that nobody mistakes for the latest by its time.
func writeCopy(t interface{ Fatal(...any) }, content []byte, path, name string) {
	p := filepath.Join(path, "shadow", tokenName, name+".object")
	write(t, content, p)
	if content != nil {
		if err := os.Chtimes(p, time.Time{}, time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever is in the directory: what was whole stays, what is repaired is whole, and a second
// repair finds nothing to do.
func TestRepairIsIdempotent(t *testing.T) {
	d, path := newDir(t)
	rapid.Check(t, func(t *rapid.T) {
		for _, place := range []string{"tokens", "shadow", "quarantine"} {
			if err := os.RemoveAll(filepath.Join(path, place, tokenName)); err != nil {
				t.Fatal(err)
			}
		}
		contents := map[string][]byte{
			"one": secretKey("one"), "two": secretKey("two"), "torn": secretKey("one")[:60],
			"empty": {}, "garbage": []byte("garbage"), "gone": nil,
		}
		state := rapid.SampledFrom([]string{"one", "two", "torn", "empty", "garbage", "gone"})
		write(t, token("t"), path, "tokens", tokenName, "token.object")
		good := map[string][]string{} // name to what it may be afterwards
		for _, name := range rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,8}`), 0, 6, rapid.ID).Draw(t, "names") {
			file, shadow := state.Draw(t, "file"), state.Draw(t, "shadow")
			write(t, contents[file], path, "tokens", tokenName, name+".object")
			writeCopy(t, contents[shadow], path, name)
			for _, s := range []string{shadow, file} { // a whole file wins
				if s == "one" || s == "two" {
					good[filepath.Join("tokens", tokenName, name+".object")] = []string{inner(string(contents[s]))}
				}
			}
		}
		if rapid.Bool().Draw(t, "tmp") {
			write(t, []byte("unfinished"), path, "shadow", tokenName, "x.object.tmp")
		}
		if _, err := d.Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		after := tree(t, path, false)
		for name, content := range after {
			if strings.HasSuffix(name, ".tmp") {
				t.Errorf("%s is left", name)
			}
			if !strings.HasPrefix(name, "tokens/") || strings.HasSuffix(name, ".lock") || strings.HasSuffix(name, "token.object") {
				continue
			}
			if !slices.Contains(good[name], inner(content)) {
				t.Errorf("%s is %d bytes that were not good", name, len(content))
			}
			delete(good, name)
			if after["shadow/"+strings.TrimPrefix(name, "tokens/")] != content {
				t.Errorf("%s has no copy", name)
			}
		}
		if len(good) > 0 {
			t.Errorf("lost: %v", good)
		}
		r, err := d.Repair(t.Context())
		if err != nil || !r.Empty() {
			t.Errorf("a second repair: %s, %v", r, err)
		}
		if diff := cmp.Diff(after, tree(t, path, false)); diff != "" {
			t.Error(diff)
		}
	})
}

// However many files there are, each is in one text, and what was lost comes first.
func TestReportInTexts(t *testing.T) {
	if texts := (softhsm.Report{}).Texts(256); texts != nil {
		t.Errorf("of nothing: %q", texts)
	}
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfN(rapid.StringMatching(`[a-z/]{1,90}`), 0, 12)
		r := softhsm.Report{
			Restored: names.Draw(t, "restored"), Quarantined: names.Draw(t, "quarantined"),
			Adopted: names.Draw(t, "adopted"), Lost: names.Draw(t, "lost"),
		}
		var got []string
		for _, text := range r.Texts(128) {
			if len(text) > 128 {
				t.Fatalf("%d bytes: %s", len(text), text)
			}
			done, files, _ := strings.Cut(text, " ")
			for f := range strings.FieldsSeq(files) {
				got = append(got, done+" "+f)
			}
		}
		var want []string
		for _, k := range []struct {
			done  string
			files []string
		}{{"lost", r.Lost}, {"restored", r.Restored}, {"quarantined", r.Quarantined}, {"adopted", r.Adopted}} {
			for _, f := range k.files {
				want = append(want, k.done+" "+f)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}
