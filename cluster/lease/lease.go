// Package lease is a node's proof that its copy of the hierarchy is fresh enough to serve from,
// without asking anybody per request.
//
// A lease {t0, index} says: at t0 on this node's age clock, everything that had been committed was
// at or below index. It is had by noting t0 and then having the leader commit a Tick: the Tick is
// proposed after t0, so whatever was committed before t0 stands before it in the log. To serve, a
// reader reads the lease first and the state second, and serves while [Lease.Age] allows it, by
// reading the clock; a timer that fires late would serve too long.
//
// What a lease is not: proof of anything after t0. A change that commits later is seen by this node
// at the latest when its lease has run out, which is what bounds a disable.
//
// The package knows nothing of Raft: who proposes the Tick is a [Renewer].
package lease

import (
	"errors"
	"time"
)

// Lease is the proof. The zero value proves nothing.
type Lease struct {
	// T0 is the reading of the age clock before the proof was asked for.
	T0 time.Duration
	// Index is that of the Tick that proved it.
	Index uint64
}

// Why a lease proves nothing about a state at all.
var (
	ErrNone   = errors.New("no leader has confirmed it yet")
	ErrBehind = errors.New("it is behind what the leader has confirmed")
	ErrClock  = errors.New("the clock that ages are measured by went back")
)

// Age is how old a state at stateIndex is at most at now, on the same age clock: who allows that
// much may serve from it. The lease has to be read before the state.
func (l Lease) Age(now time.Duration, stateIndex uint64) (time.Duration, error) {
	switch {
	case l.Index == 0:
		return 0, ErrNone
	case stateIndex < l.Index:
		return 0, ErrBehind
	case now < l.T0:
		return 0, ErrClock
	}
	return now - l.T0, nil
}

// Interval is how long a node waits from one renewal to the next when the smallest max_staleness of
// a tenant is t: an eighth of it, so that some renewals may fail, and 250 ms at most.
func Interval(t time.Duration) time.Duration { return min(maxInterval, t/8) }

const maxInterval = 250 * time.Millisecond
