package pkcs11_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

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

// markerMain says what the mark is, then raises it, and says each step before and after it.
func markerMain(path string) error {
	ctx := context.Background()
	token, _, err := keptToken(ctx, path)
	if err != nil {
		return err
	}
	m, _, err := token.Mark(ctx, owner)
	if err != nil {
		return err
	}
	say := func(what string, m hsm.Mark) {
		os.Stdout.WriteString(fmt.Sprintln(what, m.Term, m.LastTerm, m.LastIndex)) // one write
	}
	say("found", m)
	for i := 0; ; i++ {
		switch i % 3 {
		case 0:
			m.Term++
		case 1:
			m.LastIndex++
		case 2:
			m.LastTerm, m.LastIndex = m.LastTerm+1, m.LastIndex/2
		}
		say("begin", m)
		if err := token.RaiseMark(ctx, owner, m); err != nil {
			return err
		}
		say("ok", m)
	}
}

// marker is a process of [markerMain].
type marker struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func startMarker(t *testing.T, path string) *marker {
	t.Helper()
	p := &marker{cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), asMarker+"="+path)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	p.lines = bufio.NewScanner(out)
	return p
}

func (p *marker) next() (what string, m hsm.Mark, ok bool) {
	if !p.lines.Scan() {
		return "", m, false
	}
	_, err := fmt.Sscan(p.lines.Text(), &what, &m.Term, &m.LastTerm, &m.LastIndex)
	return what, m, err == nil
}

// TestKillMarks: whenever who raises a mark is killed, what was acknowledged is there, and nothing
// that was not asked for.
func TestKillMarks(t *testing.T) {
	kills := 20
	if os.Getenv("KEKD_NIGHTLY") == "1" {
		kills = 300
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KEKD_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KEKD_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	path := newKept(t)
	var acknowledged, begun hsm.Mark
	inside, takes := 0, 5*time.Millisecond
	for n := 0; inside < kills; n++ {
		if n == 5*kills {
			t.Fatalf("of %d kills %d came in the middle of a raise", n, inside)
		}
		p := startMarker(t, path)
		what, found, ok := p.next()
		if !ok || what != "found" {
			t.Fatalf("after %d kills the token does not open", n)
		}
		if !found.Covers(acknowledged) || !begun.Covers(found) {
			t.Fatalf("after %d kills: found {%v}; acknowledged {%v}, begun {%v}", n, found, acknowledged, begun)
		}
		acknowledged = found // it was told
		from := time.Now()
		for range 2 + r.IntN(4) {
			if what, m, _ := p.next(); what == "ok" {
				acknowledged, takes = m, time.Since(from)
			} else {
				begun, from = m, time.Now()
			}
		}
		time.Sleep(time.Duration(r.Int64N(int64(takes))))
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for {
			what, m, ok := p.next()
			if !ok {
				break
			}
			if what == "ok" {
				acknowledged = m
			} else {
				begun = m
			}
		}
		if acknowledged != begun {
			inside++
		}
		_ = p.cmd.Wait()
	}
	token, guard, err := keptToken(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer guard.Close()
	defer closeToken(t, token)
	raise(t, token, begun)
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
