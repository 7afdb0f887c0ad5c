package worker_test

import (
	"maps"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

// counts is how often each operation was counted, but for zeros.
func counts(p *worker.Pool) map[string]uint64 {
	all := map[string]uint64{}
	for name, d := range p.Durations() {
		if d.Count > 0 {
			all[name] = d.Count
		}
	}
	return all
}

// What the token was asked for is counted by what it was.
func TestDurations(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 1})
	s := mint(t, p, acme, 1) // generates a key, and wraps
	to := []hsm.Target{{Key: s.key, AAD: aad}}
	ops := append(s.unwraps(3),
		hsm.Operation{Lane: acme, Random: 32, Reveal: true, To: to},
		hsm.Operation{Lane: acme, Open: s.unwraps(1)[0].Open, To: to},
		hsm.Operation{Lane: acme}, // invalid: the token is not asked
	)
	p.Do(soon(t), ops)
	for i := range ops[:5] {
		must(t, ops[i].Err)
	}
	must(t, p.RaiseMark(soon(t), owner, hsm.Mark{Term: 1}))
	must(t, p.SetUsable(soon(t), s.key.ID, false))
	must(t, p.Healthy(soon(t)))
	got := counts(p)
	for _, at := range []string{"health", "forget"} { // the pool asks for these by itself, too
		delete(got, at)
	}
	want := map[string]uint64{"wrap": 1, "unwrap": 3, "datakey": 1, "rewrap": 1, "generate": 1, "mark": 1, "latch": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	names := map[string]bool{}
	for name, d := range p.Durations() {
		if name == "" || names[name] {
			t.Errorf("an operation without a name of its own: %q", name)
		}
		names[name] = true
		if d.Count > 0 && (d.Sum <= 0 || d.Sum > 20*time.Second*time.Duration(d.Count)) {
			t.Errorf("%d of %s took %v together", d.Count, name, d.Sum)
		}
	}
	if n := len(maps.Collect(p.Durations())); n != len(names) {
		t.Errorf("%d operations, then %d", len(names), n)
	}
}

// A pool tells how many workers it has, what waits for them, and how many it has lost.
func TestPoolStats(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 2})
	if diff := cmp.Diff(worker.Stats{Workers: 2, Seats: 2}, p.Stats()); diff != "" {
		t.Errorf("at rest (-want +got):\n%s", diff)
	}
	var all []int
	for pid := range pids(p) {
		freeze(t, pid)
		all = append(all, pid)
	}
	const n = 200
	done := make(chan struct{})
	go func() {
		defer close(done)
		ops := make([]hsm.Operation, n)
		for i := range ops {
			ops[i] = fakeSeal(acme, []byte("x"))
		}
		p.Do(soon(t), ops)
		for i := range ops {
			if err := checkFake(&ops[i]); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	await(t, "all are waited for", func() bool { s := p.Stats(); return s.Queued+s.Sent == n })
	if s := p.Stats(); s.Sent == 0 || s.Ended != 0 {
		t.Errorf("with workers that stand still: %+v", s)
	}
	for _, pid := range all {
		signal(t, pid, syscall.SIGKILL)
	}
	<-done
	replaced(t, p, 2, all...)
	await(t, "all is at rest again", func() bool {
		return cmp.Equal(worker.Stats{Workers: 2, Seats: 2, Ended: 2}, p.Stats())
	})
}
