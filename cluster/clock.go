package cluster

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy"
)

// maxJump is how far wall clocks may be from what the age clock says before they are not believed.
const maxJump = 5 * time.Minute

// clockReportLife is how long a voter's word on its wall clock counts. Renewals bring it four times a
// second; in ten seconds two clocks do not part by what matters here.
const clockReportLife = 10 * time.Second

// clusterClock makes the stamps of a leader's commands. A stamp advances by the leader's own elapsed
// time and follows wall clocks, but only as far as the median of those of a majority of the voters: one
// clock that is wrong moves nothing, the leader's own included. It never goes back: while it is ahead
// of them it goes at half speed, so that it never stands still either.
//
// Wall clocks that jump by more than maxJump are not followed, since waiting periods and grants
// would end, or last, by mistake. When a process starts there is nothing to compare with: nobody
// measured the time in between, and a majority's wall clocks are followed however far ahead they are.
type clusterClock struct {
	self hierarchy.NodeID
	age  lease.Clock
	wall func() time.Time
	log  *slog.Logger

	mu      sync.Mutex
	reports map[hierarchy.NodeID]clockReport
	started bool
	last    time.Time     // the last stamp
	at      time.Duration // when it was made
	astray  bool          // the wall clocks are not followed, and that was logged
}

type clockReport struct {
	wall time.Time
	at   time.Duration // on this node's age clock, when it was read
}

func newClusterClock(self hierarchy.NodeID, age lease.Clock, wall func() time.Time, log *slog.Logger) *clusterClock {
	return &clusterClock{self: self, age: age, wall: wall, log: log, reports: map[hierarchy.NodeID]clockReport{}}
}

// report takes what a node says of its wall clock.
func (c *clusterClock) report(of hierarchy.NodeID, wall time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reports[of] = clockReport{wall, c.age.Now()}
}

// stamp is the time of a command. It is not before floor, the cluster time of the state.
func (c *clusterClock) stamp(floor time.Time, voters []hierarchy.NodeID) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.age.Now()
	low, high, agreed := c.median(voters, now)
	elapsed := now - c.at
	next := c.last.Add(elapsed)
	switch {
	case !c.started:
		if next = floor; agreed {
			next = low
			if ahead := low.Sub(floor); !floor.IsZero() && ahead > maxJump {
				c.log.Warn("nobody measured the time since the last command; cluster time follows the wall clocks", "from", floor, "to", low)
			}
		}
	case !agreed:
	case low.Sub(next) > maxJump || next.Sub(high) > maxJump:
		if !c.astray {
			c.log.Error("the wall clocks jumped; cluster time does not follow them, set them right", "wall", low, "cluster", next)
		}
		c.astray = true
	case next.Before(low):
		next, c.astray = low, false
	case next.After(high):
		next, c.astray = later(high, c.last.Add(elapsed/2)), false
	default:
		c.astray = false
	}
	// Without a majority's word the first stamp of a process is only a floor: the next may still follow.
	c.started = c.started || agreed
	c.last, c.at = later(next, floor), now
	return c.last
}

// median is that of the voters' wall clocks now. Of an even number of them it is the range between the two
// in the middle, either of which may be wrong. It is agreed only when a majority of the voters has told.
func (c *clusterClock) median(voters []hierarchy.NodeID, now time.Duration) (low, high time.Time, agreed bool) {
	var walls []time.Time
	for _, id := range voters {
		if id == c.self {
			walls = append(walls, c.wall().Round(0).UTC())
		} else if r, ok := c.reports[id]; ok && now-r.at <= clockReportLife {
			walls = append(walls, r.wall.Add(now-r.at).UTC())
		}
	}
	if 2*len(walls) <= len(voters) {
		return low, high, false
	}
	slices.SortFunc(walls, time.Time.Compare)
	return walls[(len(walls)-1)/2], walls[len(walls)/2], true
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
