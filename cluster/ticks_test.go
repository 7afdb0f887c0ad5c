package cluster_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/cluster"
)

// Whoever asks gets a Tick that is proposed after he asked. Those who ask again after each of their answers, as nodes do, come to
// share one Tick for all.
func TestTicksAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const askers, times, interval = 5, 40, 250 * time.Millisecond
		var proposed atomic.Int64
		tick := cluster.Ticker(func(context.Context) (uint64, error) {
			proposed.Add(1)
			at := time.Now()
			time.Sleep(10 * time.Millisecond) // the disks
			return uint64(at.UnixNano()), nil
		}, interval/2)
		var wg sync.WaitGroup
		for i := range askers {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * interval / 2 / askers)
				for range times {
					asked := time.Now()
					if at, err := tick(t.Context()); err != nil || at < uint64(asked.UnixNano()) {
						t.Errorf("asked at %d, got one of %d, %v", asked.UnixNano(), at, err)
					}
					time.Sleep(interval + rand.N(time.Millisecond))
				}
			})
		}
		wg.Wait()
		// Two groups that are a spacing apart may stay two.
		if n := proposed.Load(); n > 2*times {
			t.Errorf("%d ticks for %d nodes that asked %d times each", n, askers, times)
		}
	})
}

// A tick that failed is the failure of those who waited for it, and of nobody else. Who waits no longer has an answer at once.
func TestTickFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := errors.New("lost")
		var outcomes []error
		tick := cluster.Ticker(func(context.Context) (uint64, error) {
			time.Sleep(time.Second)
			err := []error{lost, nil}[len(outcomes)%2]
			outcomes = append(outcomes, err)
			return 7, err
		}, 80*time.Second)
		var got [3]error
		var took [3]time.Duration
		var wg sync.WaitGroup
		for i := range got {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 20 * time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), []time.Duration{time.Hour, time.Hour, time.Second}[i])
				defer cancel()
				begun := time.Now()
				_, got[i] = tick(ctx)
				took[i] = time.Since(begun).Round(time.Second)
			})
		}
		wg.Wait()
		want := [3]error{lost, nil, context.DeadlineExceeded}
		for i := range got {
			if !errors.Is(got[i], want[i]) {
				t.Errorf("%d: %v, want %v", i, got[i], want[i])
			}
		}
		if diff := cmp.Diff([3]time.Duration{11 * time.Second, 71 * time.Second, time.Second}, took); diff != "" {
			t.Error(diff)
		}
	})
}
