package cluster

import (
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// unheard is how long a member may be silent before the leader's log says so: longer than a restart takes, mostly.
const unheard = 2 * time.Second

// silences are the members of which a leader has said that it does not hear of them. They belong to the driver.
type silences map[hierarchy.NodeID]bool

// look says once of a member that it is silent, and once that it is no longer.
func (q silences) look(n *Node, s *state.State, called call) {
	for m := range s.Nodes() {
		silence := called.silence(m.ID)
		switch {
		case m.ID == n.id.Node:
		case silence > unheard && !q[m.ID]:
			q[m.ID] = true
			n.cfg.Logger.Warn("a node is not heard of: it has ended, stands still, or is cut off", "of", m.Name, "id", m.ID, "for", silence.Round(time.Millisecond), "address", m.Address)
		case silence < present && q[m.ID]:
			delete(q, m.ID)
			n.cfg.Logger.Info("a node is heard of again", "of", m.Name, "id", m.ID)
		}
	}
	for id := range q {
		if _, member := s.Node(id); !member {
			delete(q, id)
		}
	}
}
