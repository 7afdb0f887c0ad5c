//go:build !view_mutant

package view

import (
	"time"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy/state"
)

// read is the order that [Replica.Look] promises. Its mutants stand in read_mutant.go.
func read(n Node) (lease.Lease, *state.State, time.Duration) {
	l := n.Lease()
	s := n.State()
	now := n.Now()
	return l, s, now
}

// isRun tells whether this run of a member's process is the one that is registered.
func isRun(member *state.Node, n Node) bool { return member.Incarnation == n.Incarnation() }
