package audit

import (
	"fmt"
	"time"
)

// A write may take writePatience. A disk that is only slow answers in less; with one that hangs, a node would
// keep all its callers waiting, and a leader the whole cluster. The process then has some seconds left of the ten within
// which it has to end.
//
// writeDoubt is the end of that time, measured anew: a process that was stopped meanwhile finds its timers
// run out when it goes on, and its disk has done nothing wrong.
const (
	writePatience = 5 * time.Second
	writeDoubt    = time.Second
)

// watch fails the journal if a write is not over in time. What it was for may be on the disk, and counts as if
// it were not.
func (j *Journal) watch(g *group) (stop func() bool) {
	give := func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.writing == g {
			j.fail(fmt.Errorf("a write has been under way for %v, the disk hangs", writePatience))
		}
	}
	return time.AfterFunc(writePatience-writeDoubt, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.writing == g {
			time.AfterFunc(writeDoubt, give)
		}
	}).Stop
}
