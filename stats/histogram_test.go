package stats_test

import (
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/stats"
)

func TestHistogram(t *testing.T) {
	var h stats.Histogram
	if diff := cmp.Diff(stats.Distribution{}, h.Read()); diff != "" {
		t.Errorf("an empty one (-want +got):\n%s", diff)
	}
	h.Observe(0)
	h.Observe(stats.Bounds[0])     // included
	h.Observe(stats.Bounds[0] + 1) // the next one's
	h.ObserveN(time.Second, 3)
	h.Observe(time.Hour) // above all
	got := h.Read()
	var want stats.Distribution
	for i, bound := range stats.Bounds {
		switch {
		case bound >= time.Second:
			want.Counts[i] = 6
		case i >= 1:
			want.Counts[i] = 3
		default:
			want.Counts[i] = 2
		}
	}
	want.Count, want.Sum = 7, 2*stats.Bounds[0]+1+3*time.Second+time.Hour
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestBoundsAscend(t *testing.T) {
	for i := 1; i < len(stats.Bounds); i++ {
		if stats.Bounds[i] <= stats.Bounds[i-1] {
			t.Errorf("%v follows %v", stats.Bounds[i], stats.Bounds[i-1])
		}
	}
}

// Nothing that was counted is lost, whoever else counts.
func TestHistogramOfMany(t *testing.T) {
	var h stats.Histogram
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 1000 {
				h.Observe(time.Duration(i) * time.Millisecond)
			}
		})
	}
	all.Wait()
	if d := h.Read(); d.Count != 8000 || d.Sum != 8*999*500*time.Millisecond {
		t.Errorf("%d in all, together %v", d.Count, d.Sum)
	}
}

func BenchmarkObserve(b *testing.B) {
	var h stats.Histogram
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			h.Observe(180 * time.Microsecond)
		}
	})
}
