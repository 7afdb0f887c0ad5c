package view

import (
	"sync/atomic"
	"time"
)

// clusterTime is cluster time on this node: the stamp of its state, and what its age clock has
// counted since it first saw that stamp. Between two ticks it lags by no more than their distance;
// it is never ahead of the leader that made the stamp, but by what two nodes' clocks differ.
type clusterTime struct{ seen atomic.Pointer[stamped] }

type stamped struct {
	stamp time.Time
	at    time.Duration // on the age clock
}

// at is cluster time when the state's stamp is stamp, and the age clock says now. A state that is
// older than one that was seen before does not take it back.
func (c *clusterTime) at(stamp time.Time, now time.Duration) time.Time {
	last := c.seen.Load()
	if last == nil || last.stamp.Before(stamp) {
		next := &stamped{stamp, now}
		c.seen.CompareAndSwap(last, next) // or another call has seen it, or a later one
		last = next
	}
	return last.stamp.Add(max(0, now-last.at))
}
