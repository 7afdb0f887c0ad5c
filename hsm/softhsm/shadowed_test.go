package softhsm_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUnshadowed(t *testing.T) {
	dir, path := newDir(t)
	write(t, token("t"), path, "tokens", "T", "token.object")
	write(t, secretKey("k"), path, "tokens", "T", "k.object")
	write(t, []byte("no object"), path, "tokens", "T", "k.lock")
	bare := func() []string {
		t.Helper()
		files, err := dir.Unshadowed()
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	if got := bare(); len(got) != 2 {
		t.Errorf("before any copy was made %q have none", got)
	}
	repair(t, dir)
	if got := bare(); len(got) != 0 {
		t.Errorf("after the repair %q have no copy", got)
	}
	if err := os.Remove(filepath.Join(path, "shadow", "T", "k.object")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"T/k.object"}, bare()); diff != "" {
		t.Errorf("without a copy (-want +got):\n%s", diff)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if files, err := dir.Unshadowed(); err == nil {
		t.Errorf("without the directory: %q", files)
	}
}
