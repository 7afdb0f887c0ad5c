package cluster_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Whatever happens to a cluster, no last check before a reply passes after a disable has returned, at no node, and nothing that was
// told to anybody is untrue.
//
// Each schedule is a cluster of its own in a bubble of time. The seed fixes its faults; raft draws from elsewhere, so
// that what fails is kept as a history.
func TestSimulated(t *testing.T) {
	t.Parallel()
	first, count := simSeed(t), simCount(t, 100, 2000)
	var served, closed, ran, failed atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d schedules from seed %d, %d of which failed: %d uses, %d disables", ran.Load(), first, failed.Load(), served.Load(), closed.Load())
		if n := int64(count); !t.Failed() && (served.Load() < 50*n || closed.Load() < n) {
			t.Errorf("that shows little: %d uses and %d disables in %d schedules", served.Load(), closed.Load(), count)
		}
	})
	for i := range count {
		seed := first + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				if failed.Load() >= simFailures() {
					return // those say enough
				}
				ran.Add(1)
				w := newSimWorld(t, seed)
				t.Cleanup(func() {
					if t.Failed() {
						failed.Add(1)
					}
				})
				w.grown(2)
				w.disturbed(simFaultKinds, 12*time.Second)
				w.finish("TestSimulated")
				served.Add(int64(w.told.served))
				for _, closings := range w.told.closed {
					closed.Add(int64(len(closings)))
				}
			})
		})
	}
}

// disturbed has two tenants disabled and enabled for so long, under faults, and then sees all set right.
func (w *simWorld) disturbed(kinds []simFault, d time.Duration) {
	by := w.alive()[0]
	ctx, cancel := context.WithTimeout(w.ctx, d)
	defer cancel()
	for _, name := range []string{"acme", "globex"} {
		w.tenant(by, name, 2*time.Second)
		w.running.Go(func() { w.operator(name, time.Second).work(ctx) })
	}
	w.disturb(ctx, kinds)
	w.recover()
}

// simSeed is the first of the seeds that are taken: KEKD_SEED, or another one each time.
func simSeed(t *testing.T) uint64 {
	s := os.Getenv("KEKD_SEED")
	if s == "" {
		return uint64(time.Now().UnixNano()) % 1e9
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// simFailures is how many histories are enough: KEKD_FAILURES, or five.
func simFailures() int64 {
	if n, err := strconv.ParseInt(os.Getenv("KEKD_FAILURES"), 10, 64); err == nil {
		return n
	}
	return 5
}

// simCount is how many schedules are run: KEKD_SCHEDULES, or those of a day or a night.
func simCount(t *testing.T, day, night int) int {
	s := os.Getenv("KEKD_SCHEDULES")
	switch {
	case s != "":
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	case os.Getenv("KEKD_NIGHTLY") != "":
		return night
	}
	return day
}
