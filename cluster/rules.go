//go:build !cluster_mutant

package cluster

import "github.com/hashicorp/raft"

// Rules that a disable's being sticky rests on. Their mutants stand in rules_mutant.go.

// behind tells whether a disk is behind a mark: entries are compared by term, then index, since an index alone says
// nothing of an entry that another leader has replaced.
func (m Mark) behind(mark Mark) bool {
	return m.Term < mark.Term || m.LastTerm < mark.LastTerm || m.LastTerm == mark.LastTerm && m.LastIndex < mark.LastIndex
}

// refusesRolledBack tells whether a disk that is behind its mark is kept from raft, and so from voting.
func refusesRolledBack() bool { return true }

// marksFirst tells whether a mark is set before what it is for is acknowledged.
func marksFirst() bool { return true }

// counts tells whether a log that ends there holds the entry at index for good: an entry of an older
// term may yet be replaced, so that holding it would prove nothing.
func (m Mark) counts(index uint64) bool { return m.LastTerm == m.Term && m.LastIndex >= index }

// mustBeMarked tells whether an entry is marked before anybody hears that this node has it.
func mustBeMarked(log *raft.Log) bool { return mustNotBeForgotten(log) }
