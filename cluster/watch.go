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
// The others cannot wait that long for a leader: their leases end after two seconds, of which an election takes
// up to one. After diskQuiet a leader is silent, see [quiet]; it leads on if its disk answers before they elect another.
//
// diskDoubt is the end of that time, measured anew: a process that was stopped meanwhile finds its timers
// run out when it goes on, and its disk has done nothing wrong.
const (
	diskQuiet    = 750 * time.Millisecond
	diskPatience = 5 * time.Second
	diskDoubt    = time.Second
)

// How far an operation has come.
const (
	inTime int32 = iota
	slow
	over
	tooLate
)

// watched fails the node when what it begins is not over in time. The caller ends it; if it is too late
// for that, the end never returns: raft must not go on with a node that has failed.
func (f *failure) watched(store, what string) (end func()) {
	var state atomic.Int32
	quiet, doubt := min(diskQuiet, f.patience/4), min(diskDoubt, f.patience/5)
	give := func() {
		if state.CompareAndSwap(slow, tooLate) {
			f.fail(fmt.Errorf("the %s cannot %s: it has not answered for %v, the disk hangs", store, what, f.patience))
		}
	}
	timer := time.AfterFunc(quiet, func() {
		if !state.CompareAndSwap(inTime, slow) {
			return
		}
		f.slow.Add(1)
		time.AfterFunc(f.patience-quiet-doubt, func() {
			if state.Load() == slow {
				time.AfterFunc(doubt, give)
			}
		})
	})
	return func() {
		timer.Stop()
		if state.CompareAndSwap(inTime, over) {
			return
		}
		if !state.CompareAndSwap(slow, over) {
			f.stay()
		}
		f.slow.Add(-1)
		f.answered.fire()
	}
}
