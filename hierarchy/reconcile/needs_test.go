package reconcile_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
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

// What was disabled is left as it is while some node may be in the middle of a use of it; once its fence is complete it is
// dropped and latched. Fences of rules have nothing to do with that.
func TestTheLatchFollowsTheFence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct{ shut, open func(r *replicated) error }{
			"tenant": {func(r *replicated) error { return r.setTenant("acme", disabled) }, func(r *replicated) error { return r.setTenant("acme", enabled) }},
			"version": {func(r *replicated) error { return r.setVersion("acme", "orders", 1, suspend) },
				func(r *replicated) error { return r.setVersion("acme", "orders", 1, resume) }},
		} {
			r, k := newReplicated(), newToken()
			rec, stop := run(t.Context(), r, k, k, self)
			r.hold()
			r.create("acme", "orders", 0)
			_ = settled(t.Context(), r, rec, "acme")
			o := object(r, "acme", "orders")
			is := func(when string, usable bool, forgotten int) {
				t.Helper()
				synctest.Wait()
				k.mu.Lock()
				defer k.mu.Unlock()
				if k.objects[o].Usable != usable || k.forgotten[o] != forgotten {
					t.Errorf("%s, %s: usable %v, forgotten %d times", name, when, k.objects[o].Usable, k.forgotten[o])
				}
			}
			for n := range 2 {
				if err := c.shut(r); err != nil {
					t.Fatal(err)
				}
				closing := r.State().Index()
				is("closed", true, n)
				r.narrow() // another fence
				rule := r.State().Index()
				is("a rule narrowed", true, n)
				r.complete(closing)
				is("fenced", false, n+1)
				r.narrow()
				is("another rule narrowed", false, n+1)
				r.complete(rule)
				r.complete(r.State().Index() - 1)
				is("all is fenced", false, n+1)
				if err := c.open(r); err != nil {
					t.Fatal(err)
				}
				is("opened", true, n+1)
			}
			// Who opens at once finds it as it was.
			if err := errors.Join(c.shut(r), c.open(r)); err != nil {
				t.Fatal(err)
			}
			r.complete(r.State().Index() - 1)
			is("closed and opened", true, 2)
			stop()
		}
	})
}

// hold has this node be one that may hold a lease, so that what closes has a fence.
func (r *replicated) hold() {
	run := hierarchy.NewID()
	r.must(&commandpb.Command{Body: &commandpb.Command_RegisterIncarnation{RegisterIncarnation: &commandpb.RegisterIncarnation{NodeId: self.ID[:], Incarnation: run[:]}}})
	uid := uint32(7)
	r.must(&commandpb.Command{Body: &commandpb.Command_CreateService{CreateService: &commandpb.CreateService{Name: "billing", Uid: &uid}}})
}

// narrow makes a rule for all tenants, and takes it back.
func (r *replicated) narrow() {
	r.must(&commandpb.Command{Body: &commandpb.Command_AllowPolicy{AllowPolicy: &commandpb.AllowPolicy{Rule: &commandpb.Rule{Service: "billing", Pattern: "*/*", Ops: 1}}}})
	r.must(&commandpb.Command{Body: &commandpb.Command_RevokePolicy{RevokePolicy: &commandpb.RevokePolicy{Service: "billing", Pattern: "*/*"}}})
}

func (r *replicated) complete(index uint64) {
	if _, pending := r.State().Fence(index); !pending {
		panic(fmt.Sprintf("there is no fence at index %d", index))
	}
	r.must(&commandpb.Command{Body: &commandpb.Command_CompleteFence{CompleteFence: &commandpb.CompleteFence{Index: index}}})
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
