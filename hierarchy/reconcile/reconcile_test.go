package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hsm"
)

const (
	disabled = commandpb.TenantState_TENANT_STATE_DISABLED
	enabled  = commandpb.TenantState_TENANT_STATE_ENABLED

	suspend    = commandpb.VersionAction_VERSION_ACTION_SUSPEND
	resume     = commandpb.VersionAction_VERSION_ACTION_RESUME
	compromise = commandpb.VersionAction_VERSION_ACTION_COMPROMISE
)

func TestMintsWhatWasCreated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", 0)
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Fatal(err)
		}
		v := r.key("acme", "orders").Newest()
		if v.State != hierarchy.Active || v.Regions[0].Object != hierarchy.KEKObjectID(cluster, hierarchy.TenantID{ID: id("acme")}, hierarchy.KeyID{ID: id("key acmeorders")}, 1, region, 1) {
			t.Fatalf("%+v", v)
		}
		if got := k.objects[v.Regions[0].Object].Label; got != "kekd/acme/orders/v1/kek" {
			t.Fatalf("label %q", got)
		}
	})
}

// Nobody waits for ever behind those who came later.
func TestMintsInTheOrderOfCreation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		var want []string
		for i := range 20 {
			name := fmt.Sprintf("t%d", i)
			r.create(name, "orders", 0)
			want = append(want, "kekd/"+name+"/orders/v1/kek")
			time.Sleep(time.Millisecond)
		}
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		for i := range 20 {
			if err := settled(t.Context(), r, rec, fmt.Sprintf("t%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, k.labels); diff != "" {
			t.Errorf("made (-want +got):\n%s", diff)
		}
	})
}

// Copies go before the latch: a latch cannot reach them.
func TestLatchesWhatWasDisabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", 0)
		r.create("globex", "orders", 0)
		_ = settled(t.Context(), r, rec, "acme")
		_ = settled(t.Context(), r, rec, "globex")
		acme, globex := r.key("acme", "orders").Newest().Regions[0].Object, r.key("globex", "orders").Newest().Regions[0].Object

		k.calls = nil
		if err := r.setTenant("acme", disabled); err != nil {
			t.Fatal(err)
		}
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(k.calls, []string{"forget", "usable=false"}) {
			t.Fatalf("calls: %v", k.calls)
		}
		if k.usable(acme) || !k.usable(globex) {
			t.Fatal("the wrong objects are latched")
		}
		if err := r.setTenant("acme", enabled); err != nil {
			t.Fatal(err)
		}
		if err := settled(t.Context(), r, rec, "acme"); err != nil || !k.usable(acme) {
			t.Fatalf("enabled, and the object is usable: %v; %v", k.usable(acme), err)
		}
	})
}

func TestLatchesASuspendedVersionAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", 0)
		_ = settled(t.Context(), r, rec, "acme")
		if err := r.rotate("acme", "orders", 1); err != nil {
			t.Fatal(err)
		}
		_ = settled(t.Context(), r, rec, "acme")
		if err := r.setVersion("acme", "orders", 1, suspend); err != nil {
			t.Fatal(err)
		}
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Fatal(err)
		}
		versions := r.key("acme", "orders").Versions
		if k.usable(versions[0].Regions[0].Object) || !k.usable(versions[1].Regions[0].Object) {
			t.Fatal("the wrong version is latched")
		}
		// What is compromised opens for rewrap.
		if err := r.setVersion("acme", "orders", 1, compromise); err != nil {
			t.Fatal(err)
		}
		if err := settled(t.Context(), r, rec, "acme"); err != nil || !k.usable(versions[0].Regions[0].Object) {
			t.Fatalf("a compromised version cannot be rewrapped: %v", err)
		}
	})
}

func TestATokenThatCannotLatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		k.noLatch = true
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", 0)
		_ = settled(t.Context(), r, rec, "acme")
		for range 3 {
			_ = r.setTenant("acme", disabled)
			if err := settled(t.Context(), r, rec, "acme"); err != nil {
				t.Fatal(err)
			}
			_ = r.setTenant("acme", enabled)
			if err := settled(t.Context(), r, rec, "acme"); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(slices.DeleteFunc(slices.Clone(k.calls), func(c string) bool { return c != "usable=false" })); n != 1 {
			t.Fatalf("it was asked %d times", n)
		}
	})
}

// What a crash left under a version's ID is destroyed only after the hierarchy has given the
// attempt up.
func TestStartsASpoiltMintingAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		first := hierarchy.KEKObjectID(cluster, hierarchy.TenantID{ID: id("acme")}, hierarchy.KeyID{ID: id("key acmeorders")}, 1, region, 1)
		k.halfMade[first] = true
		k.objects[first] = hsm.Object{ID: first, RawID: first[:], Label: "kekd/acme/orders/v1/kek", Fault: hsm.ErrKeyRefused}
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", 0)
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Fatal(err)
		}
		v := r.key("acme", "orders").Newest()
		if v.State != hierarchy.Active || v.Attempt != 2 || !slices.Equal(k.destroyed, []hierarchy.ObjectID{first}) {
			t.Fatalf("version %+v; destroyed %v", v, k.destroyed)
		}
	})
}

func TestOnlyTheMintingNodeChangesObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, other)
		defer stop()
		r.create("acme", "orders", 0)
		if err := settled(t.Context(), r, rec, "acme"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("another node's work counts as done: %v", err)
		}
		if k.generated != 0 {
			t.Fatal("it minted")
		}
	})
}

func TestASickTokenIsToldToWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		synctest.Wait()
		k.mu.Lock()
		k.fault = func() fault { return before }
		k.mu.Unlock()
		r.create("acme", "orders", 0)
		err := settled(t.Context(), r, rec, "acme")
		if !errors.Is(err, errFault) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		k.mu.Lock()
		k.fault = func() fault { return none }
		k.mu.Unlock()
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Fatalf("after it healed: %v", err)
		}
	})
}

func TestInventory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		for _, key := range []string{"lost", "swapped", "broken", "fine"} {
			r.create("acme", key, 0)
		}
		_ = settled(t.Context(), r, rec, "acme")
		stop()
		object := func(key string) hierarchy.ObjectID { return r.key("acme", key).Newest().Regions[0].Object }
		delete(k.objects, object("lost"))
		o := k.objects[object("swapped")]
		o.Check[0] ^= 1
		k.objects[o.ID] = o
		o = k.objects[object("broken")]
		o.Fault = hsm.ErrKeyRefused
		k.objects[o.ID] = o
		orphan := hierarchy.ObjectID{9}
		k.objects[orphan] = hsm.Object{ID: orphan, RawID: orphan[:], Label: "kekd/gone/orders/v1/kek"}
		foreign := hierarchy.ObjectID{8}
		k.objects[foreign] = hsm.Object{ID: foreign, RawID: foreign[:], Label: "somebody else's"}

		rec, stop = run(t.Context(), r, k, k, self)
		defer stop()
		synctest.Wait()
		inv := rec.Inventory()
		if len(inv.Missing) != 3 || !slices.Equal(inv.Orphans, []string{"kekd/gone/orders/v1/kek"}) {
			t.Fatalf("%+v", inv)
		}
	})
}

// move is one thing that happens to the hierarchy, to the process or to time.
type move struct {
	tenant string
	what   int
	pick   int // of the key's versions
	wait   time.Duration
}

// Whatever is interrupted wherever, when the faults end every version has exactly one object, of
// its last attempt, usable exactly when the hierarchy says so.
func TestComesToTheSameEndThroughAnyFaults(t *testing.T) {
	moves := rapid.Custom(func(rt *rapid.T) move {
		return move{
			tenant: rapid.SampledFrom([]string{"acme", "globex"}).Draw(rt, "tenant"),
			what:   rapid.IntRange(0, 6).Draw(rt, "what"),
			pick:   rapid.IntRange(0, 9).Draw(rt, "pick"),
			wait:   time.Duration(rapid.IntRange(1, 3000).Draw(rt, "ms")) * time.Millisecond,
		}
	})
	rapid.Check(t, func(rt *rapid.T) {
		faults := rapid.SliceOfN(rapid.SampledFrom([]fault{none, none, before, after}), 200, 200).Draw(rt, "faults")
		script := rapid.SliceOfN(moves, 1, 12).Draw(rt, "moves")
		var err error // rapid has to be told outside of the bubble
		synctest.Test(t, func(t *testing.T) { err = endsWell(t.Context(), faults, script) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func endsWell(ctx context.Context, faults []fault, script []move) error {
	r, k := newReplicated(), newToken()
	k.faults(faults)
	r.fault = k.nextFault
	_, stop := run(ctx, r, k, k, self)
	tenants := []string{"acme", "globex"}
	for _, tenant := range tenants {
		r.create(tenant, "orders", 0)
	}
	for _, m := range script {
		key := r.key(m.tenant, "orders")
		n := uint32(1 + m.pick%len(key.Versions))
		switch m.what {
		case 0:
			_ = r.setTenant(m.tenant, disabled)
		case 1:
			_ = r.setTenant(m.tenant, enabled)
		case 2:
			_ = r.rotate(m.tenant, "orders", key.Newest().Number)
		case 3:
			_ = r.setVersion(m.tenant, "orders", n, suspend)
		case 4:
			_ = r.setVersion(m.tenant, "orders", n, resume)
		case 5: // the process is killed and started again
			stop()
			_, stop = run(ctx, r, k, k, self)
		case 6:
			time.Sleep(m.wait) // of synctest's clock
		}
		synctest.Wait()
	}
	k.faults(nil)
	stop() // a restart lists the token anew
	rec, stop := run(ctx, r, k, k, self)
	defer stop()
	for _, tenant := range tenants {
		if err := settled(ctx, r, rec, tenant); err != nil {
			return fmt.Errorf("%s: %w", tenant, err)
		}
	}

	want := map[hierarchy.ObjectID]bool{}
	for _, name := range tenants {
		tenant, _ := r.State().TenantByName(name)
		for _, v := range r.key(name, "orders").Versions {
			if v.State == hierarchy.PreActive || !v.Regions[0].Minted {
				return fmt.Errorf("%s@%d is %s", name, v.Number, v.State)
			}
			want[v.Regions[0].Object] = tenant.State == hierarchy.TenantEnabled && v.State != hierarchy.Suspended
		}
	}
	for o, usable := range want {
		if got, there := k.objects[o]; !there || got.Usable != usable {
			return fmt.Errorf("object %s: there %v, usable %v, want %v", o, there, got.Usable, usable)
		}
	}
	if len(k.objects) != len(want) {
		return fmt.Errorf("the token has %d objects, the hierarchy %d", len(k.objects), len(want))
	}
	return nil
}
