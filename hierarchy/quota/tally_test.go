package quota

import (
	"math"
	"testing"
)

// From inside: that two callers are so far apart in time is a matter of luck.
func TestTallyOfAWindowThatIsOver(t *testing.T) {
	var left tally
	left.put(100, 5)
	left.put(60, 7) // a reservation of the window before comes late
	if start, n := left.load(); start != 100 || n != 5 {
		t.Errorf("%d are left in the window from %d, want 5 in that from 100", n, start)
	}
	if n, in := left.draw(60, 2); n != 2 || in != 100 {
		t.Errorf("drew %d in the window from %d, want 2 in that from 100", n, in)
	}
	var used tally
	used.add(100, 5, 4)
	used.takeBack(60, 3)
	if n, in := used.add(60, 5, 4); n != 1 || in != 100 {
		t.Errorf("%d of 4 in the window from %d, want the one that is left in that from 100", n, in)
	}
}

func TestMarks(t *testing.T) {
	var refused tally
	for i, step := range []struct {
		start, n      uint32
		first         bool
		before, count uint32
	}{
		{10, 3, true, 0, 0},
		{10, 2, false, 0, 0},
		{9, 1, false, 0, 0},
		{70, math.MaxUint32 - 1, true, 10, 6},
		{70, 5, false, 0, 0}, // and no more than can be counted
		{71, 1, true, 70, math.MaxUint32},
	} {
		first, before, count := refused.mark(step.start, step.n)
		if first != step.first || before != step.before || count != step.count {
			t.Errorf("step %d: got %v, %d, %d, want %+v", i, first, before, count, step)
		}
	}
}
