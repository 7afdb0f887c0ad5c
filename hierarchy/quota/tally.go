package quota

import (
	"math"
	"sync/atomic"
	"time"
)

// tally counts in one window at a time: the window's beginning in seconds since 1970 (32 bits: to
// the year 2106), and a number, in one word, so that both change at once and nobody takes a lock.
// It never goes back to an earlier window: who is still in one counts in the later.
type tally struct{ word atomic.Uint64 }

func pack(start, n uint32) uint64          { return uint64(start)<<32 | uint64(n) }
func unpack(w uint64) (start, n uint32)    { return uint32(w >> 32), uint32(w) }
func secondsOf(t time.Time) uint32         { return uint32(t.Unix()) }
func timeOf(seconds uint32) time.Time      { return time.Unix(int64(seconds), 0).UTC() }
func (t *tally) load() (start, n uint32)   { return unpack(t.word.Load()) }
func (t *tally) swap(old, new uint64) bool { return t.word.CompareAndSwap(old, new) }

// add counts up to n more, as far as limit allows, and says in which window.
func (t *tally) add(start, limit, n uint32) (added, in uint32) {
	for {
		old := t.word.Load()
		in, count := unpack(old)
		if in < start {
			in, count = start, 0
		}
		added = 0
		if count < limit {
			added = min(n, limit-count)
		}
		if added == 0 || t.swap(old, pack(in, count+added)) {
			return added, in
		}
	}
}

// draw counts down by up to n, as far as there is something left for the window.
func (t *tally) draw(start, n uint32) (drawn, in uint32) {
	for {
		old := t.word.Load()
		in, left := unpack(old)
		if in < start {
			return 0, start
		}
		drawn = min(n, left)
		if drawn == 0 || t.swap(old, pack(in, left-drawn)) {
			return drawn, in
		}
	}
}

// put adds what can be drawn in a window, instead of what is left for an earlier one. For a window
// that is over it does nothing.
func (t *tally) put(start, n uint32) {
	for {
		old := t.word.Load()
		in, left := unpack(old)
		switch {
		case in > start:
			return
		case in < start:
			left = 0
		}
		if t.swap(old, pack(start, left+n)) {
			return
		}
	}
}

// takeBack undoes an add, unless its window is over.
func (t *tally) takeBack(start, n uint32) {
	for {
		old := t.word.Load()
		in, count := unpack(old)
		if in != start || t.swap(old, pack(in, count-n)) {
			return
		}
	}
}

// mark counts n more and says whether they are the first of their window; and if so, of which
// window before that something was counted, and how many.
func (t *tally) mark(start, n uint32) (first bool, before, count uint32) {
	for {
		old := t.word.Load()
		before, count := unpack(old)
		if before >= start {
			if t.swap(old, pack(before, count+min(n, math.MaxUint32-count))) {
				return false, 0, 0
			}
		} else if t.swap(old, pack(start, n)) {
			return true, before, count
		}
	}
}
