package reconcile_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// admit makes other a node of the region.
func (r *replicated) admit() {
	invitation, proof := id("invitation"), state.Proof([]byte("secret"))
	hash := state.ProofHash(proof[:])
	r.must(&commandpb.Command{Body: &commandpb.Command_InviteNode{InviteNode: &commandpb.InviteNode{Invitation: &commandpb.Invitation{
		Id: invitation[:], ProofHash: hash[:], Node: "eu-2", Region: "eu", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Voter: true,
		ExpiresAt: r.State().Stamp().Add(time.Hour).UnixNano(),
	}}}})
	r.must(&commandpb.Command{Body: &commandpb.Command_JoinNode{JoinNode: &commandpb.JoinNode{InvitationId: invitation[:], Proof: proof[:],
		Node: &commandpb.Node{Id: other.ID[:], Name: "eu-2", RegionId: region.ID[:], Address: "127.0.0.1:7602"}}}})
}

// hand has another node mint.
func (r *replicated) hand(from, to hierarchy.NodeID) {
	r.must(&commandpb.Command{Body: &commandpb.Command_SetMintingNode{SetMintingNode: &commandpb.SetMintingNode{RegionId: region.ID[:], FromNodeId: from.ID[:], NodeId: to.ID[:]}}})
}

func (k *token) holds(id hierarchy.ObjectID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.objects[id]
	return ok
}

// attempt is the name of an object of an attempt at the first version of acme/orders.
func (r *replicated) attempt(n uint32) hierarchy.ObjectID {
	key := r.key("acme", "orders")
	return hierarchy.KEKObjectID(cluster, key.Tenant, key.ID, 1, region, n)
}

// A node that takes over knows the token of before, and finds what the one before it left: also what that
// one makes in a step that it was in when it was replaced.
func TestTakesOverWhatAnotherNodeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		r.admit()
		next, stopNext := run(t.Context(), r, k, k, other)
		defer stopNext()
		r.create("acme", "files", 0)
		_ = settledIn(t.Context(), time.Second, r, next, "acme") // it has listed the token, and waits for the other one

		r.create("acme", "orders", 0)
		first := r.attempt(1)
		if _, err := k.Generate(t.Context(), first, "kekd/acme/orders/v1/kek"); err != nil { // and dies before it is recorded
			t.Fatal(err)
		}
		r.hand(self, other)
		if err := settled(t.Context(), r, next, "acme"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if v := r.key("acme", "orders").Newest(); v.State != hierarchy.Active || v.Attempt != 2 {
			t.Errorf("%+v", v)
		}
		if k.holds(first) || !k.holds(r.attempt(2)) {
			t.Errorf("of the first attempt it has a key: %v, of the second: %v", k.holds(first), k.holds(r.attempt(2)))
		}

		// It was not dead, only slow.
		if _, err := k.Generate(t.Context(), first, "kekd/acme/orders/v1/kek"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if k.holds(first) {
			t.Error("what the other node's last step has made is still there")
		}
		if len(k.objects) != 2 {
			t.Errorf("two versions have %d keys", len(k.objects))
		}
	})
}

// A node that is replaced makes nothing more than what it is at.
func TestStopsWithinAStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		r.admit()
		for _, key := range []string{"a", "b", "c", "d"} {
			r.create("acme", key, 0)
		}
		k.slow = time.Second
		_, stop := run(t.Context(), r, k, k, self)
		defer stop()
		time.Sleep(1500 * time.Millisecond) // it is at the second
		r.hand(self, other)
		time.Sleep(10 * time.Second)
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.generated != 2 {
			t.Errorf("it has made %d keys, the second when it was replaced", k.generated)
		}
	})
}

// Nor does it go on with closing: the other one is at it.
func TestLatchesNothingMoreWhenReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		r.admit()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		for _, key := range []string{"a", "b", "c"} {
			r.create("acme", key, 0)
		}
		if err := settled(t.Context(), r, rec, "acme"); err != nil {
			t.Fatal(err)
		}
		handed := false
		k.whileLatch = func() {
			if !handed {
				r.hand(self, other)
			}
			handed = true
		}
		if err := r.setTenant("acme", disabled); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if n := k.count("usable=false"); n != 1 {
			t.Errorf("it has latched %d keys, the first when it was replaced", n)
		}
	})
}

// A node whose copy nobody confirms may have been replaced: it touches nothing, says why, and goes on by itself.
func TestChangesNothingByAnOldCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, k := newReplicated(), newToken()
		rec, stop := run(t.Context(), r, k, k, self)
		defer stop()
		r.setOld(true)
		r.create("acme", "orders", 0)
		err := settledIn(t.Context(), time.Minute, r, rec, "acme")
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no leader confirms") {
			t.Errorf("who waits is told: %v", err)
		}
		if k.generated != 0 {
			t.Error("it has made a key")
		}
		r.setOld(false)
		if err := settledIn(t.Context(), time.Second, r, rec, "acme"); err != nil {
			t.Errorf("it does not go on: %v", err)
		}

		r.setOld(true)
		if err := r.setTenant("acme", disabled); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if object := r.key("acme", "orders").Newest().Regions[0].Object; !k.usable(object) {
			t.Error("it has latched a key")
		}
	})
}

// Orphans are a daemon's own keys of no version: not those of a version's attempts, nor what others have made.
func TestOrphans(t *testing.T) {
	r := newReplicated()
	r.create("acme", "orders", 0)
	object := func(name, label string) hsm.Object {
		sum := id(name)
		o := hsm.Object{Label: label}
		copy(o.ID[:], sum[:])
		o.RawID = o.ID[:]
		return o
	}
	known := hsm.Object{ID: r.attempt(1), Label: "kekd/acme/orders/v1/kek"}
	known.RawID = known.ID[:]
	orphan := object("orphan", "kekd/gone/orders/v1/kek")
	unnamed := orphan
	unnamed.ID, unnamed.RawID = hierarchy.ObjectID{}, []byte("short")
	got := reconcile.Orphans(r.State(), region, []hsm.Object{known, orphan, unnamed, object("theirs", "vault"), object("probe", "kekd/doctor")})
	if len(got) != 1 || got[0].ID != orphan.ID {
		t.Errorf("orphans are %+v", got)
	}
}
