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

// BenchmarkPlan is what a listing and a command cost here, with 10,000 tenants of one key each.
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
	var plans reconcile.Plans
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			plans.Listed()
			if n := plans.Pass(r.State(), region, have); n != 0 {
				b.Fatalf("%d things to do", n)
			}
		}
	})
	made := 0
	b.Run("after a change", func(b *testing.B) {
		for b.Loop() {
			made++
			r.create("t7", fmt.Sprint("k", made), 0)
			if n := plans.Pass(r.State(), region, have); n == 0 {
				b.Fatal("nothing to do")
			}
		}
	})
}
