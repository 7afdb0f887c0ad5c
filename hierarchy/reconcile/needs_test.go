package reconcile_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
)

// What is closed is dropped from the serving side once, and not at each change of the hierarchy.
func TestWhatIsForgottenIsNotForgottenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", 0)
		_ = settled(t.Context(), r, rec, "acme")
		o := object(r, "acme", "orders")
		for n := range 3 {
			_ = r.setTenant("acme", disabled)
			for i := range 5 {
				key := fmt.Sprintf("key-%d-%d", n, i)
				r.create("globex", key, 0)
				if err := rec.Settled(t.Context(), r.State().Revision(), version(r, "globex", key, 1)); err != nil {
					t.Fatal(err)
				}
			}
			if got := k.forgotten[o]; got != n+1 {
				t.Fatalf("disabled %d times, it was dropped %d times", n+1, got)
			}
			_ = r.setTenant("acme", enabled)
			_ = settled(t.Context(), r, rec, "acme")
		}
	})
}

// A key stays usable until the other regions have made theirs, unless its tenant is disabled: the
// tokens are to test it, and its file is not rewritten twice for nothing.
func TestAKeyIsUsableWhileOtherRegionsMint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.spread("acme")
		r.create("acme", "orders", 0)
		is := func(when string, state hierarchy.VersionState, usable bool) {
			t.Helper()
			if err := settled(t.Context(), r, rec, "acme"); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			synctest.Wait()
			v := r.key("acme", "orders").Newest()
			mine, _ := v.Region(region)
			if v.State != state || !mine.Minted || k.usable(mine.Object) != usable {
				t.Errorf("%s: %s, minted here %v, usable %v", when, v.State, mine.Minted, k.usable(mine.Object))
			}
		}
		is("made here alone", hierarchy.PreActive, true)
		if diff := cmp.Diff([]string{"list", "generate"}, k.calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		_ = r.setTenant("acme", disabled)
		is("disabled", hierarchy.PreActive, false)
		_ = r.setTenant("acme", enabled)
		is("enabled", hierarchy.PreActive, true)
		if err := r.mintElsewhere("acme", "orders"); err != nil {
			t.Fatal(err)
		}
		is("made there as well", hierarchy.Active, true)
	})
}

// What the states of versions ask of their objects, one by one.
func TestWhatEachStateAsksFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			do     func(r *replicated) error
			usable bool
		}{
			"active":      {func(*replicated) error { return nil }, true},
			"deactivated": {func(r *replicated) error { return r.rotate("acme", "orders", 1) }, true},
			"suspended":   {func(r *replicated) error { return r.setVersion("acme", "orders", 1, suspend) }, false},
			"compromised": {func(r *replicated) error { return r.setVersion("acme", "orders", 1, compromise) }, true},
			"resumed": {func(r *replicated) error {
				return errors.Join(r.setVersion("acme", "orders", 1, suspend), r.setVersion("acme", "orders", 1, resume))
			}, true},
		} {
			for _, to := range []bool{true, false} {
				r, k := newReplicated(), newToken()
				rec, stop := run(t.Context(), r, k, k, self)
				r.create("acme", "orders", 0)
				_ = settled(t.Context(), r, rec, "acme")
				err := c.do(r)
				if !to {
					err = errors.Join(err, r.setTenant("acme", disabled))
				}
				if err = errors.Join(err, settled(t.Context(), r, rec, "acme")); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				o := r.key("acme", "orders").Versions[0].Regions[0].Object
				if got, want := k.usable(o), c.usable && to; got != want {
					t.Errorf("%s, tenant enabled %v: usable %v, want %v", name, to, got, want)
				}
				k.mu.Lock()
				if forgotten := k.forgotten[o] > 0; forgotten == (c.usable && to) && name != "resumed" {
					t.Errorf("%s, tenant enabled %v: forgotten %v", name, to, forgotten)
				}
				k.mu.Unlock()
				stop()
			}
		}
	})
}

// What is compromised before it was minted is never minted.
func TestCompromisedBeforeItWasMinted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		r.create("acme", "orders", 0)
		if err := r.setVersion("acme", "orders", 1, compromise); err != nil {
			t.Fatal(err)
		}
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"list"}, slices.Compact(k.calls)); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}
