package quota_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy/quota"
)

func TestRefusals(t *testing.T) {
	var r quota.Refusals
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	start := now
	if got := r.Admit(7, now, 60); got != 60 {
		t.Fatalf("%d of 60", got)
	}
	if got := r.Admit(7, now.Add(time.Millisecond), 60); got != 40 {
		t.Fatalf("%d of the next 60, want 40", got)
	}
	if got := r.Admit(7, now.Add(2*time.Millisecond), 5); got != 0 {
		t.Fatalf("%d over the limit", got)
	}
	if got := r.Admit(8, now, 3); got != 3 {
		t.Fatalf("another user has a count of his own: %d", got)
	}
	if got := r.Ended(now.Add(time.Second - 1)); got != nil {
		t.Fatalf("ended early: %v", got)
	}
	now = now.Add(time.Second)
	if got := r.Admit(7, now, 100); got != 100 {
		t.Fatalf("a new second: %d", got)
	}
	want := []quota.Uncounted{{UID: 7, Since: start, Count: 25}}
	if diff := cmp.Diff(want, r.Ended(now)); diff != "" {
		t.Fatal(diff)
	}
	if got := r.Ended(now.Add(time.Hour)); got != nil {
		t.Fatalf("told twice: %v", got)
	}
	r.Admit(7, now, quota.RefusalsPerSecond+3)
	want = []quota.Uncounted{{UID: 7, Since: now, Count: 3}}
	if diff := cmp.Diff(want, r.All()); diff != "" {
		t.Fatalf("a second that is not over:\n%s", diff)
	}
	if got := r.All(); got != nil {
		t.Fatalf("told twice: %v", got)
	}
}
