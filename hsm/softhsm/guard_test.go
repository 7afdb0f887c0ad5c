package softhsm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hsm/softhsm"
	"golang.org/x/sys/unix"
)

// guarded is a directory with one token and two keys in it, as files, and a guard.
func guarded(t *testing.T) (g *softhsm.Guard, path string, reports *[]softhsm.Report) {
	t.Helper()
	d, path := newDir(t)
	write(t, token("t"), path, "tokens", tokenName, "token.object")
	for _, k := range []string{"a", "b"} {
		write(t, secretKey(k), path, "tokens", tokenName, k+".object")
		write(t, []byte{}, path, "tokens", tokenName, k+".lock")
	}
	reports = new([]softhsm.Report)
	g, err := d.Attach(soon(t), func(r softhsm.Report) { *reports = append(*reports, r) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	if len(*reports) != 1 || len((*reports)[0].Adopted) != 3 {
		t.Fatalf("attached to what was there with %v", *reports)
	}
	*reports = nil
	return g, path, reports
}

func object(name string) string { return filepath.Join("tokens", tokenName, name+".object") }
func shadow(name string) string { return filepath.Join("shadow", tokenName, name+".object") }

var errPlanned = errors.New("planned")

func TestBrackets(t *testing.T) {
	whole := func(v string) string { return string(secretKey(v)) }
	for _, c := range []struct {
		name    string
		bracket func(*softhsm.Guard, context.Context, func() error) error
		f       func(t *testing.T, path string) error
		want    error             // nil: acknowledged
		after   map[string]string // files, "" being gone
		tells   string
	}{
		{
			"what is made is copied", (*softhsm.Guard).Change,
			func(t *testing.T, path string) error {
				write(t, secretKey("new"), path, object("new"))
				write(t, secretKey("a2"), path, object("a"))
				return nil
			},
			nil, map[string]string{shadow("new"): whole("new"), shadow("a"): whole("a2")}, "",
		},
		{
			"what is made is copied though more failed", (*softhsm.Guard).Change,
			func(t *testing.T, path string) error {
				write(t, secretKey("new"), path, object("new"))
				return errPlanned
			},
			errPlanned, map[string]string{object("new"): whole("new"), shadow("new"): whole("new")}, "",
		},
		{
			"what is torn is put back, and not acknowledged", (*softhsm.Guard).Change,
			func(t *testing.T, path string) error { return os.Truncate(filepath.Join(path, object("a")), 0) },
			softhsm.ErrTorn, map[string]string{object("a"): whole("a")}, "restored " + tokenName + "/a.object",
		},
		{
			"a full disk says so, and loses nothing", (*softhsm.Guard).Change,
			func(t *testing.T, path string) error {
				if err := os.Truncate(filepath.Join(path, object("a")), 0); err != nil {
					return err
				}
				return errPlanned
			},
			errPlanned, map[string]string{object("a"): whole("a")}, "restored " + tokenName + "/a.object",
		},
		{
			"half-made goes aside", (*softhsm.Guard).Change,
			func(t *testing.T, path string) error {
				write(t, secretKey("half")[:99], path, object("half"))
				return nil
			},
			softhsm.ErrTorn, map[string]string{object("half"): "", filepath.Join("quarantine", tokenName, "half.object"): whole("half")[:99]},
			"quarantined " + tokenName + "/half.object",
		},
		{
			"what vanishes in a change comes back", (*softhsm.Guard).Change,
			func(t *testing.T, path string) error { return os.Remove(filepath.Join(path, object("a"))) },
			softhsm.ErrTorn, map[string]string{object("a"): whole("a"), shadow("a"): whole("a")},
			"restored " + tokenName + "/a.object",
		},
		{
			"what is destroyed stays away", (*softhsm.Guard).Destroy,
			func(t *testing.T, path string) error {
				write(t, secretKey("new"), path, object("new")) // takes its place
				return os.Remove(filepath.Join(path, object("a")))
			},
			nil, map[string]string{object("a"): "", shadow("a"): "", shadow("b"): whole("b"), shadow("new"): whole("new")}, "",
		},
		{
			"what is destroyed for something half-made comes back", (*softhsm.Guard).Destroy,
			func(t *testing.T, path string) error {
				write(t, secretKey("half")[:99], path, object("half"))
				return os.Remove(filepath.Join(path, object("a")))
			},
			softhsm.ErrTorn, map[string]string{object("half"): "", shadow("a"): whole("a")}, "quarantined " + tokenName + "/half.object",
		},
		{
			"a destruction that failed half way is one of what is gone", (*softhsm.Guard).Destroy,
			func(t *testing.T, path string) error {
				return errors.Join(os.Remove(filepath.Join(path, object("a"))), errPlanned)
			},
			errPlanned, map[string]string{object("a"): "", shadow("a"): "", object("b"): whole("b")}, "",
		},
		{
			"the token itself is not destroyed", (*softhsm.Guard).Destroy,
			func(t *testing.T, path string) error { return os.Remove(filepath.Join(path, object("token"))) },
			softhsm.ErrTorn, map[string]string{object("token"): string(token("t"))}, "restored " + tokenName + "/token.object",
		},
		{
			"a pair is kept", (*softhsm.Guard).ChangeWhole,
			func(t *testing.T, path string) error {
				write(t, secretKey("public"), path, object("public"))
				write(t, secretKey("private"), path, object("private"))
				return nil
			},
			nil, map[string]string{shadow("public"): whole("public"), shadow("private"): whole("private"), "intent": ""}, "",
		},
		{
			"half a pair is not", (*softhsm.Guard).ChangeWhole,
			func(t *testing.T, path string) error {
				write(t, secretKey("public"), path, object("public"))
				return errPlanned
			},
			errPlanned, map[string]string{object("public"): "", shadow("public"): "", object("a"): whole("a"), "intent": ""},
			"quarantined " + tokenName + "/public.object",
		},
		{
			"a pair with a torn half is not", (*softhsm.Guard).ChangeWhole,
			func(t *testing.T, path string) error {
				write(t, secretKey("public"), path, object("public"))
				write(t, []byte{}, path, object("private"))
				return nil
			},
			softhsm.ErrTorn, map[string]string{object("public"): "", shadow("public"): "", "intent": ""},
			"quarantined " + tokenName + "/private.object; quarantined " + tokenName + "/public.object",
		},
	} {
		for _, blind := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, blind %v", c.name, blind), func(t *testing.T) {
				g, path, reports := guarded(t)
				if blind {
					g.Blind()
				}
				err := c.bracket(g, soon(t), func() error { return c.f(t, path) })
				if !errors.Is(err, c.want) {
					t.Errorf("it ended with %v", err)
				}
				var told []string
				for _, r := range *reports {
					told = append(told, r.String())
				}
				if diff := cmp.Diff(c.tells, strings.Join(told, "; ")); diff != "" {
					t.Error(diff)
				}
				files := tree(t, path, false)
				for name, want := range c.after {
					if got, found := files[name]; found != (want != "") || inner(got) != inner(want) {
						t.Errorf("%s: there %v, %d bytes", name, found, len(got))
					}
				}
			})
		}
	}
}

