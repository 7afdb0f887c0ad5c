package cluster

import (
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// unheard is how long a member may be silent before the leader's log says so: longer than a restart takes, mostly.
const unheard = 2 * time.Second

// silences are the members as the leader's log knows them. They belong to the driver, and begin anew with each
// leadership.
type silences map[hierarchy.NodeID]*silence

type silence struct {
	since time.Duration // when this leader has first seen the member, on its age clock
	said  bool          // that it is not heard of
}

// look says once of a member that it is silent, and once that it is no longer.
func (q silences) look(n *Node, s *state.State, called call) {
	for m := range s.Nodes() {
		is := q[m.ID]
		if is == nil {
			is = &silence{since: called.now}
			q[m.ID] = is
		}
		silent := min(called.silence(m.ID), called.now-is.since) // who has just joined starts first
		switch {
		case m.ID == n.id.Node:
		case silent > unheard && !is.said:
			is.said = true
			n.cfg.Logger.Warn("a node is not heard of: it has ended, stands still, or is cut off", "of", m.Name, "id", m.ID, "for", silent.Round(time.Millisecond), "address", m.Address)
		case silent < present && is.said:
			is.said = false
			n.cfg.Logger.Info("a node is heard of again", "of", m.Name, "id", m.ID)
		}
	}
	for id := range q {
		if _, member := s.Node(id); !member {
			delete(q, id)
		}
	}
}
