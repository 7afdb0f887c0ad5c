// Package stats is how a part of the daemon counts what it does: cheaply, without a lock, and without knowing who
// reads it. What can be derived from a part's state is not counted here, but read there.
package stats

import (
	"sync/atomic"
	"time"
)

// Bounds are the upper ends of a [Histogram]'s buckets, each included. Of what the daemon does the quickest takes tens
// of microseconds, in a token that is software, and what takes longer than 10 s is late whatever it is.
var Bounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// Histogram counts durations by their size. The zero value is empty and ready. Its methods may be called by many
// goroutines at once.
type Histogram struct {
	counts [len(Bounds) + 1]atomic.Uint64
	sum    atomic.Int64 // ns
}

// Observe counts one duration.
func (h *Histogram) Observe(d time.Duration) { h.ObserveN(d, 1) }

// ObserveN counts the same duration n times.
func (h *Histogram) ObserveN(d time.Duration, n int) {
	i := 0
	for i < len(Bounds) && d > Bounds[i] {
		i++
	}
	h.counts[i].Add(uint64(n))
	h.sum.Add(int64(d) * int64(n))
}

// Distribution is what a histogram has counted.
type Distribution struct {
	Counts [len(Bounds)]uint64 // as large as the bound, or less
	Count  uint64              // all
	Sum    time.Duration
}

// Read gives what was counted so far. What is counted meanwhile may be in the sum alone.
func (h *Histogram) Read() (d Distribution) {
	for i := range h.counts {
		d.Count += h.counts[i].Load()
		if i < len(Bounds) {
			d.Counts[i] = d.Count
		}
	}
	d.Sum = time.Duration(h.sum.Load())
	return d
}
