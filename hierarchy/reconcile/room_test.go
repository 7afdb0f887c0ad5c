package reconcile_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hsm"
)

// lacks waits until a pass has said why a tenant's keys are not all in the token.
func lacks(t *testing.T, r *replicated, rec *reconcile.Reconciler, tenant string) error {
	t.Helper()
	return settledIn(t.Context(), 300*time.Millisecond, r, rec, tenant)
}

// A token that has as many objects as it may is given no more, whatever the hierarchy says, and is
// gone on with once there is room.
func TestNothingIsMintedOverTheLimit(t *testing.T) {
	for name, full := range map[string]hsm.Info{
		"by its model":  {MaxObjects: 4, Others: 3, FreeObjects: ^uint64(0)},
		"by its memory": {MaxObjects: 1000, Others: 3, FreeObjects: 0},
	} {
		t.Run(name, func(t *testing.T) {
			r, k := newReplicated(), newToken()
			k.info = hsm.Info{MaxObjects: 1000, Others: 3, FreeObjects: ^uint64(0)}
			rec, stop := run(t.Context(), r, k, k, self)
			defer stop()
			r.create("acme", "orders", 0)
			if err := settled(t.Context(), r, rec, "acme"); err != nil {
				t.Fatal(err)
			}
			k.mu.Lock()
			k.info = full
			k.mu.Unlock()
			r.create("acme", "mail", 0)
			if err := lacks(t, r, rec, "acme"); !errors.Is(err, hsm.ErrCapacity) || !strings.Contains(err.Error(), "hsm.max_objects") {
				t.Fatalf("what is lacking: %v", err)
			}
			if k.generated != 1 {
				t.Fatalf("%d keys were made, want 1", k.generated)
			}
			if got := rec.Inventory().Token.Max; got != 4 {
				t.Errorf("the token is said to hold %d objects, want 4", got)
			}
			k.mu.Lock()
			k.info = hsm.Info{MaxObjects: 1000, Others: 3, FreeObjects: ^uint64(0)}
			k.mu.Unlock()
			if err := settled(t.Context(), r, rec, "acme"); err != nil {
				t.Fatalf("with room again: %v", err)
			}
		})
	}
}

// A token that says by itself that it is full is believed until it makes a key again.
func TestTokenThatRefuses(t *testing.T) {
	r, k := newReplicated(), newToken()
	k.full = true
	rec, stop := run(t.Context(), r, k, k, self)
	defer stop()
	r.create("acme", "orders", 0)
	if err := lacks(t, r, rec, "acme"); !errors.Is(err, hsm.ErrCapacity) {
		t.Fatalf("what is lacking: %v", err)
	}
	if !rec.Inventory().Token.Full {
		t.Fatal("the token is not said to be full")
	}
	k.mu.Lock()
	k.full = false
	k.mu.Unlock()
	if err := settled(t.Context(), r, rec, "acme"); err != nil {
		t.Fatal(err)
	}
	if rec.Inventory().Token.Full {
		t.Error("the token is still said to be full")
	}
}

// What is in the token beside the hierarchy's keys takes room, too.
func TestForeignObjectsCount(t *testing.T) {
	r, k := newReplicated(), newToken()
	r.create("acme", "orders", 0)
	for i, name := range []string{"kekd/gone/orders/v1/kek", "somebody's"} {
		o := hierarchy.ObjectID{byte(i + 1)}
		k.objects[o] = hsm.Object{ID: o, RawID: o[:], Label: name, Usable: true}
	}
	unnamed := hierarchy.ObjectID{9}
	k.objects[unnamed] = hsm.Object{RawID: []byte{1, 2}, Label: "an ID of another length"}
	k.info = hsm.Info{MaxObjects: 50, Others: 3, FreeObjects: ^uint64(0)}
	rec, stop := run(t.Context(), r, k, k, self)
	defer stop()
	if err := settled(t.Context(), r, rec, "acme"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(capacity.Token{Max: 50, Foreign: 6}, rec.Inventory().Token); diff != "" {
		t.Errorf("the token (-want +got):\n%s", diff)
	}
}

// Rotations that are due together have the room that there is for all of them, which is looked at again
// while the node runs.
func TestDueRotationsWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		k.info = hsm.Info{MaxObjects: capacity.Spare + 2, FreeObjects: ^uint64(0)}
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.create("acme", "orders", time.Hour)
		r.create("acme", "mail", time.Hour)
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Fatal(err)
		}
		if err := r.apply(&commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{}}}, r.State().Stamp().Add(2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		for _, room := range []int{0, 1, 2} {
			k.mu.Lock()
			k.info.MaxObjects = uint64(capacity.Spare + 2 + room)
			k.mu.Unlock()
			time.Sleep(time.Minute) // of synctest's clock
			synctest.Wait()
			if n := len(r.key("acme", "orders").Versions) + len(r.key("acme", "mail").Versions); n != 2+room {
				t.Fatalf("two keys have %d versions, and the token has room for %d", n, 2+room)
			}
		}
	})
}
