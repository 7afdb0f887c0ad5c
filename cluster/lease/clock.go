package lease

/*
#cgo noescape kekd_age_clocks
#cgo nocallback kekd_age_clocks
#include <stdint.h>
#include <time.h>

static int64_t nanos(clockid_t id) {
	struct timespec t;
	clock_gettime(id, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// kekd_age_clocks reads the raw clock, and bounds of how long the machine has slept: between its two
// readings of CLOCK_MONOTONIC the process may be stopped for any time.
static int64_t kekd_age_clocks(int64_t *low, int64_t *high) {
	int64_t before = nanos(CLOCK_MONOTONIC);
	int64_t boot = nanos(CLOCK_BOOTTIME);
	int64_t after = nanos(CLOCK_MONOTONIC);
	*low = boot - after;
	*high = boot - before;
	return nanos(CLOCK_MONOTONIC_RAW);
}
*/
import "C"

import (
	"sync/atomic"
	"time"
)

// Clock tells how much time has passed, and nothing else: only differences of its readings mean
// anything, and only on one machine since it was started.
type Clock interface {
	Now() time.Duration
}

// AgeClock is the clock that leases are measured by:
//
//	CLOCK_MONOTONIC_RAW + (CLOCK_BOOTTIME - CLOCK_MONOTONIC)
//
// The raw clock is not slewed (chrony may slew by 8 %, and a lease would last so much longer), but it
// stands still while the machine sleeps; the difference in brackets is the time slept. It never goes
// back, and all of a process's AgeClocks are the same clock.
//
// It is read through C, because the kernel's vDSO answers there in 130 ns for all four readings,
// where Go's system calls took 450 ns for each, and every request reads it twice.
type AgeClock struct{}

func (AgeClock) Now() time.Duration { return ages.now() }

var ages = ageReader{read: ageClocks}

// ageReader adds up what read gives: the raw clock, and bounds of the time slept.
type ageReader struct {
	read func() (raw, low, high int64)
	// slept is the time that the machine has slept, as it was last measured; it moves only when the
	// machine sleeps. Taking it anew at each reading would let the clock go back by as much as two
	// measurements differ.
	slept atomic.Int64
}

// How close the bounds of slept have to be to measure it, and to believe that it is what it was. Two
// readings of a clock are some 50 ns apart.
const (
	precise = 2 * time.Microsecond
	wide    = time.Millisecond
)

func (r *ageReader) now() time.Duration {
	raw, low, high := r.read()
	known := r.slept.Load()
	// Wider bounds could hide a sleep that is shorter than the pause between the readings.
	if low <= known && known <= high && time.Duration(high-low) <= wide {
		return time.Duration(raw + known)
	}
	for tries := 0; time.Duration(high-low) > precise && tries < 100; tries++ {
		best := low
		raw, low, high = r.read()
		low = max(low, best)
	}
	// The lower bound: what is known never exceeds the truth, so it only grows, and the clock with
	// it. Of several who measure at once one is believed.
	for low > known && !r.slept.CompareAndSwap(known, low) {
		known = r.slept.Load()
	}
	return time.Duration(raw + r.slept.Load())
}

func ageClocks() (raw, low, high int64) {
	var l, h C.int64_t
	raw = int64(C.kekd_age_clocks(&l, &h))
	return raw, int64(l), int64(h)
}
