package state

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// No command adds a node yet, so that a region of several is made from inside.
func TestReservationsAreEachNodesOwn(t *testing.T) {
	mk := func(b byte) hierarchy.ID { return hierarchy.ID{b} }
	region, tenant, key := hierarchy.RegionID{ID: mk(1)}, hierarchy.TenantID{ID: mk(2)}, hierarchy.KeyID{ID: mk(3)}
	nodes := []hierarchy.NodeID{{ID: mk(10)}, {ID: mk(11)}, {ID: mk(12)}}
	d := New().draft()
	d.cluster = hierarchy.ClusterID{ID: mk(9)}
	d.putRegion(&Region{ID: region, Name: "r", Role: hierarchy.RoleVoting, Identity: []byte("i"), MintingNode: nodes[0]})
	for i, n := range nodes {
		d.putNode(&Node{ID: n, Name: string(rune('a' + i)), Region: region, Voter: true})
	}
	d.putTenant(&Tenant{ID: tenant, Name: "t", State: hierarchy.TenantEnabled, MaxStaleness: time.Second, Placement: []hierarchy.RegionID{region}})
	d.putKey(&Key{ID: key, Tenant: tenant, Name: "k", MinUnwrapVersion: 1, Versions: []*Version{{
		Number: 1, State: hierarchy.Active, Attempt: 1, Regions: []RegionKey{{Region: region, Minted: true, Object: hierarchy.KEKObjectID(d.cluster, tenant, key, 1, region, 1)}},
	}}})

	reserve := func(n hierarchy.NodeID, count uint64) error {
		return d.reserveWraps(&commandpb.ReserveWraps{TenantId: tenant.ID[:], KeyId: key.ID[:], Version: 1, RegionId: region.ID[:], NodeId: n.ID[:], Count: count})
	}
	giveBack := func(n hierarchy.NodeID, count uint64) error {
		return d.returnWraps(&commandpb.ReturnWraps{TenantId: tenant.ID[:], KeyId: key.ID[:], Version: 1, RegionId: region.ID[:], NodeId: n.ID[:], Count: count})
	}
	now := func() RegionKey {
		k, _ := d.Key(tenant, key)
		return k.Versions[0].Regions[0]
	}
	for _, n := range []int{2, 0, 1} { // kept sorted
		if err := reserve(nodes[n], 100); err != nil {
			t.Fatal(err)
		}
	}
	before := now()
	if err := giveBack(nodes[1], 30); err != nil {
		t.Fatal(err)
	}
	if err := giveBack(nodes[1], 30); err == nil {
		t.Error("a node returned the others' seals")
	}
	between := now()
	if err := reserve(nodes[0], 5); err != nil {
		t.Fatal(err)
	}
	if got := between.Reservations[0].Count; got != 100 {
		t.Errorf("an older state changed: %d seals are reserved in it, want 100", got)
	}
	after := now()
	if diff := cmp.Diff([]Reservation{{nodes[0], 105}, {nodes[2], 100}}, after.Reservations); diff != "" || after.WrapsReserved != 275 {
		t.Errorf("%d seals are reserved, want 275 (-want +got):\n%s", after.WrapsReserved, diff)
	}
	if diff := cmp.Diff([]Reservation{{nodes[0], 100}, {nodes[1], 100}, {nodes[2], 100}}, before.Reservations); diff != "" {
		t.Errorf("an older state changed (-want +got):\n%s", diff)
	}
}
