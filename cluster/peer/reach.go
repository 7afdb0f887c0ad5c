package peer

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// reach holds replication to a peer back for as long as this node leads and its heartbeats do not get
// through to the peer.
//
// Raft would try, fail, and wait twice as long each time, up to 10 s, also when the peer has long been
// back (its heartbeats are tried at least eight times a second all the while). A node that was restarted
// would get nothing for these 10 s, could not serve, and would not count for a majority.
type reach struct {
	mu sync.Mutex
	// down has the peers that heartbeats do not reach. Each is closed when one does.
	down map[raft.ServerID]chan struct{}
	// ended is closed when this node's lead is over, and nil while it does not lead.
	ended chan struct{}
}

// beat is what became of a heartbeat.
func (r *reach) beat(id raft.ServerID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	up, down := r.down[id]
	switch {
	case err == nil && down:
		close(up)
		delete(r.down, id)
	case err != nil && !down:
		if r.down == nil {
			r.down = map[raft.ServerID]chan struct{}{}
		}
		r.down[id] = make(chan struct{})
	}
}

// lead says whether this node leads. Raft waits for who replicates when a lead is over, and ends heartbeats
// only after that: without this they would wait for each other.
func (r *reach) lead(leads bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case leads && r.ended == nil:
		r.ended = make(chan struct{})
	case !leads && r.ended != nil:
		close(r.ended)
		r.ended = nil
		clear(r.down) // the next lead finds out itself
	}
}

// memberInterval is how often it is looked whether a peer that is waited for is still a member.
const memberInterval = 250 * time.Millisecond

// await returns when the peer is reached, as far as heartbeats tell, or nobody is to wait for it any
// longer: this node's lead is over, the port is closed, or the peer is no member any more, whom Raft
// replicates to once more before it lets go of it.
func (r *reach) await(id raft.ServerID, member func() bool, closed <-chan struct{}) {
	r.mu.Lock()
	ended, up := r.ended, r.down[id]
	r.mu.Unlock()
	if ended == nil || up == nil {
		return
	}
	tick := time.NewTicker(memberInterval)
	defer tick.Stop()
	for member() {
		select {
		case <-up:
			return
		case <-ended:
			return
		case <-closed:
			return
		case <-tick.C:
		}
	}
}
