package peer

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// reach holds replication to a peer back for as long as heartbeats do not get through to it.
//
// Raft would try, fail, and wait twice as long each time, up to 10 s, also when the peer has long been
// back (its heartbeats are tried at least eight times a second all the while). A node that was restarted
// would get nothing for these 10 s, could not serve, and would not count for a majority.
type reach struct {
	mu    sync.Mutex
	peers map[raft.ServerID]*reached
	// ended is closed when this node's lead is over, and nil while it does not lead.
	ended chan struct{}
}

type reached struct {
	// up is closed when a heartbeat gets through again; nil while they do.
	up chan struct{}
	// beats are those on their way, and last is when one ended.
	beats int
	last  time.Time
}

// beatSilence is after what time without a heartbeat Raft has ended replication to a peer, so that
// nobody has to be held back. Between two that fail there are 125 ms, and their own time counts not.
const beatSilence = time.Second

// beat sends a heartbeat.
func (r *reach) beat(id raft.ServerID, send func() error) error {
	r.mu.Lock()
	p := r.peers[id]
	if p == nil {
		if r.peers == nil {
			r.peers = map[raft.ServerID]*reached{}
		}
		p = &reached{}
		r.peers[id] = p
	}
	p.beats++
	r.mu.Unlock()

	err := send()

	r.mu.Lock()
	defer r.mu.Unlock()
	p.beats--
	p.last = time.Now()
	switch {
	case err == nil && p.up != nil:
		close(p.up)
		p.up = nil
	case err != nil && p.up == nil:
		p.up = make(chan struct{})
	}
	return err
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
	}
}

// await returns when the peer is reached, as far as heartbeats tell, or none is sent any more, or nobody is to
// wait any longer: on release, when the port is closed, and when the peer is no member any more, whom
// Raft replicates to once more before it lets go of him.
func (r *reach) await(id raft.ServerID, member func() bool, closed <-chan struct{}) {
	tick := time.NewTicker(beatSilence / 4)
	defer tick.Stop()
	for {
		r.mu.Lock()
		p := r.peers[id]
		ended := r.ended
		if ended == nil || p == nil || p.up == nil || p.beats == 0 && time.Since(p.last) > beatSilence {
			r.mu.Unlock()
			return
		}
		up := p.up
		r.mu.Unlock()
		if !member() {
			return
		}
		select {
		case <-ended:
			return
		case <-up:
		case <-tick.C:
		case <-closed:
			return
		}
	}
}
