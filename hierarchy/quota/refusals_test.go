package quota_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/quota"
)

// admit counts n refusals, and returns how many of them are recorded one by one.
func admit(r *quota.Refusals, who hierarchy.Principal, tenant hierarchy.TenantID, now time.Time, n int) (single int) {
	for range n {
		if r.Admit(who, tenant, now) {
			single++
		}
	}
	return single
}

func tenantNumber(n byte) (t hierarchy.TenantID) {
	t.ID[15] = n
	return t
}

func TestRefusals(t *testing.T) {
	var r quota.Refusals
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	start := now
	seven, none := hierarchy.Principal{UID: 7, GID: 70, PID: 700}, hierarchy.TenantID{}
	if got := admit(&r, seven, none, now, 60); got != 60 {
		t.Fatalf("%d of 60", got)
	}
	if got := admit(&r, hierarchy.Principal{UID: 7, PID: 701}, none, now.Add(time.Millisecond), 60); got != 40 {
		t.Fatalf("%d of the next 60, want 40", got)
	}
	if got := admit(&r, seven, none, now.Add(2*time.Millisecond), 5); got != 0 {
		t.Fatalf("%d over the limit", got)
	}
	if got := admit(&r, hierarchy.Principal{UID: 8}, none, now, 3); got != 3 {
		t.Fatalf("another user has a count of his own: %d", got)
	}
	if got := r.Ended(now.Add(time.Second - 1)); got != nil {
		t.Fatalf("ended early: %v", got)
	}
	now = now.Add(time.Second)
	if got := admit(&r, seven, none, now, 100); got != 100 {
		t.Fatalf("a new second: %d", got)
	}
	want := []quota.Uncounted{{Caller: seven, Since: start, Count: 25}}
	if diff := cmp.Diff(want, r.Ended(now)); diff != "" {
		t.Fatal(diff)
	}
	if got := r.Ended(now.Add(time.Hour)); got != nil {
		t.Fatalf("told twice: %v", got)
	}
	admit(&r, seven, none, now, quota.RefusalsPerSecond+3)
	want = []quota.Uncounted{{Caller: seven, Since: now, Count: 3}}
	if diff := cmp.Diff(want, r.All()); diff != "" {
		t.Fatalf("a second that is not over:\n%s", diff)
	}
	if got := r.All(); got != nil {
		t.Fatalf("told twice: %v", got)
	}
}

// TestRefusalsOfATenant: who has spent what is recorded of him on one name cannot try another tenant
// unseen, and whoever tries very many tenants fills no disk.
func TestRefusalsOfATenant(t *testing.T) {
	var r quota.Refusals
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	who := hierarchy.Principal{UID: 7}
	admit(&r, who, hierarchy.TenantID{}, now, 1000)
	for n := range 2 {
		if got := admit(&r, who, tenantNumber(byte(n+1)), now, 900); got != 1 {
			t.Errorf("%d of 900 of a tenant are recorded one by one, want the first", got)
		}
	}
	want := []quota.Uncounted{
		{Caller: who, Tenant: tenantNumber(1), Since: now, Count: 899}, {Caller: who, Tenant: tenantNumber(2), Since: now, Count: 899},
		{Caller: who, Since: now, Count: 900},
	}
	if diff := cmp.Diff(want, r.All()); diff != "" {
		t.Error(diff)
	}

	single := 0
	for n := range 250 {
		single += admit(&r, who, tenantNumber(byte(n+1)), now, 10)
	}
	if most := quota.RefusalsPerSecond + quota.RefusingTenants; single > most {
		t.Errorf("%d are recorded one by one, want %d at most", single, most)
	}
	if n := len(r.All()); n > quota.RefusingTenants+1 {
		t.Errorf("%d records say how many more there were", n)
	}
}
