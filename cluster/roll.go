package cluster

import (
	"maps"
	"sync"
	"time"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy"
)

// word is what a node said with its last renewal.
type word struct {
	at      time.Duration // when it was read, on this node's age clock
	applied uint64        // the log index that the node's state was at
	level   uint32        // the highest feature level that it knows
	healthy bool          // its token answers
}

// roll is whom a leader has heard of since it leads. It is the leader's own knowledge: the next one
// begins with nothing.
type roll struct {
	age lease.Clock

	mu    sync.Mutex
	since time.Duration // when this node began to lead
	heard map[hierarchy.NodeID]word
	well  map[hierarchy.NodeID]time.Duration // when each last said that its token answers
}

func newRoll(age lease.Clock) *roll {
	r := &roll{age: age}
	r.begin()
	return r
}

// begin is called when this node becomes leader.
func (r *roll) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since, r.heard, r.well = r.age.Now(), map[hierarchy.NodeID]word{}, map[hierarchy.NodeID]time.Duration{}
}

func (r *roll) take(of hierarchy.NodeID, w word) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.at = r.age.Now()
	if w.healthy {
		r.well[of] = w.at
	} else if _, ok := r.well[of]; !ok {
		r.well[of] = r.since
	}
	r.heard[of] = w
}

// call is one look at the roll.
type call struct {
	now   time.Duration
	since time.Duration
	heard map[hierarchy.NodeID]word
	well  map[hierarchy.NodeID]time.Duration
}

func (r *roll) call() call {
	r.mu.Lock()
	defer r.mu.Unlock()
	return call{r.age.Now(), r.since, maps.Clone(r.heard), maps.Clone(r.well)}
}

// silence is how long nothing was heard of a node, at most since this one leads.
func (c call) silence(of hierarchy.NodeID) time.Duration {
	if w, ok := c.heard[of]; ok {
		return c.now - w.at
	}
	return c.now - c.since
}
