package reconcile_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// tick lets cluster time pass.
func (r *replicated) tick(d time.Duration) error {
	return r.apply(&commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{}}}, r.State().Stamp().Add(d))
}

func TestRotatesWhatIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "by-period", 24*time.Hour)
		r.create("acme", "by-use", 0)
		r.create("acme", "by-hand", 0)
		r.create("closed", "by-period", 24*time.Hour)
		_ = settled(t.Context(), r, rec, "acme")
		_ = settled(t.Context(), r, rec, "closed")
		_ = r.setTenant("closed", disabled)
		for range state.RotateAtWraps / state.MaxReservation {
			r.must(&commandpb.Command{Body: &commandpb.Command_ReserveWraps{ReserveWraps: &commandpb.ReserveWraps{
				TenantId: tenantID("acme"), KeyId: keyID("acmeby-use"), Version: 1, RegionId: region.ID[:], NodeId: self.ID[:], Count: state.MaxReservation,
			}}})
		}

		time.Sleep(time.Minute) // of synctest's clock; cluster time stands still
		if n := len(r.key("acme", "by-period").Versions); n != 1 {
			t.Fatalf("rotated by the node's own clock: %d versions", n)
		}
		if err := r.apply(&commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{}}}, r.State().Stamp().Add(24*time.Hour)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for key, want := range map[string]int{"by-period": 2, "by-use": 2, "by-hand": 1} {
			if k := r.key("acme", key); len(k.Versions) != want || k.Newest().State != hierarchy.Active {
				t.Errorf("%s has %d versions, want %d; newest is %s", key, len(k.Versions), want, k.Newest().State)
			}
		}
		if n := len(r.key("closed", "by-period").Versions); n != 1 {
			t.Errorf("a disabled tenant's key was rotated")
		}
		if c := r.key("acme", "by-use").Newest().Cause; c != state.CauseUse {
			t.Errorf("cause %v", c)
		}
	})
}

// After a day's stop more than a thousand rotations are due. Nobody waits behind them, neither who closes and
// opens nor who wants a key made, and they are made at a good rate; what has sealed too much comes first.
func TestAThousandRotationsHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tenants, keys = 2, 600
		r, k := newReplicated(), newToken()
		k.info.MaxObjects = 10_000
		var slow atomic.Bool
		r.fault = func() fault {
			if slow.Load() {
				time.Sleep(5 * time.Millisecond)
			}
			return none
		}
		for i := range tenants {
			for j := range keys {
				r.create(fmt.Sprintf("t%d", i), fmt.Sprintf("k%d", j), 24*time.Hour)
			}
		}
		r.create("acme", "orders", 0)
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		for _, tenant := range []string{"t0", "t1", "acme"} {
			if err := settled(t.Context(), r, rec, tenant); err != nil {
				t.Fatal(err)
			}
		}
		for range state.RotateAtWraps / state.MaxReservation {
			r.must(&commandpb.Command{Body: &commandpb.Command_ReserveWraps{ReserveWraps: &commandpb.ReserveWraps{
				TenantId: tenantID("t1"), KeyId: keyID("t1k7"), Version: 1, RegionId: region.ID[:], NodeId: self.ID[:], Count: state.MaxReservation,
			}}})
		}

		// A command takes 5 ms from here on, and so does a key.
		slow.Store(true)
		k.mu.Lock()
		k.slow = 5 * time.Millisecond
		k.mu.Unlock()
		if err := r.tick(24 * time.Hour); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for len(r.key("t1", "k7").Versions) < 2 {
			<-r.Changed()
		}
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("the one that is urgent was rotated after %v", took)
		}
		for range 10 { // whatever moment it is in a look
			for _, to := range []commandpb.TenantState{disabled, enabled} {
				_ = r.setTenant("acme", to)
				if err := settledIn(t.Context(), 150*time.Millisecond, r, rec, "acme"); err != nil {
					t.Fatalf("%v: %v", to, err)
				}
			}
			time.Sleep(17 * time.Millisecond)
		}
		r.create("acme", "mail", 0)
		if err := settledIn(t.Context(), 250*time.Millisecond, r, rec, "acme"); err != nil {
			t.Errorf("a new key: %v", err)
		}
		rotated := func() int { return r.rotated("t0") + r.rotated("t1") }
		before := rotated()
		if before < 8 || before > tenants*keys/2 {
			t.Errorf("%d were rotated by then: there was nothing to wait behind", before)
		}
		time.Sleep(4 * time.Second)
		if n := rotated() - before; n < 80 {
			t.Errorf("%d were rotated in 4 s", n)
		}

		// A token that is slower than that has no more to do at a time.
		k.mu.Lock()
		k.slow = 100 * time.Millisecond
		k.mu.Unlock()
		time.Sleep(5 * time.Second)
		r.create("acme", "parcels", 0)
		if err := settledIn(t.Context(), 1500*time.Millisecond, r, rec, "acme"); err != nil {
			t.Errorf("a new key, with a slow token: %v", err)
		}
	})
}

// What the token does not make keeps nobody else from being rotated for ever.
func TestRotationsThatAreStuckHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		for i := range 12 {
			r.create("acme", fmt.Sprintf("k%d", i), 24*time.Hour)
		}
		r.create("globex", "orders", 24*time.Hour)
		_ = settled(t.Context(), r, rec, "acme")
		_ = settled(t.Context(), r, rec, "globex")
		k.mu.Lock()
		k.unfit = func(label string) bool { return strings.HasPrefix(label, "kekd/acme/") }
		k.mu.Unlock()
		if err := r.tick(24 * time.Hour); err != nil {
			t.Fatal(err)
		}
		for range 100 { // cluster time goes on
			time.Sleep(time.Second)
			if err := r.tick(time.Second); err != nil {
				t.Fatal(err)
			}
		}
		if n := r.rotated("globex"); n != 1 {
			t.Error("globex/orders is not rotated")
		}
		if n := r.rotated("acme"); n != 0 {
			t.Errorf("%d keys were made by a token that makes none", n)
		}
	})
}

// rotated counts the keys of a tenant whose second version, or a later one, is active.
func (r *replicated) rotated(tenant string) (n int) {
	for k := range r.State().Keys(hierarchy.TenantID{ID: id(tenant)}) {
		if len(k.Versions) > 1 && k.Newest().State == hierarchy.Active {
			n++
		}
	}
	return n
}
