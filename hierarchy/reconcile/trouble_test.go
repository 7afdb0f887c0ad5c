package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hsm"
)

// Times are synctest's: a minute takes no time.

// busy changes the hierarchy all the time, until it is told to stop.
func busy(r *replicated, every time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = r.setTenant("busy", disabled)
			time.Sleep(every)
			_ = r.setTenant("busy", enabled)
		}
	}()
	return func() { cancel(); <-done }
}

func (k *token) count(call string) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (k *token) held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.objects)
}

func object(r *replicated, tenant, key string) hierarchy.ObjectID {
	return r.key(tenant, key).Newest().Regions[0].Object
}

// A token whose keys are unfit is not asked for one after the other, and costs the cluster and the
// token next to nothing, however busy the hierarchy is. It is told at once, and tried again.
func TestATokenWhoseKeysAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		k.unfit = func(label string) bool { return strings.HasPrefix(label, "kekd/acme/") }
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("busy", "orders", 0)
		defer busy(r, time.Second)()

		r.create("acme", "orders", 0)
		began := time.Now()
		err := settled(t.Context(), r, rec, "acme")
		if !errors.Is(err, hierarchy.ErrHSMUnavailable) || !errors.Is(err, hsm.ErrKeyRefused) || !strings.Contains(err.Error(), "5 keys") {
			t.Fatalf("got error %v", err)
		}
		if _, lost := errors.AsType[*hierarchy.KeyLost](err); lost {
			t.Errorf("a key that was never there is called lost: %v", err)
		}
		if took := time.Since(began); took < 500*time.Millisecond || took > 3*time.Second {
			t.Errorf("it was told after %v", took)
		}
		time.Sleep(20 * time.Minute)
		if n := r.key("acme", "orders").Newest().Attempt; n < 8 || n > 11 {
			t.Errorf("after 20 minutes attempt %d is under way", n)
		}
		if n := k.held(); n > 2 {
			t.Errorf("the token has %d objects: what was refused is not swept", n)
		}
		refused := rec.Inventory().Refused
		if len(refused) != 1 || !strings.HasPrefix(refused[0], "acme/orders@1: the token has made ") {
			t.Errorf("refused: %q", refused)
		}
		r.create("globex", "orders", 0)
		if err := settled(t.Context(), r, rec, "globex"); err != nil {
			t.Errorf("another tenant's key: %v", err)
		}

		k.mu.Lock()
		k.unfit = nil
		k.mu.Unlock()
		time.Sleep(6 * time.Minute)
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Errorf("after it healed: %v", err)
		}
		if refused := rec.Inventory().Refused; len(refused) > 0 {
			t.Errorf("refused: %q", refused)
		}
	})
}

// The count of refused keys is the hierarchy's: a restart does not begin a new one.
func TestRefusalsAreCountedOverRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		k.unfit = func(string) bool { return true }
		r.create("acme", "orders", 0)
		rec, stop := run(t.Context(), r, k, k, self)
		_ = settled(t.Context(), r, rec, "acme")
		stop()
		before := r.key("acme", "orders").Newest().Attempt
		rec, stop = run(t.Context(), r, k, k, self)
		defer stop()
		if err := settled(t.Context(), r, rec, "acme"); !errors.Is(err, hierarchy.ErrHSMUnavailable) {
			t.Errorf("got error %v", err)
		}
		time.Sleep(time.Minute)
		if n := r.key("acme", "orders").Newest().Attempt; n != before+1 {
			t.Errorf("from attempt %d it went to %d", before, n)
		}
	})
}

// A step that fails is tried again at its own pace, and not at each change of the hierarchy; what is
// wanted instead does not wait for it.
func TestAFailureIsNotRepeatedAtEachChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", 0)
		r.create("busy", "orders", 0)
		_ = settled(t.Context(), r, rec, "acme")
		_ = settled(t.Context(), r, rec, "busy")
		_ = r.setTenant("acme", disabled)
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Fatal(err)
		}
		broken := object(r, "acme", "orders")
		k.mu.Lock()
		k.stuck = broken
		k.mu.Unlock()
		tries := func() int {
			k.mu.Lock()
			defer k.mu.Unlock()
			return k.stuckTries
		}
		defer busy(r, 50*time.Millisecond)()
		_ = r.setTenant("acme", enabled)
		time.Sleep(time.Minute)
		if n := tries(); n < 20 || n > 40 {
			t.Errorf("it was tried %d times in a minute", n)
		}
		err := settledIn(t.Context(), 10*time.Millisecond, r, rec, "acme")
		if !errors.Is(err, errFault) {
			t.Errorf("what is lacking: %v", err)
		}
		// It is usable for all that anybody knows.
		k.mu.Lock()
		o := k.objects[broken]
		o.Usable = true
		k.objects[broken] = o
		k.stuck = hierarchy.ObjectID{}
		k.mu.Unlock()
		time.Sleep(2 * time.Second)
		_ = r.setTenant("acme", disabled)
		if err := settledIn(t.Context(), time.Millisecond, r, rec, "acme"); err != nil || k.usable(broken) {
			t.Errorf("a disable waits: %v", err)
		}
	})
}

