package cluster

import (
	"fmt"
	"sync/atomic"
	"time"
)

// An operation of a store may take diskPatience. A disk that is only slow answers in less; with one that
// hangs, a leader would lead on without ever committing, since raft's heartbeats do not need the disk.
// The process then has some seconds left of the ten within which it has to end.
//
// diskDoubt is the end of that time, measured anew: a process that was stopped meanwhile finds its timers
// run out when it goes on, and its disk has done nothing wrong.
const (
	diskPatience = 5 * time.Second
	diskDoubt    = time.Second
)

const (
	inTime int32 = iota
	over
	tooLate
)

// watched fails the node when what it begins is not over in time. The caller ends it; if it is too late
// for that, the end never returns: raft must not go on with a node that has failed.
func (f *failure) watched(store, what string) (end func()) {
	var state atomic.Int32
	give := func() {
		if state.CompareAndSwap(inTime, tooLate) {
			f.fail(fmt.Errorf("the %s cannot %s: it has not answered for %v, the disk hangs", store, what, f.patience))
		}
	}
	doubt := min(diskDoubt, f.patience/5)
	timer := time.AfterFunc(f.patience-doubt, func() {
		if state.Load() == inTime {
			time.AfterFunc(doubt, give)
		}
	})
	return func() {
		timer.Stop()
		if !state.CompareAndSwap(inTime, over) {
			f.stay()
		}
	}
}
