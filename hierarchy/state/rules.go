//go:build !state_mutant

package state

import "time"

// Two rules that the safety of fences rests on. Their mutants stand in rules_mutant.go.

// stillCounts is the max_staleness by which some node may serve until a fence is complete.
func stillCounts(f *Fence) time.Duration { return f.LoweredFrom }

// leavesTombstone tells whether a holder that is removed, or replaced by one that does not prove its end,
// is waited for from then on.
func leavesTombstone() bool { return true }
