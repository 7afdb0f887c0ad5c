// Package audit is the tamper-evident log of a node: who asked for what, and what became of it.
//
// A node has one [Journal]. A record is durable before the effect that it tells of leaves the
// node: [Journal.Append] puts it into the chain without touching the disk, [Journal.Wait]
// returns once it is on the disk, and [Journal.Write] is both. One flusher writes; one sync
// serves all records that arrived meanwhile. What cannot be written is refused with
// [hierarchy.ErrAuditUnavailable], and after the first failed write the journal is failed for
// good: a sync that failed once says nothing when it is tried again.
//
// A record carries the hash of the node's previous record and, if it concerns a tenant, the
// hash of that tenant's previous record, so that a tenant's records can be checked alone
// ([VerifyTenant]). Every now and then the head of the chain is signed, as a [Checkpoint], and
// handed out ([Journal.Checkpoints]) to be kept where who can write this disk cannot reach.
// [Verify] checks a journal offline against those: it finds what was edited, removed, moved,
// doubled, cut off or forked.
//
// What it leaves to others: what to record, where checkpoints are anchored, and how long
// segments are kept. No record holds a secret: an envelope is named by its hash, and the
// caller's words are the only free text.
package audit
