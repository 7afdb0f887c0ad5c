package custody_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
)

// What the count of uses asks of the node.

func (w *world) State() *state.State { return w.View().State }
func (w *world) Now() time.Time      { return w.now() }

func (w *world) Propose(_ context.Context, c *commandpb.Command) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.propose(c)
}

func perSecond(n uint64) *commandpb.Limit {
	return &commandpb.Limit{Count: n, Per: int64(policy.Second)}
}
func perDay(n uint64) *commandpb.Limit { return &commandpb.Limit{Count: n, Per: int64(policy.Day)} }

func (w *world) limit(service, pattern string, limits ...*commandpb.Limit) {
	w.allow(&commandpb.Rule{Service: service, Pattern: pattern, Ops: uint32(hierarchy.OpWrap | hierarchy.OpUnwrap | hierarchy.OpDataKey | hierarchy.OpRewrap), Limits: limits})
}

func TestOverTheLimit(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	w.limit("saas", "*/orders", perSecond(4))
	ask := []custody.Request{
		{Op: hierarchy.OpUnwrap, Envelope: env},
		{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: []byte("x")},
		{Op: hierarchy.OpDataKey, Key: "acme/orders"},
		{Op: hierarchy.OpRewrap, Envelope: env},
	}
	for _, r := range ask { // each counts
		if got := w.do(saas, r); got.Err != nil {
			t.Fatal(got.Err)
		}
	}
	asked, seals, before := w.token.asked, w.budget.taken, w.journal.count()
	for range 3 {
		for _, r := range ask {
			got := w.do(saas, r)
			wantErr(t, got, hierarchy.ErrRateLimited)
			if over, ok := errors.AsType[*hierarchy.OverLimit](got.Err); !ok || over.Wait <= 0 {
				t.Errorf("it does not say how long to wait: %v", got.Err)
			}
		}
	}
	if w.token.asked != asked || w.budget.taken != seals {
		t.Error("what is over the limit went to the token, or took seals")
	}
	// The first is recorded, and the others are not.
	got := w.journal.since(before)
	if len(got) != 1 {
		t.Fatalf("%d refusals were recorded, want one", len(got))
	}
	want := audit.Record{
		Kind: "unwrap", At: w.now(), Tenant: hierarchy.TenantID{ID: hierarchy.ID(id("acme"))}, TenantName: "acme", Key: "orders", Version: 1,
		Caller: &saas, Service: "saas", Outcome: audit.OutcomeDenied, Code: "RATE_LIMITED", Envelope: got[0].Envelope,
		Detail: "the rule of saas for */orders allows 4/s for each tenant",
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	// Other tenants and other services have counts of their own.
	w.sealed(saas, "globex/orders")
	w.sealed(acmeApp, "acme/orders")
	w.later(time.Second)
	if got := w.do(saas, ask[0]); got.Err != nil {
		t.Errorf("in the next second: %v", got.Err)
	}
}

// What is denied, or cannot be, is no use.
func TestWhatDoesNotCount(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	w.limit("saas", "*/orders", perDay(1))
	for _, r := range []custody.Request{
		{Op: hierarchy.OpUnwrap, Envelope: []byte("junk")},
		{Op: hierarchy.OpWrap, Key: "acme/orders"},
		{Op: hierarchy.OpWrap, Key: "acme/nothing", Plaintext: []byte("x")},
	} {
		if got := w.do(saas, r); got.Err == nil || errors.Is(got.Err, hierarchy.ErrRateLimited) {
			t.Errorf("got %v", got.Err)
		}
	}
	w.tenant("acme", commandpb.TenantState_TENANT_STATE_DISABLED)
	wantErr(t, w.do(saas, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}), hierarchy.ErrTenantDisabled)
	w.tenant("acme", commandpb.TenantState_TENANT_STATE_ENABLED)
	if got := w.do(saas, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}); got.Err != nil {
		t.Fatal(got.Err)
	}
	wantErr(t, w.do(saas, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}), hierarchy.ErrRateLimited)
}

// Of a batch each item is refused for itself, and those of other tenants go through.
func TestLimitsInABatch(t *testing.T) {
	w := newWorld(t)
	acme, globex := w.sealed(acmeApp, "acme/orders"), w.sealed(globexApp, "globex/orders")
	w.limit("saas", "*/orders", perSecond(100), perDay(3))
	w.apply(&commandpb.Command{Body: &commandpb.Command_SetTenant{SetTenant: &commandpb.SetTenant{
		TenantId: id("globex"), Limits: &commandpb.Limits{Limits: []*commandpb.Limit{perSecond(1)}},
	}}})
	var reqs []custody.Request
	for _, env := range [][]byte{acme, acme, globex, []byte("junk"), acme, acme, acme, globex} {
		reqs = append(reqs, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env})
	}
	resps := make([]custody.Response, len(reqs))
	before := w.journal.count()
	w.Do(context.Background(), saas, reqs, resps)
	var got, outcomes []string
	for _, r := range resps {
		got = append(got, hierarchy.Code(r.Err))
	}
	if diff := cmp.Diff([]string{"", "", "", "ENVELOPE_INVALID", "", "RATE_LIMITED", "RATE_LIMITED", "RATE_LIMITED"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, r := range w.journal.since(before) {
		outcomes = append(outcomes, r.TenantName+" "+string(r.Outcome)+" "+r.Detail)
	}
	if diff := cmp.Diff([]string{
		"acme authorised ", "acme authorised ", "globex authorised ", "acme authorised ", "acme denied the rule of saas for */orders allows 3/d for each tenant", "globex denied tenant globex allows 1/s",
	}, outcomes); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}
	if w.token.asked != 6 { // two that sealed, and what the limits allow
		t.Errorf("the token was asked %d times", w.token.asked)
	}
}

// A limit that cannot be counted is not one that is exceeded, and is recorded each time.
func TestLimitsWithoutTheCluster(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	w.limit("saas", "*/orders", perDay(5))
	w.proposeErr = hierarchy.ErrStale
	before := w.journal.count()
	for range 2 {
		wantErr(t, w.do(saas, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}), hierarchy.ErrStale)
	}
	if got := w.journal.count() - before; got != 2 {
		t.Errorf("%d records, want 2", got)
	}
}

// A hot path with limits costs little more than one without.
func BenchmarkDo(b *testing.B) {
	for _, c := range []struct {
		name   string
		limits []*commandpb.Limit
	}{{"unlimited", nil}, {"limited", []*commandpb.Limit{perSecond(policy.MaxLimit), perDay(policy.MaxLimit)}}} {
		for _, size := range []int{1, 1024} {
			b.Run(c.name+"/"+map[int]string{1: "single", 1024: "batch"}[size], func(b *testing.B) {
				w := newWorld(b)
				env := w.sealed(acmeApp, "acme/orders")
				w.limit("acme-app", "acme/*", c.limits...)
				w.journal.dropped = true
				reqs, resps := make([]custody.Request, size), make([]custody.Response, size)
				for i := range reqs {
					reqs[i] = custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}
				}
				for b.Loop() {
					w.Do(context.Background(), acmeApp, reqs, resps)
					if resps[size-1].Err != nil {
						b.Fatal(resps[size-1].Err)
					}
					w.token.handed = w.token.handed[:0]
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/item")
			})
		}
	}
}
