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
