// Package socketapi serves kekd.sock, where local services wrap and unwrap data keys, and
// admin.sock, where operators change the hierarchy.
//
// It knows its callers by the kernel's word alone (SO_PEERCRED), bounds what each of them may
// hold of the daemon, turns messages into requests and errors into stable codes, and wipes the
// data keys that pass through. What a caller may do with a key is for custody to say, and the
// hierarchy for whatever stands behind the port [Hierarchy]: nothing is decided here but who may
// use the admin socket.
//
// No caller waits for another: who is over a limit is refused at once, with RATE_LIMITED if
// the limit is that of its uid, with CAPACITY if it is the daemon's.
package socketapi
