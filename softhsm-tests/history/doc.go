// Package history records what clients were told by real nodes, and judges whether a cluster that keeps
// its promises can have said all of it.
//
// # What is claimed, and judged
//
// Each tenant is judged by itself: whether it exists, whether it is enabled, one value that is set (by its
// limits), and whether callers are allowed its key.
//
// Commands are linearizable. Each takes effect once, between its call and its return, wherever it was
// asked for; what was acknowledged stays. A command whose outcome is not known takes effect once at some
// time from its call to the end of the history, or never. Where an answer names the command's index in the
// log, the effects stand in the order of the indexes.
//
// Reads are not: a node answers them from its own copy, which may be old. An answer names the index that
// the copy was at, and must be what the commands up to that index make, exactly, on whichever node. So a read is judged as if
// it was made while the copy was the newest one. How old a copy may be is said by two further rules:
//   - what one run of a node's process has acknowledged or shown, it shows from then on, to everybody;
//   - a read that is called fresh, since its caller knew that the node had caught up, is judged like a
//     command, and has all that returned before it was called.
//
// Uses (wraps and unwraps) name no index. One that succeeds, or is refused for the tenant's state or for
// want of a rule, must have been right at some moment from [Rules].Staleness before its call to its
// return. What the very run of the node that answers has acknowledged counts from then on. With
// [Rules].Fenced the stronger promise is judged, that a command which closes counts everywhere from its
// return on. The tenant's state and the rule are looked at one by one here, which may pass what both together
// would not.
//
// # What is not claimed
//
// A refusal that is decided before the cluster is asked (NOT_FOUND of a tenant on a node that has not
// heard of it) comes from the node's own copy and is a read. What a refusal of another kind means for a
// retry is for the caller to know: see [Outcome]. That what is opened is what was sealed is compared by
// whoever calls, as no plaintext belongs in a file.
//
// The search is porcupine's. A judgement that it cannot end within its time is no pass.
package history
