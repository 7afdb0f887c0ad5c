package reconcile_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hsm"
)

// TestAttentionMissesNothing: what is planned for the keys that get attention is what is planned for all, after any
// commands, steps taken and not taken, and listings.
func TestAttentionMissesNothing(t *testing.T) {
	tenants := []string{"acme", "globex", "initech"}
	rapid.Check(t, func(t *rapid.T) {
		r, have := newReplicated(), map[hierarchy.ObjectID]hsm.Object{}
		r.hold()
		latches := true
		var plans reconcile.Plans
		for range rapid.IntRange(1, 60).Draw(t, "moves") {
			tenant, key := rapid.SampledFrom(tenants).Draw(t, "tenant"), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")
			there := true
			if ten, ok := r.State().TenantByName(tenant); !ok {
				there = false
			} else if _, ok := r.State().KeyByName(ten.ID, key); !ok {
				there = false
			}
			if !there {
				_ = r.setTenant(tenant, enabled)
				r.create(tenant, key, 0)
			}
			version := uint32(rapid.IntRange(1, int(r.key(tenant, key).Newest().Number)).Draw(t, "version"))
			// Refusals are as good as commands.
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				_ = r.setTenant(tenant, disabled)
			case 1:
				_ = r.setTenant(tenant, enabled)
			case 2:
				_ = r.rotateAnyway(tenant, key)
			case 3:
				_ = r.setVersion(tenant, key, version, suspend)
			case 4:
				_ = r.setVersion(tenant, key, version, rapid.SampledFrom([]commandpb.VersionAction{compromise, resume}).Draw(t, "action"))
			case 5:
				for f := range r.State().Fences() {
					_ = r.apply(&commandpb.Command{Body: &commandpb.Command_CompleteFence{CompleteFence: &commandpb.CompleteFence{Index: f.Index}}}, time.Time{})
					break
				}
			case 6: // the token loses an object, or its latch: a listing tells
				for _, id := range slices.SortedFunc(keysOf(have), func(a, b hierarchy.ObjectID) int { return slices.Compare(a[:], b[:]) }) {
					if o := have[id]; rapid.Bool().Draw(t, "lost") {
						delete(have, id)
					} else if rapid.Bool().Draw(t, "latched") {
						o.Usable = !o.Usable
						have[id] = o
					}
				}
				plans.Listed()
			case 7:
				latches = false
			}
			tasks, some, all := plans.Next(r.State(), region, have, latches)
			if diff := cmp.Diff(all, some); diff != "" {
				t.Fatalf("planned for all (-), and for what gets attention (+):\n%s", diff)
			}
			for _, task := range tasks {
				switch rapid.SampledFrom([]string{"done", "done", "not done", "spoilt", "not recorded"}).Draw(t, "step") {
				case "not done":
				case "spoilt":
					if task.Action == "mint" {
						have[task.Object] = hsm.Object{ID: task.Object, RawID: task.Object[:], Fault: hsm.ErrKeyRefused}
						must(t, r.restart(task))
					}
				case "not recorded":
					take(t, r, have, task, false)
				case "done":
					take(t, r, have, task, true)
				}
			}
		}
	})
}

// TestKeysAtRestGetNoAttention: what is as it is to be costs a pass nothing, and what changes wakes one key.
func TestKeysAtRestGetNoAttention(t *testing.T) {
	r, have := newReplicated(), map[hierarchy.ObjectID]hsm.Object{}
	for i := range 20 {
		r.create(fmt.Sprint("t", i), "data", 0)
	}
	var plans reconcile.Plans
	tasks, _, _ := plans.Next(r.State(), region, have, true)
	if len(tasks) != 20 || plans.Awake() != 20 {
		t.Fatalf("%d steps, %d keys awake, want 20", len(tasks), plans.Awake())
	}
	for _, task := range tasks {
		take(t, r, have, task, true)
	}
	if tasks, _, _ := plans.Next(r.State(), region, have, true); len(tasks) != 0 || plans.Awake() != 0 {
		t.Errorf("%d steps, %d keys awake when all is done, want none", len(tasks), plans.Awake())
	}
	if err := r.setTenant("t7", disabled); err != nil {
		t.Fatal(err)
	}
	if plans.Next(r.State(), region, have, true); plans.Awake() != 1 {
		t.Errorf("%d keys awake after one tenant was disabled, want 1", plans.Awake())
	}
}

// take does a step with what a token has.
func take(t rapid.TB, r *replicated, have map[hierarchy.ObjectID]hsm.Object, task reconcile.Task, recorded bool) {
	o := have[task.Object]
	switch task.Action {
	case "latch", "unlatch":
		o.Usable = task.Action == "unlatch"
		have[task.Object] = o
	case "sweep":
		delete(have, task.Object)
	case "mint":
		if o.Fault != nil {
			must(t, r.restart(task))
			return
		}
		have[task.Object] = hsm.Object{ID: task.Object, RawID: task.Object[:], Check: hierarchy.CheckValue(task.Object[:3]), Usable: true}
		if recorded {
			must(t, r.apply(&commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
				TenantId: task.Tenant.ID[:], KeyId: task.Key.ID[:], Version: task.Number, Attempt: task.Tries, RegionId: region.ID[:], ObjectId: task.Object[:], CheckValue: task.Object[:3],
			}}}, time.Time{}))
		}
	}
}

// restart gives an attempt at minting up.
func (r *replicated) restart(task reconcile.Task) error {
	return r.apply(&commandpb.Command{Body: &commandpb.Command_RestartMinting{RestartMinting: &commandpb.RestartMinting{
		TenantId: task.Tenant.ID[:], KeyId: task.Key.ID[:], Version: task.Number, Attempt: task.Tries + 1,
	}}}, time.Time{})
}

// must lets refusals pass: a command that comes too late is none.
func must(t rapid.TB, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, hierarchy.ErrFailedPrecondition) {
		t.Fatal(err)
	}
}

func keysOf(have map[hierarchy.ObjectID]hsm.Object) func(func(hierarchy.ObjectID) bool) {
	return func(yield func(hierarchy.ObjectID) bool) {
		for id := range have {
			if !yield(id) {
				return
			}
		}
	}
}
