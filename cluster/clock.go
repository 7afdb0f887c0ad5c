package cluster

import (
	"log/slog"
	"sync"
	"time"

	"github.com/kekd/kekd/cluster/lease"
)

// maxJump is how far the wall clock may be from what the age clock says before it is not believed.
const maxJump = time.Hour

// clusterClock makes the stamps of a leader's commands. A stamp advances by the leader's own elapsed
// time and follows the wall clock, as the median of one voter. It never goes back: while it is ahead
// of the wall clock it goes at half speed, so that it never stands still either.
//
// A wall clock that jumps by more than maxJump is not followed, since waiting periods and grants
// would end, or last, by mistake. When a process starts there is nothing to compare with: nobody
// measured the time in between, and the wall clock is followed however far ahead it is.
type clusterClock struct {
	age  lease.Clock
	wall func() time.Time
	log  *slog.Logger

	mu      sync.Mutex
	started bool
	last    time.Time     // the last stamp
	at      time.Duration // when it was made
	astray  bool          // the wall clock is not followed, and that was logged
}

// stamp is the time of a command. It is not before floor, the cluster time of the state.
func (c *clusterClock) stamp(floor time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, wall := c.age.Now(), c.wall().Round(0).UTC()
	next := wall
	if c.started {
		elapsed := now - c.at
		next = c.last.Add(elapsed)
		switch off := wall.Sub(next); {
		case off.Abs() > maxJump:
			if !c.astray {
				c.log.Error("the wall clock jumped; cluster time does not follow it, set the clock right", "wall", wall, "cluster", next)
			}
			c.astray = true
		case off >= 0:
			next, c.astray = wall, false
		default:
			next, c.astray = later(wall, c.last.Add(elapsed/2)), false
		}
	} else if ahead := wall.Sub(floor); !floor.IsZero() && ahead > maxJump {
		c.log.Warn("nobody measured the time since the last command; cluster time follows the wall clock", "from", floor, "to", wall)
	}
	c.started, c.last, c.at = true, later(next, floor), now
	return c.last
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
