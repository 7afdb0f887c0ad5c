package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"iter"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func newAuditLog(t *testing.T) *auditLog {
	t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	options := audit.Options{Cluster: hierarchy.ClusterID{ID: hierarchy.NewID()}, Node: hierarchy.NodeID{ID: hierarchy.NewID()}, Signer: signer}
	dir := filepath.Join(t.TempDir(), "audit")
	if err := audit.Create(dir, options); err != nil {
		t.Fatal(err)
	}
	j, err := audit.Open(dir, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return &auditLog{journal: func() (*audit.Journal, error) { return j, nil }, state: state.New, self: options.Node, cluster: options.Cluster}
}

func (l *auditLog) use(t *testing.T, tenant hierarchy.TenantID, n int) {
	t.Helper()
	j, err := l.journal()
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		_, err := j.Append(t.Context(), []audit.Record{{
			Kind: "unwrap", Tenant: tenant, TenantName: "acme", Key: "orders", Version: 3, At: time.Unix(0, 1e18),
			Caller: &hierarchy.Principal{UID: 1, GID: 2, PID: 3}, Service: "saas", Outcome: audit.OutcomeDenied, Code: "RATE_LIMITED", Reason: "why", Detail: fmt.Sprint(i),
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	// What is behind the last of them is durable, and handed out.
	if _, err := j.Write(t.Context(), []audit.Record{{Kind: "start"}}); err != nil {
		t.Fatal(err)
	}
}

func TestWatch(t *testing.T) {
	l := newAuditLog(t)
	acme, other := hierarchy.TenantID{ID: hierarchy.NewID()}, hierarchy.TenantID{ID: hierarchy.NewID()}
	ctx, cancel := context.WithCancel(t.Context())
	next, stop := iter.Pull2(l.Watch(ctx, acme))
	defer stop()
	pull := func() *kekdv1.TenantEvent {
		t.Helper()
		e, err, ok := next()
		if err != nil || !ok {
			t.Fatalf("got %v, %v", err, ok)
		}
		return e
	}
	l.use(t, acme, 5) // before anybody looked
	if e := pull(); e.Kind != "watch" || time.Since(time.Unix(0, e.Time)) > time.Minute {
		t.Errorf("it begins with %v", e)
	}
	l.use(t, other, 1)
	l.use(t, acme, 1)
	want := &kekdv1.TenantEvent{
		Time: 1e18, Kind: "unwrap", Outcome: "denied", Code: "RATE_LIMITED", Key: "orders", Version: 3, Service: "saas",
		Caller: &kekdv1.Caller{Uid: 1, Gid: 2, Pid: 3}, Reason: "why", Detail: "0",
	}
	if diff := cmp.Diff(want, pull(), protocmp.Transform(), protocmp.IgnoreFields(want, "sequence")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// A reader who is away holds up nobody, is told how many events it missed, and goes on.
	const many = 3000
	l.use(t, acme, many)
	var last uint64
	seen, missed := 0, uint64(0)
	for seen+int(missed) < many {
		e := pull()
		if e.Kind == "missed" {
			missed += e.Missed
			continue
		}
		seen++
		if e.Sequence <= last {
			t.Fatalf("record %d came after %d", e.Sequence, last)
		}
		last = e.Sequence
	}
	if missed == 0 || seen+int(missed) != many {
		t.Errorf("%d events were seen, and %d missed, of %d", seen, missed, many)
	}
	l.use(t, acme, 1)
	if e := pull(); e.Kind != "unwrap" || e.Sequence <= last {
		t.Errorf("afterwards: %v", e)
	}
	cancel()
	if _, err, ok := next(); ok || err != nil {
		t.Errorf("after its end: %v, %v", err, ok)
	}
}

// TestTailIsFollowed reads a long past while more is written: what comes then follows without a gap,
// and of the past one line is held at a time.
func TestTailIsFollowed(t *testing.T) {
	l := newAuditLog(t)
	acme := hierarchy.TenantID{ID: hierarchy.NewID()}
	const past, meanwhile = 40_000, 500
	l.use(t, acme, past)
	held := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := held()
	var most, bytes int64
	seen := 0
	for line, err := range l.Tail(t.Context(), acme, past, true) {
		if err != nil {
			t.Fatal(err)
		}
		e, err := audit.ParseLine(line)
		if err != nil {
			t.Fatal(err)
		}
		if seen++; e.TenantSequence != uint64(seen) {
			t.Fatalf("the tenant's record %d comes as line %d", e.TenantSequence, seen)
		}
		if bytes += int64(len(line)); seen%5000 == 0 {
			most = max(most, held())
		}
		if seen == past/2 {
			l.use(t, acme, meanwhile)
		}
		if seen == past+meanwhile {
			break
		}
	}
	const bound = 2 << 20 // what waits to be followed is among it
	if most -= before; most > bound {
		t.Errorf("of %d bytes %d were held at once, want %d at most", bytes, most, bound)
	}
}