// What was destroyed for an object that was not finished is there again after the next bracket, though
// nothing of it changed since.
func TestDestroyedForNothing(t *testing.T) {
	g, path, _ := guarded(t)
	err := g.Destroy(soon(t), func() error {
		write(t, secretKey("half")[:99], path, object("half"))
		return os.Remove(filepath.Join(path, object("a")))
	})
	if !errors.Is(err, softhsm.ErrTorn) {
		t.Errorf("it ended with %v", err)
	}
	if err := g.Change(soon(t), func() error { return nil }); err != nil {
		t.Error(err)
	}
	if got := tree(t, path, false)[object("a")]; inner(got) != inner(string(secretKey("a"))) {
		t.Errorf("what was destroyed has %d bytes", len(got))
	}
}

// Damage that others did between two brackets is put right before the second begins.
func TestBracketLooksFirst(t *testing.T) {
	g, path, _ := guarded(t)
	write(t, secretKey("outside"), path, object("outside"))
	write(t, []byte{}, path, object("a"))
	write(t, nil, path, object("b"))
	write(t, secretKey("half")[:77], path, object("half"))
	err := g.Change(soon(t), func() error {
		files := tree(t, path, false)
		for name, want := range map[string]string{
			object("a"): string(secretKey("a")), object("b"): string(secretKey("b")),
			shadow("outside"): string(secretKey("outside")), object("half"): "",
		} {
			if inner(files[name]) != inner(want) {
				t.Errorf("%s is not as it should be", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A module that met a torn file uses the key again once another process has put it right.
func TestLivingModuleHeals(t *testing.T) {
	d, path := newToken(t, "mint a")
	const works = `"Works":true`
	p := start(t, driverBinary, path, nil)
	p.send(append([]string{"open"}, with("list")...)...)
	if got := p.until("ok list"); !strings.Contains(got[len(got)-1], works) {
		t.Fatal(got)
	}
	keys, err := filepath.Glob(filepath.Join(path, "tokens", "*", "*-*.object"))
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	if err := os.Truncate(keys[0], 0); err != nil {
		t.Fatal(err)
	}
	p.send("list")
	if got := p.until("ok list"); strings.Contains(got[len(got)-1], works) {
		t.Fatal("a torn file does not show")
	}
	attach(t, d)
	p.send("list")
	if got := p.until("ok list"); !strings.Contains(got[len(got)-1], works) {
		t.Error("the key is still lost to it:", got)
	}
	p.finish()
}

// A module that saw another process destroy a key finds it again once it was put back.
func TestLivingModuleFindsWhatIsPutBack(t *testing.T) {
	d, path := newToken(t, "mint a")
	const works = `"Works":true`
	p := start(t, driverBinary, path, nil)
	listed := func() string {
		t.Helper()
		p.send("list")
		got := p.until("ok list")
		return got[len(got)-1]
	}
	p.send(append([]string{"open"}, with("list")...)...)
	if got := p.until("ok list"); !strings.Contains(got[len(got)-1], works) {
		t.Fatal(got)
	}
	keys, err := filepath.Glob(filepath.Join(path, "tokens", "*", "*-*.object"))
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	if err := os.Remove(keys[0]); err != nil {
		t.Fatal(err)
	}
	// As C_DestroyObject tells the others.
	counter := filepath.Join(filepath.Dir(keys[0]), "generation")
	b, err := os.ReadFile(counter)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1]++
	if err := os.WriteFile(counter, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := listed(); strings.Contains(got, works) {
		t.Fatal("a key that is gone shows:", got)
	}
	attach(t, d)
	if got := listed(); !strings.Contains(got, works) {
		t.Error("the key is not back for it:", got)
	}
	p.finish()
}

// More changes than the kernel remembers.
func TestBracketWithTooManyChanges(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || limit > 1<<20 {
		t.Fatal(limit, err)
	}
	g, path, _ := guarded(t)
	err = g.Change(soon(t), func() error {
		var litter [2]*os.File
		for i := range litter {
			f, err := os.Create(filepath.Join(path, "tokens", tokenName, fmt.Sprint("litter", i)))
			if err != nil {
				return err
			}
			defer f.Close()
			litter[i] = f
		}
		for i := range limit + 1 { // in turns, since equal events in a row are one
			if _, err := litter[i%2].Write([]byte("x")); err != nil {
				return err
			}
		}
		write(t, secretKey("a2"), path, object("a"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if tree(t, path, false)[shadow("a")] != string(secretKey("a2")) {
		t.Error("a change behind the lost events was not noticed")
	}
}

// Two states of a file may show one size and one time, if the second comes soon after the first.
func TestTimeTooFreshToTell(t *testing.T) {
	g, path, _ := guarded(t)
	g.Blind()
	// As if the clock had not moved on since: it will not for an hour.
	fresh := time.Now().Add(time.Hour)
	put := func(value string) error {
		write(t, secretKey(value), path, object("a"))
		return os.Chtimes(filepath.Join(path, object("a")), time.Time{}, fresh)
	}
	if err := g.Change(soon(t), func() error { return put("1") }); err != nil {
		t.Fatal(err)
	}
	if err := put("2"); err != nil {
		t.Fatal(err)
	}
	if err := g.Change(soon(t), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if tree(t, path, false)[shadow("a")] != string(secretKey("2")) {
		t.Error("the second state was taken for the first")
	}
}

func TestNoCopyNoChange(t *testing.T) {
	g, path, _ := guarded(t)
	// The copy cannot get its name: as good as a full disk.
	write(t, []byte("in the way"), path, shadow("x"), "file")
	write(t, secretKey("x"), path, object("x"))
	err := g.Change(soon(t), func() error {
		t.Error("a change began with a file that is not in the shadow")
		return nil
	})
	if err == nil {
		t.Error("no error")
	}
	if err := os.RemoveAll(filepath.Join(path, shadow("x"))); err != nil {
		t.Fatal(err)
	}
	if err := g.Change(soon(t), func() error { return nil }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if tree(t, path, false)[shadow("x")] != string(secretKey("x")) {
		t.Error("the file that failed was forgotten")
	}
}

func TestCheck(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"directory deleted": func(path string) error { return os.RemoveAll(path) },
		"directory moved":   func(path string) error { return os.Rename(path, path+"-moved") },
		"token deleted":     func(path string) error { return os.RemoveAll(filepath.Join(path, "tokens", tokenName)) },
		"lock replaced": func(path string) error {
			lock := filepath.Join(path, "lock")
			return errors.Join(os.Remove(lock), os.WriteFile(lock, nil, 0o600))
		},
		"change lock deleted": func(path string) error { return os.Remove(filepath.Join(path, "change.lock")) },
	} {
		t.Run(name, func(t *testing.T) {
			g, path, _ := guarded(t)
			if err := g.Check(); err != nil {
				t.Fatal(err)
			}
			if err := harm(path); err != nil {
				t.Fatal(err)
			}
			if err := g.Check(); !errors.Is(err, softhsm.ErrGone) {
				t.Errorf("check: %v", err)
			}
			err := g.Change(soon(t), func() error {
				t.Error("a change began")
				return nil
			})
			if !errors.Is(err, softhsm.ErrGone) {
				t.Errorf("change: %v", err)
			}
		})
	}
}

func briefly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestLocks(t *testing.T) {
	d, path := newDir(t)
	self := fmt.Sprintf("process %d", os.Getpid())
	first, second := attach(t, d), attach(t, d) // both may have the module loaded

	_, err := d.Repair(briefly(t))
	if !errors.Is(err, softhsm.ErrInUse) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), self) {
		t.Errorf("repair beside a guard: %v", err)
	}

	err = first.Change(soon(t), func() error {
		err := second.Change(briefly(t), func() error {
			t.Error("two changes at once")
			return nil
		})
		if !errors.Is(err, softhsm.ErrBusy) || !strings.Contains(err.Error(), self) {
			t.Errorf("a change beside another: %v", err)
		}
		if err := first.Change(briefly(t), nil); !errors.Is(err, softhsm.ErrBusy) {
			t.Errorf("a change within another: %v", err)
		}
		if _, err := d.Attach(briefly(t), nil); !errors.Is(err, softhsm.ErrBusy) {
			t.Errorf("an attachment beside a change: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	for _, g := range []*softhsm.Guard{first, second} {
		if err := errors.Join(g.Close(), g.Close()); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := g.Change(soon(t), nil); !errors.Is(err, softhsm.ErrClosed) {
			t.Errorf("a change after close: %v", err)
		}
	}
	repair(t, d)

	repairing, err := os.Open(filepath.Join(path, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer repairing.Close()
	if err := unix.Flock(int(repairing.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Attach(briefly(t), nil); !errors.Is(err, softhsm.ErrInUse) {
		t.Errorf("attachment beside a repair: %v", err)
	}
}

func TestKillReleasesLocks(t *testing.T) {
	d, path := newToken(t)
	p := start(t, driverBinary, path, nil)
	p.send("open", "attach")
	p.until("ok attach")
	_, err := d.Repair(briefly(t))
	if want := fmt.Sprintf("process %d (driver)", p.cmd.Process.Pid); !errors.Is(err, softhsm.ErrInUse) || !strings.Contains(err.Error(), want) {
		t.Errorf("repair beside a process: %v, not %s", err, want)
	}
	p.kill()
	repair(t, d)
}

// Changes of several guards and goroutines never overlap.
func TestChangesExclude(t *testing.T) {
	d, path := newDir(t)
	counter := filepath.Join(path, "counter")
	write(t, []byte("0"), counter)
	var wg sync.WaitGroup
	const guards, goroutines, each = 2, 2, 10
	for range guards {
		g := attach(t, d)
		for range goroutines {
			wg.Go(func() {
				for range each {
					err := g.Change(soon(t), func() error {
						text, err := os.ReadFile(counter)
						if err != nil {
							return err
						}
						n, err := strconv.Atoi(string(text))
						if err != nil {
							return err
						}
						return os.WriteFile(counter, []byte(strconv.Itoa(n+1)), 0o600)
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if got := tree(t, path, false)["counter"]; got != strconv.Itoa(guards*goroutines*each) {
		t.Errorf("%s changes", got)
	}
}