// What the token has lost is not there, for that version alone, and is looked for again.
func TestALostObjectIsNotSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		r.create("acme", "lost", 0)
		r.create("acme", "swapped", 0)
		_ = settled(t.Context(), r, rec, "acme")
		stop()
		lost, swapped := k.objects[object(r, "acme", "lost")], k.objects[object(r, "acme", "swapped")]
		delete(k.objects, lost.ID)
		other := swapped
		other.Check[0] ^= 1
		k.objects[other.ID] = other

		rec, stop = run(t.Context(), r, k, k, self)
		defer stop()
		began := time.Now()
		for key, want := range map[string]string{"lost": "not in the token", "swapped": "another key stands in its place"} {
			err := rec.Settled(t.Context(), r.State().Revision(), version(r, "acme", key, 1))
			gone, ok := errors.AsType[*hierarchy.KeyLost](err)
			if !ok || !errors.Is(err, hierarchy.ErrHSMUnavailable) || gone.Version.String() != "acme/"+key+"@1" || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", key, err)
			}
		}
		r.create("acme", "fine", 0)
		if err := rec.Settled(t.Context(), r.State().Revision(), version(r, "acme", "fine", 1)); err != nil {
			t.Errorf("a new key of the same tenant: %v", err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("somebody waited %v for what is known", took)
		}

		time.Sleep(10 * time.Minute)
		if n := k.count("list"); n < 10 || n > 30 {
			t.Errorf("the token was listed %d times in 10 minutes", n)
		}
		k.mu.Lock()
		k.objects[lost.ID], k.objects[swapped.ID] = lost, swapped
		k.mu.Unlock()
		time.Sleep(time.Minute)
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Errorf("after a restore: %v", err)
		}
		if missing := rec.Inventory().Missing; len(missing) > 0 {
			t.Errorf("missing: %q", missing)
		}
	})
}

// What a node has not seen is not called lost while it cannot look.
func TestALossIsSure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		watcher, stop := run(t.Context(), r, k, k, other)
		defer stop()
		synctest.Wait()
		k.mu.Lock()
		k.unlisted = true
		k.mu.Unlock()
		_, stopMinter := run(t.Context(), r, dumb{k}, k, self)
		defer stopMinter()
		r.create("acme", "orders", 0)
		if err := settledIn(t.Context(), time.Second, r, watcher, "acme"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v", err)
		}
		k.mu.Lock()
		k.unlisted = false
		k.mu.Unlock()
		if err := settled(t.Context(), r, watcher, "acme"); err != nil {
			t.Errorf("when it can: %v", err)
		}
	})
}

// dumb is a token that lists nothing.
type dumb struct{ *token }

func (dumb) List(context.Context) ([]hsm.Object, error) { return nil, nil }

// What is not as it must be is latched all the same when nobody may use it.
func TestASwappedObjectIsLatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		r.create("acme", "orders", 0)
		_ = settled(t.Context(), r, rec, "acme")
		stop()
		o := k.objects[object(r, "acme", "orders")]
		o.Check[0] ^= 1
		k.objects[o.ID] = o
		_, stop = run(t.Context(), r, k, k, self)
		defer stop()
		_ = r.setTenant("acme", disabled)
		synctest.Wait()
		if k.usable(o.ID) {
			t.Error("it is usable")
		}
	})
}

// Copies that could not be dropped are not forgotten about: that is told, and tried again though
// nothing changes.
func TestCopiesThatStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", 0)
		_ = settled(t.Context(), r, rec, "acme")
		k.mu.Lock()
		k.keepsCopies = true
		k.mu.Unlock()
		_ = r.setTenant("acme", disabled)
		if err := settled(t.Context(), r, rec, "acme"); !errors.Is(err, errFault) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v", err)
		}
		if k.usable(object(r, "acme", "orders")) {
			t.Error("it is not latched meanwhile")
		}
		if n := k.count("forget"); n < 10 || n > 20 {
			t.Errorf("it was tried %d times in 20 s", n)
		}
		k.mu.Lock()
		k.keepsCopies = false
		k.mu.Unlock()
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Errorf("after that: %v", err)
		}
	})
}

