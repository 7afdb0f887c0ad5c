package softhsm_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hsm/softhsm"
)

func TestCreate(t *testing.T) {
	_, path := newDir(t)
	modes := map[string]string{}
	err := filepath.WalkDir(path, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(path, p)
		modes[name] = st.Mode().String()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		".": "drwx------", "tokens": "drwx------", "shadow": "drwx------", "quarantine": "drwx------",
		"softhsm2.conf": "-rw-------", "lock": "-rw-------", "change.lock": "-rw-------",
	}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Error(diff)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("left beside it: %v, %v", left, err)
	}
}

func TestCreateRefusesWhatIsThere(t *testing.T) {
	_, path := newDir(t)
	before := tree(t, path, true)
	if _, err := softhsm.Create(path); !errors.Is(err, softhsm.ErrExists) {
		t.Errorf("over a token directory: %v", err)
	}
	if diff := cmp.Diff(before, tree(t, path, true)); diff != "" {
		t.Error(diff)
	}
	empty := scratch(t)
	if _, err := softhsm.Create(empty); !errors.Is(err, softhsm.ErrExists) {
		t.Errorf("over an empty directory: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := softhsm.Open(scratch(t)); !errors.Is(err, softhsm.ErrMissing) {
		t.Errorf("an empty directory: %v", err)
	}
	for _, lost := range []string{"tokens", "shadow", "quarantine", "lock", "change.lock", "softhsm2.conf"} {
		_, path := newDir(t)
		if err := os.Remove(filepath.Join(path, lost)); err != nil {
			t.Fatal(err)
		}
		if _, err := softhsm.Open(path); !errors.Is(err, softhsm.ErrMissing) {
			t.Errorf("without %s: %v", lost, err)
		}
	}

	_, path := newDir(t)
	moved := path + "-moved"
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	_, err := softhsm.Open(moved)
	if !errors.Is(err, softhsm.ErrForeign) || !strings.Contains(err.Error(), filepath.Join(moved, "tokens")) {
		t.Errorf("a directory that was moved: %v", err)
	}
}
