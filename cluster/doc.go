// Package cluster is one Raft node: it keeps the replicated hierarchy on disk, proposes commands,
// and knows how fresh its copy is. A cluster of one is the same code as a cluster of many.
//
// [Init] makes a cluster, explicitly and once; [Open] starts the node of a directory that was
// initialised, and refuses any other. Nothing is ever made anew because it is missing.
//
// What it promises, and what each promise is there for:
//
//   - A command that [Node.Propose] acknowledged is on disk and survives kill -9. An error that is
//     not [hierarchy.ErrOutcomeUnknown] means that the command did not and will not take effect.
//     hashicorp/raft gives the same error for "refused" and "perhaps committed" in places; the
//     difference is drawn in one function.
//   - A store that fails ends the process before raft hears of it. Raft answers a failed write with
//     an error and goes on, and so may count a vote or an entry that the disk has lost.
//   - A command that this version does not know, or a state that is not the leader's, ends the
//     process. The command that would be skipped may be the one that disables a tenant.
//   - A directory is used by one process (flock). What is damaged is found when it is opened, and
//     named, instead of when it is next needed.
//   - The index that counts is that of the state machine, in the state itself. Raft's moves before
//     the state machine has applied.
//
// Left to others: what a command means (package state), when a lease still proves anything (package
// lease), and who may propose what. This package ends no process itself: it reports on
// [Node.Failed], and takes no further part from then on.
package cluster