// A node that does not change objects says what the one that does has done, and nothing before.
func TestAnotherNodesWorkIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		watcher, stop := run(t.Context(), r, k, k, other)
		defer stop()
		minter, stopMinter := run(t.Context(), r, k, k, self)
		r.create("acme", "orders", 0)
		for range 3 {
			for _, to := range []func() error{
				func() error { return nil },
				func() error { return r.setTenant("acme", disabled) },
				func() error { return r.setTenant("acme", enabled) },
				func() error { return r.rotate("acme", "orders", r.key("acme", "orders").Newest().Number) },
			} {
				if err := to(); err != nil {
					t.Fatal(err)
				}
				if err := settled(t.Context(), r, watcher, "acme"); err != nil {
					t.Fatal(err)
				}
				for _, v := range r.key("acme", "orders").Versions {
					tenant, _ := r.State().TenantByName("acme")
					if got, want := k.usable(v.Regions[0].Object), tenant.State == hierarchy.TenantEnabled; got != want {
						t.Fatalf("the watcher says that it is done; usable: %v, want %v", got, want)
					}
				}
			}
		}
		if missing := watcher.Inventory().Missing; len(missing) > 0 {
			t.Errorf("it misses what the other node has made: %q", missing)
		}
		_ = settled(t.Context(), r, minter, "acme")
		stopMinter()
		for i, to := range []func() error{
			func() error { return r.setTenant("acme", disabled) },
			func() error { return r.rotateAnyway("acme", "orders") },
		} {
			if err := to(); err != nil {
				t.Fatal(err)
			}
			if err := settled(t.Context(), r, watcher, "acme"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "node eu-1 of this region has not done it yet") {
				t.Errorf("%d: nobody has done it: %v", i, err)
			}
		}
		if calls := k.count("generate"); calls != 4 {
			t.Errorf("%d keys were made, want 4", calls)
		}
	})
}

// Nobody waits for the slow work of others: what is done is told at once.
func TestAnUnlatchDoesNotWaitForMintings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", 0)
		_ = settled(t.Context(), r, rec, "acme")
		_ = r.setTenant("acme", disabled)
		_ = settled(t.Context(), r, rec, "acme")
		k.mu.Lock()
		k.slow = 5 * time.Second // a generation
		k.mu.Unlock()
		for n := range 10 {
			r.create("globex", fmt.Sprintf("key-%d", n), 0)
		}
		_ = r.setTenant("acme", enabled)
		if err := settledIn(t.Context(), 6*time.Second, r, rec, "acme"); err != nil {
			t.Errorf("got error %v", err)
		}
	})
}

// A step that opens or makes something is not taken on the word of a state that is over.
func TestWhatIsClosedMeanwhileIsNotOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		r.create("acme", "orders", 0)
		r.create("globex", "orders", 0)
		_ = settled(t.Context(), r, rec, "globex")
		_ = r.setTenant("acme", disabled)
		_ = settled(t.Context(), r, rec, "acme")
		stop()
		k.calls = nil

		_ = r.setTenant("acme", enabled)
		r.create("globex", "mail", 0)
		_ = r.setTenant("globex", disabled)
		k.whileLatch = func() {
			_ = r.setTenant("acme", disabled)
			_ = r.setVersion("globex", "mail", 1, compromise)
		}
		rec, stop = run(t.Context(), r, k, k, self)
		defer stop()
		for _, tenant := range []string{"acme", "globex"} {
			if err := settled(t.Context(), r, rec, tenant); err != nil {
				t.Errorf("%s: %v", tenant, err)
			}
		}
		if diff := cmp.Diff([]string{"forget", "list", "usable=false", "forget"}, k.calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

// A key of an attempt that was given up while its turn came is not made.
func TestAnAttemptThatIsOverIsNotGoneOnWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		r.create("acme", "orders", 0)
		_ = settled(t.Context(), r, rec, "acme")
		stop()
		_ = r.setTenant("acme", disabled)
		r.create("globex", "orders", 0)
		k.whileLatch = func() {
			v := version(r, "globex", "orders", 1)
			r.must(&commandpb.Command{Body: &commandpb.Command_RestartMinting{RestartMinting: &commandpb.RestartMinting{
				TenantId: v.Tenant.ID[:], KeyId: v.Key.ID[:], Version: 1, Attempt: 2,
			}}})
		}
		rec, stop = run(t.Context(), r, k, k, self)
		defer stop()
		if err := settled(t.Context(), r, rec, "globex"); err != nil {
			t.Fatal(err)
		}
		if v := r.key("globex", "orders").Newest(); v.State != hierarchy.Active || v.Attempt != 2 {
			t.Errorf("%+v", v)
		}
		if k.generated != 2 || len(k.destroyed) != 0 {
			t.Errorf("of two versions %d keys were made, and %d destroyed", k.generated, len(k.destroyed))
		}
	})
}
