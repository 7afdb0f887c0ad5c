//go:build cluster_mutant

package cluster

import (
	"os"

	"github.com/hashicorp/raft"
)

// Each rule is left out if CLUSTER_MUTANT names it. Only tests build with this tag.
var mutant = os.Getenv("CLUSTER_MUTANT")

func (m Mark) behind(mark Mark) bool {
	if mutant == "index-only" {
		return m.LastIndex < mark.LastIndex
	}
	return m.Term < mark.Term || m.LastTerm < mark.LastTerm || m.LastTerm == mark.LastTerm && m.LastIndex < mark.LastIndex
}

func refusesRolledBack() bool { return mutant != "rolled-back-votes" }

func marksFirst() bool { return mutant != "mark-after-acknowledgement" }

func (m Mark) counts(index uint64) bool {
	return (m.LastTerm == m.Term || mutant == "older-term") && m.LastIndex >= index
}

func mustBeMarked(log *raft.Log) bool {
	return mutant != "registration-unmarked" && mustNotBeForgotten(log)
}
