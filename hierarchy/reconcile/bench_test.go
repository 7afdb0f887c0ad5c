package reconcile_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hsm"
)

// BenchmarkPlan is what a command costs here when there is nothing to do, with 10,000 tenants of one key each.
func BenchmarkPlan(b *testing.B) {
	r, have := newReplicated(), map[hierarchy.ObjectID]hsm.Object{}
	for i := range 10_000 {
		tenant := fmt.Sprint("t", i)
		r.create(tenant, "data", 0)
		k := r.key(tenant, "data")
		object := hierarchy.KEKObjectID(cluster, k.Tenant, k.ID, 1, region, 1)
		have[object] = hsm.Object{ID: object, RawID: object[:], Check: hierarchy.CheckValue(object[:3]), Usable: true}
		if err := r.apply(&commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
			TenantId: k.Tenant.ID[:], KeyId: k.ID.ID[:], Version: 1, Attempt: 1, RegionId: region.ID[:], ObjectId: object[:], CheckValue: object[:3],
		}}}, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
	s := r.State()
	for b.Loop() {
		if steps, gone := reconcile.Plan(s, region, have); steps != 0 || gone != 0 {
			b.Fatalf("%d steps, %d lost", steps, gone)
		}
	}
}
