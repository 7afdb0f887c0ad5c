package custody_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
)

// answered is all that was counted, but for zeros.
func (w *world) answered() map[string]uint64 {
	all := map[string]uint64{}
	for _, op := range hierarchy.AllOps {
		for _, outcome := range custody.Outcomes() {
			if n := w.Answered(op, outcome); n > 0 {
				all[op.String()+" "+outcome] = n
			}
		}
	}
	return all
}

func TestWhatBecameOfRequestsIsCounted(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	unwrap := custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}
	for range 3 {
		w.do(acmeApp, unwrap)
	}
	w.do(stranger, unwrap)
	w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: []byte("no envelope")})
	w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders"})
	w.do(acmeApp, custody.Request{}) // of no operation
	batch := []custody.Request{
		unwrap, unwrap, {Op: hierarchy.OpRewrap, Envelope: env}, {Op: hierarchy.OpRewrap, Envelope: env[:8]}, {}, unwrap,
		{Op: hierarchy.OpWrap, Key: "acme/none", Plaintext: []byte("0123456789abcdef")},
		{Op: hierarchy.OpWrap, Key: "globex/orders", Plaintext: []byte("0123456789abcdef")},
	}
	w.Do(context.Background(), acmeApp, batch, make([]custody.Response, len(batch)))
	want := map[string]uint64{
		"wrap OK": 1, "wrap NOT_FOUND": 1, "wrap PERMISSION_DENIED": 1,
		"unwrap OK": 6, "unwrap PERMISSION_DENIED": 1, "unwrap ENVELOPE_INVALID": 1,
		"datakey OK": 1,
		"rewrap OK":  1, "rewrap ENVELOPE_INVALID": 1,
	}
	if diff := cmp.Diff(want, w.answered()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if n := w.Withheld(); n != 0 {
		t.Errorf("%d were withheld", n)
	}
	if n := w.Answered(hierarchy.OpWrap, "no such outcome") + w.Answered(0, custody.OutcomeOK); n != 0 {
		t.Errorf("%d of what there is not", n)
	}
}

// What the last look takes back counts as what its caller is told, and as withheld.
func TestWithheldIsCounted(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	w.journal.during = []func(){func() { w.tenant("acme", commandpb.TenantState_TENANT_STATE_DISABLED) }}
	wantErr(t, w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}), hierarchy.ErrTenantDisabled)
	if diff := cmp.Diff(map[string]uint64{"wrap OK": 1, "unwrap TENANT_DISABLED": 1}, w.answered()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if n := w.Withheld(); n != 1 {
		t.Errorf("%d were withheld", n)
	}
}

// Beside BenchmarkDo this says how much of the hot path is spent on counting.
func BenchmarkCounting(b *testing.B) {
	for _, size := range []int{1, 1024} {
		b.Run(map[int]string{1: "single", 1024: "batch"}[size], func(b *testing.B) {
			b.ReportAllocs()
			count := custody.Counting(size)
			for b.Loop() {
				count()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/item")
		})
	}
}
