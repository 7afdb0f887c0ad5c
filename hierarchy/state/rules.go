//go:build !state_mutant

package state

import "time"

// Rules that the safety of fences, and a disable's being sticky, rest on. Their mutants stand in rules_mutant.go.

// stillCounts is the max_staleness by which some node may serve until a fence is complete.
func stillCounts(f *Fence) time.Duration { return f.LoweredFrom }

// leavesTombstone tells whether a holder that is removed, or replaced by one that does not prove its end,
// is waited for from then on.
func leavesTombstone() bool { return true }

// unprovedOnlyCloses tells whether what is not known to have been committed is kept from opening anything.
func unprovedOnlyCloses() bool { return true }

// wasWaitedFor tells whether a wait that began at an index was for this tombstone, and not for an earlier one
// of the same incarnation.
func wasWaitedFor(t *Tombstone, index uint64) bool { return t.Index == index }
