//go:build view_mutant

package view

import (
	"os"
	"time"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy/state"
)

// read is wrong in the one way that VIEW_MUTANT names. Only tests build with this tag.
func read(n Node) (l lease.Lease, s *state.State, now time.Duration) {
	switch os.Getenv("VIEW_MUTANT") {
	case "state-first":
		s = n.State()
		l = n.Lease()
		now = n.Now()
	case "clock-first":
		now = n.Now()
		l = n.Lease()
		s = n.State()
	case "any-index":
		l = n.Lease()
		s = n.State()
		now = n.Now()
		l.Index = min(l.Index, s.Index())
	case "state-first-any-index":
		s = n.State()
		l = n.Lease()
		now = n.Now()
		l.Index = min(l.Index, s.Index())
	default:
		l = n.Lease()
		s = n.State()
		now = n.Now()
	}
	return l, s, now
}

func isRun(member *state.Node, n Node) bool {
	return member.Incarnation == n.Incarnation() || os.Getenv("VIEW_MUTANT") == "unregistered"
}
