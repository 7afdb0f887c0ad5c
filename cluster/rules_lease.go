//go:build !cluster_mutant

package cluster

import (
	"context"
	"time"

	"github.com/kekd/kekd/hierarchy/state"
)

// Rules that leases and fences rest on. Their mutants stand in rules_lease_mutant.go.

const (
	// batchEndsFirst: who asks once a Tick is proposed gets the next one. That one proves that this node led before he asked.
	batchEndsFirst = true
	// remembersAcknowledged: what a run has acknowledged it never serves from before again.
	remembersAcknowledged = true
	// awaitsInFlight: a closing is acknowledged when what was decided before is over.
	awaitsInFlight = true
)

// registerFirst: a run of a node's process holds no lease before the hierarchy has it. Nobody would wait for it.
func (n *Node) registerFirst(ctx context.Context) error { return n.register(ctx) }

// proveLead commits a Tick in the term in which this node leads, and applies it.
func (n *Node) proveLead(ctx context.Context) (index uint64, err error) { return n.proposeTick(ctx) }

// readClock reads the clock that leases are measured by, when it is asked for and not when a timer says.
func (n *Node) readClock() time.Duration { return n.cfg.Clock.Now() }

// waitsFor are those who may hold a lease from before a closing: as the state said there and then, whoever raft's
// configuration has by now.
func (n *Node) waitsFor(f *state.Fence) []state.Holder { return f.Holders }

// speaksFor tells whether an acknowledgement of one run counts for another: only if it is the same.
func speaksFor(by, other state.Holder) bool { return by == other }

// mayRenew tells whether a run that asks for a lease is the one that is registered.
func mayRenew(member *state.Node, incarnation []byte) bool {
	return string(member.Incarnation[:]) == string(incarnation)
}
