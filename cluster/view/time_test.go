package view

import (
	"testing"
	"time"
)

func TestClusterTime(t *testing.T) {
	var c clusterTime
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	const ms = time.Millisecond
	for i, step := range []struct {
		stamp, now, want time.Duration // since start, on the age clock, since start
	}{
		{0, 1000 * ms, 0},
		{0, 1100 * ms, 100 * ms},        // it runs on between ticks
		{250 * ms, 1260 * ms, 250 * ms}, // a tick
		{0, 1270 * ms, 260 * ms},        // a call that read the state before that tick
		{250 * ms, 1255 * ms, 250 * ms}, // one that read the clock before it
		{250 * ms, 9260 * ms, 8250 * ms},
	} {
		if got := c.at(start.Add(step.stamp), step.now).Sub(start); got != step.want {
			t.Errorf("step %d: %v after the start, want %v", i, got, step.want)
		}
	}
}
