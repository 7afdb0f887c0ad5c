//go:build state_mutant

package state

import (
	"os"
	"time"
)

// Each rule is left out if STATE_MUTANT names it. Only tests build with this tag.
var mutant = os.Getenv("STATE_MUTANT")

func stillCounts(f *Fence) time.Duration {
	if mutant == "lowered-at-once" {
		return 0
	}
	return f.LoweredFrom
}

func unprovedOnlyCloses() bool { return mutant != "recovery-opens" }

func leavesTombstone() bool { return mutant != "no-tombstones" }

func wasWaitedFor(t *Tombstone, index uint64) bool {
	return t.Index == index || mutant == "any-wait"
}
