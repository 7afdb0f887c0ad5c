package pkcs11_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/hsm/softhsm"
)

// asMarker names the environment variable that makes this test binary a process that raises marks
// until it is killed; its value is the token directory.
const asMarker = "KEKD_TEST_MARKER"

// keptToken opens the token of a directory that package softhsm keeps.
func keptToken(ctx context.Context, path string) (*kekd.Token, *softhsm.Guard, error) {
	dir, err := softhsm.Open(path)
	if err != nil {
		return nil, nil, err
	}
	guard, err := dir.Attach(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	os.Setenv("SOFTHSM2_CONF", dir.Conf())
	selected, err := kekd.Probe(kekd.URI{Token: "kekd-test"}, hsmtest.Module)
	if err != nil {
		return nil, nil, err
	}
	pin, err := kekd.NewPIN([]byte(hsmtest.UserPIN))
	if err != nil {
		return nil, nil, err
	}
	token, err := kekd.Open(ctx, selected, kekd.Config{PIN: pin, Manager: true, Guard: guard})
	return token, guard, err
}

// newKept makes such a directory.
func newKept(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "softhsm")
	dir, err := softhsm.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", dir.Conf())
	guard, err := dir.Attach(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer guard.Close()
	so, err := kekd.NewPIN([]byte(hsmtest.SOPIN))
	if err != nil {
		t.Fatal(err)
	}
	user, err := kekd.NewPIN([]byte(hsmtest.UserPIN))
	if err != nil {
		t.Fatal(err)
	}
	err = guard.ChangeWhole(t.Context(), func() error {
		_, err := kekd.InitToken(hsmtest.Module, "kekd-test", so, user)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// markerMain is a process that raises marks.
func markerMain(path string) error {
	token, _, err := keptToken(context.Background(), path)
	if err != nil {
		return err
	}
	return hsmtest.RaiseUntilKilled(token)
}

// TestKillMarks: whoever is killed in the middle of a raise, the token opens, and the mark is there.
func TestKillMarks(t *testing.T) {
	path := newKept(t)
	last := hsmtest.KillMarks(t, func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), asMarker+"="+path)
		return cmd
	})
	token, guard, err := keptToken(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer guard.Close()
	defer closeToken(t, token)
	raise(t, token, last)
	if n := len(rawOf(t).marks()); n != 1 {
		t.Errorf("%d objects are left, want 1", n)
	}
}

// rawOf is newRaw of the only token.
func rawOf(t *testing.T) raw {
	t.Helper()
	selected, err := kekd.Probe(kekd.URI{Token: "kekd-test"}, hsmtest.Module)
	if err != nil {
		t.Fatal(err)
	}
	return newRaw(t, selected)
}

// BenchmarkRaiseMark is what a vote waits for: in the brackets of package softhsm, on the disk that
// TMPDIR names.
func BenchmarkRaiseMark(b *testing.B) {
	path := newKept(b)
	token, guard, err := keptToken(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	defer guard.Close()
	defer token.Close(context.Background())
	for i := 0; b.Loop(); i++ {
		if err := token.RaiseMark(b.Context(), owner, hsm.Mark{Term: uint64(i) + 1}); err != nil {
			b.Fatal(err)
		}
	}
}
